"""What the endpoint programs decide for a new flow, under policies written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyciliumlib.flow import DropReason
from tests.bpf import harness
from tests.bpf.harness import (
    CLIENT,
    CLIENT_IDENTITY,
    EGRESS,
    FROM,
    INGRESS,
    OK,
    PEER_IDENTITY,
    REDIRECT,
    SERVER,
    SHOT,
    TO,
    Devices,
    Rig,
)
from tests.bpf.packets import FAMILIES, V4, V6, Family

TCP, UDP, SCTP = 6, 17, 132
families = pytest.mark.parametrize("family", FAMILIES, ids=str)

Rules = list[dict[str, int | bool]]

#: Ingress entries of the server, and what becomes of the client's SYN to port 80.
INGRESS_TABLE: list[tuple[str, Rules, int, int]] = [
    ("nothing allows it", [], DropReason.POLICY, 0),
    ("the wildcard", [{}], 0, 0),
    ("the identity, any protocol and port", [{"identity": CLIENT_IDENTITY}], 0, 0),
    ("another identity", [{"identity": PEER_IDENTITY}], DropReason.POLICY, 0),
    ("the protocol, any port", [{"proto": TCP}], 0, 0),
    ("another protocol", [{"proto": UDP}], DropReason.POLICY, 0),
    ("the port", [{"proto": TCP, "port": 80, "cookie": 7}], 0, 7),
    ("another port", [{"proto": TCP, "port": 81}], DropReason.POLICY, 0),
    ("a prefix of the port", [{"proto": TCP, "port": 64, "bits": 11}], 0, 0),
    ("the prefix beside it", [{"proto": TCP, "port": 96, "bits": 11}], DropReason.POLICY, 0),
    ("a deny entry", [{"deny": True, "cookie": 3}], DropReason.POLICY_DENY, 3),
    (
        "a narrow allow under a wide deny",
        [
            {"deny": True, "cookie": 1},
            {"proto": TCP, "port": 80, "deny": True, "cookie": 1},
            {"identity": CLIENT_IDENTITY, "proto": TCP, "port": 80, "cookie": 2},
        ],
        DropReason.POLICY_DENY,
        1,
    ),
    (
        "a deny of the identity over the wildcard's allow",
        [{"cookie": 1}, {"identity": CLIENT_IDENTITY, "deny": True, "cookie": 2}],
        DropReason.POLICY_DENY,
        2,
    ),
    (
        "of equal weight the narrower entry's cookie",
        [
            {"proto": TCP, "port": 80, "cookie": 1},
            {"identity": CLIENT_IDENTITY, "cookie": 2},
        ],
        0,
        1,
    ),
    (
        "of equal weight and width the identity's own",
        [
            {"proto": TCP, "port": 80, "cookie": 1},
            {"identity": CLIENT_IDENTITY, "proto": TCP, "port": 80, "cookie": 2},
        ],
        0,
        2,
    ),
    (
        "an allow of higher priority over a deny",
        [
            {"deny": True, "priority": 5, "cookie": 1},
            {"identity": CLIENT_IDENTITY, "priority": 1, "cookie": 2},
        ],
        0,
        2,
    ),
    (
        "an entry that passes no verdict",
        [{"action": 0, "cookie": 4}],
        DropReason.POLICY,
        4,
    ),
    ("a redirect", [{"proto": TCP, "port": 80, "proxy": 0xFFFF}], DropReason.NO_PROXY, 0),
    (
        "a redirect over an allow of the same priority",
        [
            {"identity": CLIENT_IDENTITY},
            {"proto": TCP, "port": 80, "proxy": 15001, "cookie": 9},
        ],
        DropReason.NO_PROXY,
        9,
    ),
]


@families
@pytest.mark.parametrize(
    ("entries", "reason", "cookie"),
    [row[1:] for row in INGRESS_TABLE],
    ids=[row[0] for row in INGRESS_TABLE],
)
def test_ingress_policy_of_a_local_endpoint(
    rig: Rig, family: Family, entries: Rules, reason: int, cookie: int
) -> None:
    """The responder's policy is asked at the opener's device."""
    rig.rule(CLIENT, EGRESS)
    for entry in entries:
        rig.rule(SERVER, INGRESS, **entry)  # type: ignore[arg-type]  # a table of keywords
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.server, 80))
    assert outcome.drop == reason
    assert outcome.action == (SHOT if reason else REDIRECT)
    assert outcome.verdicts == [(EGRESS, 0, 0), (INGRESS, reason, cookie)]
    assert rig.flow_count() == (0, 0 if reason else 1)


@families
@pytest.mark.parametrize(
    ("entries", "reason", "cookie"),
    [row[1:] for row in INGRESS_TABLE],
    ids=[row[0] for row in INGRESS_TABLE],
)
def test_ingress_policy_for_the_stack(
    rig: Rig, family: Family, entries: Rules, reason: int, cookie: int
) -> None:
    """The same entries judge what the stack sends to the endpoint."""
    rig.set_identity(family.peer, CLIENT_IDENTITY)
    for entry in entries:
        rig.rule(SERVER, INGRESS, **entry)  # type: ignore[arg-type]  # a table of keywords
    outcome = rig.send(TO, SERVER, family.tcp(family.peer, family.server, 80))
    assert outcome.drop == reason
    assert outcome.action == (SHOT if reason else OK)
    assert outcome.verdicts == [(INGRESS, reason, cookie)]


PROTOCOLS: list[tuple[str, int, Callable[[Family, str, str], bytes]]] = [
    ("TCP", TCP, lambda f, src, dst: f.tcp(src, dst, 99)),
    ("UDP", UDP, lambda f, src, dst: f.udp(src, dst, 99)),
    ("SCTP", SCTP, lambda f, src, dst: f.sctp(src, dst, 99)),
]


@families
@pytest.mark.parametrize("allowed", [row[0] for row in PROTOCOLS])
def test_a_port_is_of_one_protocol(rig: Rig, family: Family, allowed: str) -> None:
    """An entry for a port of one protocol says nothing about the same port of another."""
    rig.rule(CLIENT, EGRESS)
    number = next(row[1] for row in PROTOCOLS if row[0] == allowed)
    rig.rule(SERVER, INGRESS, proto=number, port=99)
    for name, _, build in PROTOCOLS:
        outcome = rig.send(FROM, CLIENT, build(family, family.client, family.server))
        assert outcome.passed == (name == allowed), name


@families
def test_icmp_is_judged_by_its_type(rig: Rig, family: Family) -> None:
    """The type takes the place of the port, and an echo is judged by its request."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=family.icmp, port=family.echo_request)
    assert rig.send(FROM, CLIENT, family.echo(family.client, family.server)).passed
    assert rig.send(FROM, SERVER, family.echo(family.server, family.client, reply=True)).passed
    other = family.icmp_message(family.client, family.server, 13 if family is V4 else 100)
    assert rig.send(FROM, CLIENT, other).drop == DropReason.POLICY


