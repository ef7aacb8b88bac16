"""The probes of policy cases as packets, through the loaded program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyciliumlib.flow import DropReason
from tests.bpf import harness
from tests.bpf.prober import ICMP_REPLIES, Answer, Probe, Prober
from tests.cases.scene import Question, Scene

_DENIED = {DropReason.POLICY, DropReason.POLICY_DENY}


class Wire:
    """Writes a case's policy to a kernel map and sends its probes."""

    def __init__(self, rig: harness.Rig) -> None:
        self._rig = rig
        self._prober = Prober(rig)

    def compare(self, ready: Scene) -> tuple[int, list[str]]:
        """How many packets were sent, and which of them became something else than in Cilium."""
        entries = ready.policy.entries()
        self._rig.clear_rules(harness.CLIENT)
        if len(entries):
            self._rig.rules(harness.CLIENT, entries.keys, entries.values)
        asked = [
            (probe["verdict"], probe.get("auth", ""), question)
            for probe, question in ready.questions()
            if (question.protocol, question.port) not in ICMP_REPLIES
        ]
        answers = self._prober.ask([_probe(question) for *_, question in asked])
        differences = [
            f"{question}: the program says {_verdict(answer)}, Cilium {verdict}"
            for (verdict, auth, question), answer in zip(asked, answers, strict=True)
            if not _agree(answer, verdict, auth)
        ]
        return len(asked), differences


@contextmanager
def wire() -> Iterator[Wire]:
    """The programs, with a place for every identity of the cases. Needs root."""
    with (
        harness.devices() as where,
        harness.rig(where, sizes={"ipcache": 1 << 16, "policy_template": 1 << 16}) as rig,
    ):
        yield Wire(rig)


def _probe(question: Question) -> Probe:
    return Probe(question.direction, question.identity, question.protocol, question.port)


def _agree(answer: Answer, verdict: str, auth: str) -> bool:
    if answer.reason == DropReason.POLICY_AUTH_REQUIRED:
        return auth not in ("", "disabled")
    return verdict in _verdict(answer)


def _verdict(answer: Answer) -> tuple[str, ...]:
    """What Cilium may call the answer; its old cases do so in their own words."""
    if answer.reason == 0:
        return ("allow", "allowed")
    if answer.reason == DropReason.NO_PROXY:
        return ("redirect", "allowed")
    assert answer.reason in _DENIED, answer
    return ("deny", "denied")
