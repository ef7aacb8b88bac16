"""The datapath's values and its words, without a kernel."""

from __future__ import annotations

import ipaddress
import threading

import attrs
import pytest

from pyciliumlib.datapath import DatapathConfig, Drift, Outcome
from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.endpoint import (
    Endpoint,
    check_name,
    identity_labels,
    mac_bytes,
    named_ports,
    pod_labels,
)
from pyciliumlib.datapath.simulate import summarise
from pyciliumlib.errors import ClosedError, InvalidError, LabelError
from pyciliumlib.flow import Direction, DropReason, Flow, FlowType, TracePoint, Verdict
from pyciliumlib.types import Protocol

ENDPOINT = Endpoint(
    id=3,
    name="web",
    namespace="shop",
    labels=pod_labels({"app": "web"}),
    identity_labels=identity_labels(pod_labels({"app": "web"}), "shop", {"env": "p"}, "default"),
    identity=4711,
    addresses=(ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")),
    device="lxc-web",
    ifindex=9,
    mac="02:00:00:00:00:01",
    node_mac="02:00:00:00:00:02",
    named_ports=named_ports({"http": "80/TCP", "dns": "53/UDP"}),
    routed=True,
)


def test_an_endpoint_is_stored_and_read() -> None:
    """Everything comes back from the state file as it was."""
    assert Endpoint.from_json(ENDPOINT.to_json()) == ENDPOINT
    bare = attrs.evolve(ENDPOINT, named_ports={}, labels=pod_labels(None), routed=False)
    assert Endpoint.from_json(bare.to_json()) == bare


def test_what_an_endpoint_shows() -> None:
    """Its first address of each family, and itself as a party of policy."""
    assert (str(ENDPOINT.ip4), str(ENDPOINT.ip6)) == ("10.0.0.1", "fd00::1")
    single = attrs.evolve(ENDPOINT, addresses=ENDPOINT.addresses[1:])
    assert single.ip4 is None
    assert str(ENDPOINT) == "web (endpoint 3, identity 4711, 10.0.0.1, fd00::1)"
    assert ENDPOINT.party.labels == ENDPOINT.identity_labels
    assert ENDPOINT.party.named_ports["dns"] == (53, Protocol.UDP)


def test_labels_of_an_identity() -> None:
    """Those of the pod, and those that Cilium derives from namespace and cluster."""
    found = {str(label) for label in ENDPOINT.identity_labels}
    assert found == {
        "k8s:app=web",
        "k8s:io.kubernetes.pod.namespace=shop",
        "k8s:io.cilium.k8s.namespace.labels.env=p",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
    }


def test_a_pod_cannot_choose_its_namespace_by_a_label() -> None:
    """A label of the pod that claims another namespace or cluster is refused."""
    for key in ("io.kubernetes.pod.namespace", "io.cilium.k8s.policy.cluster"):
        with pytest.raises(LabelError, match=key):
            identity_labels(pod_labels({key: "kube-system"}), "shop", {}, "default")


@pytest.mark.parametrize("name", ["web", "Web-1.a_b", "0", "x" * 63])
def test_good_names(name: str) -> None:
    """Letters, digits and a few signs."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-web", ".web", "we b", "web/x", "x" * 64, "wéb", "web\n"])
def test_bad_names(name: str) -> None:
    """A name is a key of the state file and part of messages: nothing else."""
    with pytest.raises(InvalidError, match="endpoint name"):
        check_name(name)


def test_mac() -> None:
    """Six bytes, either case; anything else is refused."""
    assert mac_bytes("02:00:00:00:00:fF") == bytes([2, 0, 0, 0, 0, 255])
    for text in ("", "02:00", "02-00-00-00-00-01", "02:00:00:00:00:01:02", "02:00:00:00:00:0g"):
        with pytest.raises(InvalidError, match="MAC"):
            mac_bytes(text)


@pytest.mark.parametrize("port", ["80-81/TCP", "0/TCP", "80", "80/ANY"])
def test_named_ports_are_single(port: str) -> None:
    """A name stands for one port of one protocol."""
    with pytest.raises(InvalidError):
        named_ports({"web": port})


# ---------------------------------------------------------------------- simulation


def flow(kind: FlowType, reason: int = 0, point: TracePoint | None = None) -> Flow:
    address = ipaddress.ip_address("10.0.0.1")
    return Flow(
        0.0, kind, Verdict.DROPPED if reason else Verdict.FORWARDED, reason, address, address,
        1, 2, 6, 11, 12, Direction.EGRESS, 1, 1, 60, 0, point=point,
    )  # fmt: skip


TO_ENDPOINT = flow(FlowType.TRACE, point=TracePoint.TO_ENDPOINT)
TO_STACK = flow(FlowType.TRACE, point=TracePoint.TO_STACK)
DROP = flow(FlowType.DROP, 133)


@pytest.mark.parametrize(
    ("retval", "flows", "outcome", "reason"),
    [
        (2, [DROP], Outcome.DROPPED, DropReason.POLICY),
        (2, [], Outcome.DROPPED, None),
        (7, [TO_ENDPOINT], Outcome.TO_ENDPOINT, None),
        (7, [], Outcome.ANSWERED, None),
        (0, [TO_ENDPOINT], Outcome.TO_ENDPOINT, None),
        (0, [TO_STACK], Outcome.TO_STACK, None),
        (0, [], Outcome.TO_STACK, None),
    ],
)
def test_outcomes(
    retval: int, flows: list[Flow], outcome: Outcome, reason: DropReason | None
) -> None:
    """What a program returned and told, in one word."""
    found = summarise(retval, b"frame", flows, ("rule",))
    assert (found.outcome, found.reason, found.packet) == (outcome, reason, b"frame")
    assert found.allowed is (outcome is not Outcome.DROPPED)
    assert (found.src_identity, found.dst_identity) == ((11, 12) if flows else (0, 0))
    assert str(found).startswith(outcome.value) and str(found).endswith("  by rule")


# ---------------------------------------------------------------------- small things


def test_drift() -> None:
    """False where there is none; else a line for each."""
    assert not Drift(())
    assert str(Drift(())) == "the kernel holds what it should"
    assert Drift(("a", "b")) and str(Drift(("a", "b"))) == "a\nb"


def test_config() -> None:
    """The defaults are right, and values are kept."""
    config = DatapathConfig()
    assert config.dual_stack and config.redirect_peer is None and config.tc == "auto"
    assert not DatapathConfig(ipv6=False).dual_stack
    assert DatapathConfig(redirect_peer=False).redirect_peer is False


def test_changes_one_at_a_time() -> None:
    """A second thread waits; the same one may enter again; nobody enters after the end."""
    changes, inside = Changes(), threading.Event()
    with changes, changes:
        other = threading.Thread(target=lambda: (changes.__enter__(), inside.set()))
        other.start()
        assert not inside.wait(0.05)
    assert inside.wait(5)
    other.join()


def test_changes_after_the_end() -> None:
    """ClosedError, and the lock is not held by who was refused."""
    changes = Changes()
    changes.close()
    for _ in range(2):
        with pytest.raises(ClosedError):
            changes.__enter__()
        with pytest.raises(ClosedError):
            changes.check()
    free = threading.Thread(target=changes.close)
    free.start()
    free.join(5)
    assert not free.is_alive()