@families
def test_egress_is_asked_first(rig: Rig, family: Family) -> None:
    """What the opener may not send is not asked about at the other end."""
    rig.rule(SERVER, INGRESS, deny=True)
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    assert outcome.verdicts == [(EGRESS, DropReason.POLICY, 0)]
    assert outcome.events[-1].direction == EGRESS


@families
def test_a_deny_of_the_responder_is_told_before_a_missing_proxy(rig: Rig, family: Family) -> None:
    """Beyond the redirect the responder would still be asked, so its deny is the reason."""
    frame = family.tcp(family.client, family.server)
    rig.rule(CLIENT, EGRESS, proxy=0xFFFF)
    outcome = rig.send(FROM, CLIENT, frame)
    assert outcome.drop == DropReason.POLICY
    assert outcome.verdicts == [(EGRESS, DropReason.NO_PROXY, 0), (INGRESS, DropReason.POLICY, 0)]
    assert outcome.events[-1].direction == INGRESS

    rig.rule(SERVER, INGRESS)
    outcome = rig.send(FROM, CLIENT, frame)
    assert outcome.drop == DropReason.NO_PROXY
    assert outcome.events[-1].direction == EGRESS


@families
@pytest.mark.parametrize("endpoint", [CLIENT, SERVER])
def test_an_endpoint_without_a_trie_is_not_ready(rig: Rig, family: Family, endpoint: int) -> None:
    """A missing policy denies, at either end."""
    rig.allow_all()
    rig.set_ready(endpoint, False)
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    assert outcome.drop == DropReason.ENDPOINT_NOT_READY


@families
@pytest.mark.parametrize("row", ["its own", "that of any identity"])
def test_a_row_that_is_another_identity_s(rig: Rig, family: Family, row: str) -> None:
    """What a program finds where the kernel used a row again meanwhile: it decides nothing."""
    rig.allow_all()
    rig.rule(SERVER, INGRESS, identity=CLIENT_IDENTITY)
    with rig.policy_rows(SERVER) as (keys, values):
        values["identity"][keys == (CLIENT_IDENTITY if row == "its own" else 0)] = 99
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    assert outcome.drop == (DropReason.ENDPOINT_NOT_READY if row == "its own" else 0)
    outcome = rig.send(TO, SERVER, family.tcp(family.world, family.server))
    assert outcome.drop == (0 if row == "its own" else DropReason.ENDPOINT_NOT_READY)


@families
def test_who_is_in_no_map_is_the_world(rig: Rig, family: Family) -> None:
    """A miss in the ipcache is the world of the packet's family."""
    rig.rule(CLIENT, EGRESS, identity=family.world_identity)
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.world))
    assert outcome.action == OK
    assert outcome.events[0].dst_identity == family.world_identity
    assert not rig.send(FROM, CLIENT, family.tcp(family.client, family.peer)).passed


@families
def test_of_two_prefixes_the_longer_says_who_it_is(rig: Rig, family: Family) -> None:
    """The ipcache answers by the longest prefix."""
    rig.set_identity(family.prefix, 5000)
    rig.rule(CLIENT, EGRESS)
    for address, identity in ((family.peer, PEER_IDENTITY), (_neighbour(family), 5000)):
        outcome = rig.send(FROM, CLIENT, family.tcp(family.client, address))
        assert outcome.events[0].dst_identity == identity


def _neighbour(family: Family) -> str:
    """Another address in the same prefix as `family.peer`."""
    return family.peer[:-1] + "4"


def test_with_one_family_the_world_is_one_identity(where: Devices) -> None:
    """Without dual stack both families' world is identity 2, as in Cilium."""
    with harness.rig(where, dual_stack=False) as rig:
        rig.rule(CLIENT, EGRESS, identity=2)
        for family in FAMILIES:
            assert rig.send(FROM, CLIENT, family.tcp(family.client, family.world)).passed


def test_a_prefix_of_ipv4_is_no_prefix_of_ipv6(rig: Rig) -> None:
    """All of IPv4 is the v4-mapped /96, which holds no IPv6 address."""
    rig.set_identity("0.0.0.0/0", 6000)
    rig.rule(CLIENT, EGRESS, identity=6000)
    assert rig.send(FROM, CLIENT, V4.tcp(V4.client, V4.world)).passed
    assert not rig.send(FROM, CLIENT, V6.tcp(V6.client, V6.world)).passed
