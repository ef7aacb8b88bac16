"""Numeric identities and the choice of a number or a scope for labels."""

from __future__ import annotations

import pytest

from pyciliumlib.errors import InvalidError
from pyciliumlib.identity import (
    ClusterRange,
    Labels,
    ReservedIdentity,
    Scope,
    cidr_labels,
    is_cluster,
    is_remote_node,
    is_reserved,
    is_world,
    reserved_id_for_labels,
    scope_for_labels,
    well_known_identities,
)
from pyciliumlib.identity.cidr import cidr_selector
from pyciliumlib.identity.labels import LabelError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["reserved:host"], 1),
        (["reserved:host", "reserved:kube-apiserver"], 1),
        (["reserved:world"], 2),
        (["reserved:remote-node"], 6),
        (["reserved:remote-node", "reserved:kube-apiserver"], 7),
        (["reserved:remote-node", "node:zone=a"], 6),
        (["reserved:kube-apiserver"], 7),
        (["reserved:world-ipv4"], 9),
        (["reserved:unknown"], None),
        (["reserved:world", "k8s:app=web"], None),
        (["reserved:health", "k8s:app=web"], None),
        (["k8s:host"], None),
        (["k8s:app=web"], None),
        (["k8s:app=web", "k8s:io.cilium.fixed-identity=db"], 130),
        (["k8s:app=web", "k8s:io.cilium.fixed-identity=nope"], None),
        (["reserved:host", "k8s:io.cilium.fixed-identity=nope"], None),
    ],
)
def test_reserved_number(labels: list[str], expected: int | None) -> None:
    """A reserved label within a larger set reserves nothing, but for hosts and nodes."""
    assert expected == reserved_id_for_labels(Labels.parse(labels), {"db": 130})


def test_remote_nodes_with_labels_of_their_own() -> None:
    """Where nodes have labels, a remote node is allocated a number in its own scope."""
    node = Labels.parse(["reserved:remote-node", "node:zone=a"])
    assert reserved_id_for_labels(node, nodes_have_labels=True) is None
    assert scope_for_labels(node) is Scope.REMOTE_NODE


def test_well_known_labels_must_be_equal() -> None:
    """One label more, or another cluster, and the set is an ordinary one."""
    table = well_known_identities("east")
    labels = next(iter(table))
    assert reserved_id_for_labels(labels, well_known=table) == 102
    assert reserved_id_for_labels(labels.merge(["k8s:x=y"]), well_known=table) is None
    assert reserved_id_for_labels(labels, well_known=well_known_identities("west")) is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["k8s:app=web"], Scope.GLOBAL),
        (["k8s:app=web", "cidr:10.0.0.0/8"], Scope.GLOBAL),
        (["cidr:10.0.0.0/8", "reserved:world"], Scope.LOCAL),
        (["fqdn:*.cilium.io", "reserved:world"], Scope.LOCAL),
        (["cidrgroup:a"], Scope.LOCAL),
        (["reserved:kube-apiserver", "reserved:world"], Scope.LOCAL),
        (["reserved:ingress", "k8s:x=y"], Scope.LOCAL),
        (["reserved:world", "k8s:x=y"], Scope.GLOBAL),
        (["any:a", "unspec:b"], Scope.GLOBAL),
    ],
)
def test_scope(labels: list[str], expected: Scope) -> None:
    """What only this node can know is numbered in its own scope."""
    assert expected is scope_for_labels(Labels.parse(labels))


def test_cluster_ranges() -> None:
    """Eight or nine bits of the number say which cluster gave it."""
    assert ClusterRange(0, 511).numbers == range(256, 32768)
    assert ClusterRange(511, 511).numbers == range(511 << 15, 1 << 24)
    assert ClusterRange(0, 511).cluster_of(0x030100) == 6
    assert ClusterRange().cluster_of(Scope.LOCAL + 5) == 0
    for bad in ((0, 300), (256, 255), (-1, 255)):
        with pytest.raises(InvalidError):
            ClusterRange(*bad)
    with pytest.raises(InvalidError):
        Scope.of(0x0300_0000)


def test_classes_of_numbers() -> None:
    """World, cluster and remote nodes, as the datapath tells them apart."""
    assert [n for n in range(20) if is_world(n)] == [2, 9, 10]
    assert [n for n in range(20) if is_reserved(n)] == [int(i) for i in ReservedIdentity][1:]
    assert is_cluster(5000)
    assert not is_cluster(Scope.LOCAL + 1)
    assert not is_cluster(2)
    assert is_remote_node(6)
    assert is_remote_node(7)
    assert is_remote_node(Scope.REMOTE_NODE + 9)
    assert not is_remote_node(1)


def test_cidr_labels_mask_the_prefix() -> None:
    """Host bits do not count, and an address is a prefix of all its bits."""
    assert cidr_labels("10.1.2.3/8") == cidr_labels("10.0.0.0/8")
    assert cidr_labels("10.1.2.3") == cidr_labels("10.1.2.3/32")


def test_cidr_selector() -> None:
    """A prefix, less its exceptions; an exception outside of it is a mistake."""
    selector = cidr_selector("10.0.0.0/8", ["10.1.0.0/16"])
    assert selector.matches(cidr_labels("10.2.0.0/16"))
    assert not selector.matches(cidr_labels("10.1.2.3/32"))
    assert not selector.matches(cidr_labels("11.0.0.0/8"))
    with pytest.raises(LabelError, match="not inside"):
        cidr_selector("10.0.0.0/8", ["11.0.0.0/16"])
