"""What DSR by option and by Geneve costs for each packet: at the director, and at the backend.

As in `balancer_nat`, behind the same wrapper, which also gives the frame its length back. IP in IP
is beside them; the director's figures for many flows are in `balancer`. The backend's packets are
those that the director made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from attrs import frozen
from scapy.layers.inet import TCP, UDP

from pyciliumlib.kernel import Object, ObjectSpec, Program
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.dsr_programs import DSRPrograms
from pyciliumlib.net import NetNS
from pyciliumlib.types import address_to_bytes, parse_address
from tests.bench.compiled import bpf_object
from tests.bench.fastpath import one_cpu
from tests.bench.figure import Figure
from tests.bpf.balancer import FAMILIES, TX, Family, Rig, device, rig

ROUNDS = 15
REPEAT = 1 << 18
DISPATCHES = {"ipip": "IP in IP", "opt": "option", "geneve": "Geneve"}
_XDP_PASS, _TC_OK = 2, 0


def figures() -> Iterator[Figure]:
    """Nanoseconds a packet, each way of telling, both families, TCP and UDP."""
    with device() as where, one_cpu():
        for dispatch, name in DISPATCHES.items():
            config = LoadBalancerConfig(
                "maglev", "dsr", dispatch, acceleration="native", table_size=251
            )
            with rig(where, config) as director, backend_side() as side:
                for family in FAMILIES:
                    for kind in ("TCP", "UDP"):
                        talk = Talk(director, side, family, kind)
                        yield from talk.figures(name)


@frozen
class Side:
    """The backend's programs."""

    loaded: Object
    take: Program
    restore: Program


@contextmanager
def backend_side() -> Iterator[Side]:
    """Loaded, with the services' addresses."""
    programs = DSRPrograms(1024)
    with programs.load() as loaded, programs.load_xdp(loaded) as xdp:
        for family in FAMILIES:
            loaded.maps["dsr_addresses"][address_to_bytes(parse_address(family.vip))] = 1
        yield Side(loaded, xdp.programs["dsr_take_xdp"], loaded.programs["dsr_restore_tc"])


@frozen
class Talk:
    """One connection by way of the director, known to it and to the backend."""

    director: Rig
    side: Side
    family: Family
    kind: str

    def request(self, flags: str = "A") -> bytes:
        return self._frame(self.family.client, self.family.vip, 40000, 80, flags)

    def answer(self, backend: str, flags: str = "A") -> bytes:
        return self._frame(backend, self.family.client, 80, 40000, flags)

    def _frame(self, src: str, dst: str, sport: int, dport: int, flags: str) -> bytes:
        segment = (
            TCP(sport=sport, dport=dport, flags=flags)
            if self.kind == "TCP"
            else UDP(sport=sport, dport=dport)
        )
        return bytes(self.family.ip(src, dst) / segment / bytes(64))

    def figures(self, name: str) -> Iterator[Figure]:
        family, kind = self.family, self.kind
        self.director.serve(Service("web", [family.at(family.vip, 80, kind)],
                                    [family.at(family.backends[0], 80, kind)]))  # fmt: skip
        for flags in "SAA":
            outcome = self.director.send(self.request(flags))
            assert outcome.action == TX, outcome
            assert self.side.take.run(outcome.data).retval == _XDP_PASS
            answer = self.answer(family.backends[0], "SA" if flags == "S" else "A")
            assert self.side.restore.run(answer).retval == _TC_OK
        text = f"known flow, {name}, {kind}, {family}"
        where = self.director.netns, {"ingress_ifindex": self.director.ifindex}
        yield Figure(
            f"{text}: director, XDP",
            _cost("translate", self.request(), self.director.program, TX, *where), "ns",
        )  # fmt: skip
        yield Figure(
            f"{text}: backend, XDP",
            _cost("translate", outcome.data, self.side.take, _XDP_PASS, where[0], {}), "ns",
        )  # fmt: skip
        yield Figure(
            f"{text}: backend's answer, tc",
            _cost("translate_tc", answer, self.side.restore, _TC_OK, where[0], {}), "ns",
        )  # fmt: skip


def _cost(
    wrapper: str, frame: bytes, program: Program, action: int, netns: NetNS, ctx: dict[str, int]
) -> int:
    """Nanoseconds beyond an empty program; the best round of each."""
    spec = ObjectSpec.open(bpf_object(wrapper), wrapper)
    spec.config["length"] = 0 if wrapper.endswith("tc") else len(frame)
    with spec.load() as bench:
        words = np.frombuffer(frame[14 : 14 + 64], np.uint64)
        bench.maps["heads"][0] = {"words": words, "ethernet": frame[:16]}
        best: dict[Program, int] = {}
        for _ in range(ROUNDS):
            for one in (bench.programs["empty"], program):
                bench.maps["under_test"][0] = one
                with netns.enter():
                    result = bench.programs["wrap"].run(frame, ctx, repeat=REPEAT)
                if one is program and result.retval != action:
                    raise AssertionError(f"{program!r} answers {result.retval}")
                best[one] = min(best.get(one, result.duration_ns), result.duration_ns)
        return best[program] - best[bench.programs["empty"]]


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
