"""`PolicyMap`: what is put in by hand, what is resolved, and the two together."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from pyciliumlib import PolicyMap, Repository, Verdict
from pyciliumlib.errors import InvalidError, KernelError, MapFullError, PolicyError, UnitError
from pyciliumlib.policy.entries import KEY_DTYPE, VALUE_DTYPE, PolicyEntries
from pyciliumlib.policy.program import PolicyTries

CLUSTER = "k8s:io.cilium.k8s.policy.cluster=default"
WEB = ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default", CLUSTER]
EVIL = ["k8s:app=evil", "k8s:io.kubernetes.pod.namespace=default", CLUSTER]
DOCUMENT = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [all], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: evil}}]}]
"""


@pytest.fixture
def policy() -> Iterator[PolicyMap]:
    with PolicyMap(entries=64, flows=64) as made:
        yield made


def test_entries_by_hand(policy: PolicyMap) -> None:
    """The narrower of one identity decides, unless a wider one denies; any can be taken back."""
    policy.allow("ingress", port="80-90/TCP")
    policy.deny("ingress", identity=700)
    policy.allow("ingress", identity=700, port="80/TCP")
    assert policy.lookup("ingress", 1000, "85/TCP").verdict is Verdict.ALLOW
    assert policy.lookup("ingress", 1000, "91/TCP").verdict is Verdict.DENY
    assert policy.lookup("ingress", 700, "80/TCP").verdict is Verdict.DENY
    assert policy.remove("ingress", identity=700)
    assert not policy.remove("ingress", identity=700)
    assert policy.lookup("ingress", 700, "80/TCP").verdict is Verdict.ALLOW
    assert policy.lookup("ingress", 700, "8/ICMP").verdict is Verdict.DENY


def test_an_entry_by_hand_joins_a_resolved_policy(policy: PolicyMap) -> None:
    """What denies stays: an `allow` after `replace` used to throw the resolved policy away."""
    repository = Repository()
    repository.update_identities({700: EVIL, 701: WEB})
    repository.add_endpoint(1, WEB)
    repository.apply(DOCUMENT)
    policy.replace(repository.policy(1).entries())
    held = len(policy)
    policy.allow("ingress", port="443/TCP")
    assert len(policy) == held + 1
    for identity, port, verdict in (
        (701, "80/TCP", Verdict.ALLOW),
        (701, "443/TCP", Verdict.ALLOW),
        (700, "443/TCP", Verdict.DENY),
    ):
        assert policy.lookup("ingress", identity, port).verdict is verdict


def test_what_it_refuses(policy: PolicyMap) -> None:
    """With nothing changed."""
    with pytest.raises(InvalidError, match="ingress"):
        policy.allow("inwards")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="identity -1"):
        policy.deny("ingress", identity=-1)
    with pytest.raises(UnitError, match="many/TCP"):
        policy.allow("ingress", port="many/TCP")
    with pytest.raises(PolicyError, match="one port"):
        policy.lookup("ingress", 0, "80-90/TCP")
    with pytest.raises(InvalidError, match="facing"):
        policy.attach("lo", facing="north")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="identity 4294967296"):
        policy.remove("egress", identity=1 << 32)
    keys, values = np.zeros(65, KEY_DTYPE), np.zeros(65, VALUE_DTYPE)
    keys["prefixlen"], keys["identity"] = 64, range(1, 66)
    with pytest.raises(MapFullError, match="64 entries"):
        policy.replace(PolicyEntries(keys, values))
    with pytest.raises(InvalidError, match="entries is 0"):
        PolicyMap(entries=0)
    assert len(policy) == 0


def test_tries_that_find_no_place_are_closed(
    policy: PolicyMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left open when the kernel refuses the slots of new endpoints."""
    tries = policy._tries
    tries._tries.pop(1).close()

    def refuse(self: PolicyTries, slots: Mapping[int, object]) -> None:
        raise KernelError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(PolicyTries, "_write", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError, match="no memory") as caught:
        tries.allocate()
    assert before == len(list(Path("/proc/self/fd").iterdir())), caught
