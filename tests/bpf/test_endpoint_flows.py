"""The life of a flow: opened, replied to, used, closed, expired."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, EGRESS, FROM, INGRESS, OK, REDIRECT, SERVER, TO, Outcome, Rig
from tests.bpf.packets import ACK, FAMILIES, FIN_ACK, RST, SYN, SYN_ACK, Family

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
TCP = 6
SYN_SECONDS, TCP_SECONDS, FIN_SECONDS, ANY_SECONDS = 60, 8000, 10, 60
#: The slow path looks after a flow this often, so it may live so much longer.
REVIEW_SECONDS = 5


def request(rig: Rig, family: Family, flags: str, payload: bytes = b"") -> Outcome:
    """A TCP packet from the client to the server's port 80."""
    frame = family.tcp(family.client, family.server, 80, flags, payload=payload)
    return rig.send(FROM, CLIENT, frame)


def answer(rig: Rig, family: Family, flags: str) -> Outcome:
    """One the other way."""
    return rig.send(FROM, SERVER, family.tcp(family.server, family.client, 40000, flags, 80))


def client_may_reach_server(rig: Rig) -> None:
    """The client's egress and the server's ingress to TCP port 80, and nothing else."""
    rig.rule(CLIENT, EGRESS, proto=TCP, port=80)
    rig.rule(SERVER, INGRESS, proto=TCP, port=80)


def establish(rig: Rig, family: Family) -> None:
    """A handshake from the client to the server."""
    for outcome in (
        request(rig, family, SYN),
        answer(rig, family, SYN_ACK),
        request(rig, family, ACK),
    ):
        assert outcome.action == REDIRECT


@families
def test_a_handshake(rig: Rig, family: Family) -> None:
    """A SYN waits in `pending`; its answer moves the flow; data prolongs it."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    assert rig.flow_count() == (0, 1)
    assert SYN_SECONDS < rig.seconds_left("pending") <= SYN_SECONDS + REVIEW_SECONDS

    answer(rig, family, SYN_ACK)
    assert rig.flow_count() == (1, 0)
    assert rig.seconds_left() <= SYN_SECONDS + REVIEW_SECONDS

    request(rig, family, ACK)
    assert TCP_SECONDS < rig.seconds_left() <= TCP_SECONDS + REVIEW_SECONDS


@families
def test_established_packets_are_not_decided_again(rig: Rig, family: Family) -> None:
    """No verdict and no second entry: they take the one that is there, in both directions."""
    client_may_reach_server(rig)
    establish(rig, family)
    for _ in range(3):
        for outcome in (request(rig, family, ACK), answer(rig, family, ACK)):
            assert outcome.action == REDIRECT
            assert outcome.verdicts == []
    assert rig.flow_count() == (1, 0)


@families
def test_both_ends_are_seen_as_the_flow_has_them(rig: Rig, family: Family) -> None:
    """The entry names the opener first, whichever address sorts first."""
    rig.allow_all()
    for hook_endpoint, src, dst in (
        (CLIENT, family.client, family.server),
        (SERVER, family.server, family.client),
    ):
        rig.forget_flows()
        rig.send(FROM, hook_endpoint, family.tcp(src, dst, 80, SYN, 50000))
        entry, flow = rig.only_entry("pending"), rig.only_flow("pending")
        assert (str(entry.src), entry.sport) == (src, 50000)
        assert flow.endpoint[flow.opener] == hook_endpoint
        assert flow.ifindex[flow.opener] == rig.where.ifindex[hook_endpoint]


@families
def test_a_flow_to_the_world_and_back(rig: Rig, family: Family) -> None:
    """The answer comes through the endpoint's other program, without an ingress rule."""
    rig.rule(CLIENT, EGRESS)
    assert rig.send(FROM, CLIENT, family.tcp(family.client, family.world)).action == OK
    back = family.tcp(family.world, family.client, 40000, SYN_ACK, 80)
    assert rig.send(TO, CLIENT, back).action == OK
    assert rig.flow_count() == (1, 0)


@families
def test_a_flow_from_the_world_and_back(rig: Rig, family: Family) -> None:
    """The endpoint answers without an egress rule."""
    rig.rule(SERVER, INGRESS)
    assert rig.send(TO, SERVER, family.tcp(family.world, family.server)).action == OK
    back = family.tcp(family.server, family.world, 40000, SYN_ACK, 80)
    assert rig.send(FROM, SERVER, back).action == OK
    assert rig.flow_count() == (1, 0)


@families
def test_an_answer_to_nothing_is_judged_as_an_opening(rig: Rig, family: Family) -> None:
    """Without a flow, a SYN-ACK or data is the sender's own business."""
    client_may_reach_server(rig)
    for flags in (SYN_ACK, ACK, FIN_ACK, RST):
        assert answer(rig, family, flags).drop == DropReason.POLICY
    assert rig.flow_count() == (0, 0)


@families
@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_a_fin_from_each_side_closes(rig: Rig, family: Family, first: int) -> None:
    """One FIN closes half; after the second the flow has seconds left, and data prolongs none."""
    client_may_reach_server(rig)
    establish(rig, family)
    half, other = (request, answer) if first == CLIENT else (answer, request)
    half(rig, family, FIN_ACK)
    assert rig.seconds_left() > FIN_SECONDS
    half(rig, family, FIN_ACK)
    assert rig.seconds_left() > FIN_SECONDS
    other(rig, family, FIN_ACK)
    assert 0 < rig.seconds_left() <= FIN_SECONDS
    assert request(rig, family, ACK).action == REDIRECT
    assert rig.seconds_left() <= FIN_SECONDS


@families
@pytest.mark.parametrize("sender", [request, answer])
def test_a_reset_closes(
    rig: Rig, family: Family, sender: Callable[[Rig, Family, str], Outcome]
) -> None:
    """Either side's RST ends both halves."""
    client_may_reach_server(rig)
    establish(rig, family)
    assert sender(rig, family, RST).action == REDIRECT
    assert 0 < rig.seconds_left() <= FIN_SECONDS


@families
def test_a_refused_connection(rig: Rig, family: Family) -> None:
    """RST in answer to a SYN passes and leaves seconds of life."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    assert answer(rig, family, RST).action == REDIRECT
    assert rig.flow_count() == (1, 0)
    assert rig.seconds_left() <= FIN_SECONDS


@families
def test_an_expired_flow_is_decided_again(rig: Rig, family: Family) -> None:
    """The opener's next packet opens it anew; the other side's would be an opening of its own."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.expire()
    assert answer(rig, family, ACK).drop == DropReason.POLICY
    outcome = request(rig, family, ACK)
    assert outcome.action == REDIRECT
    assert len(outcome.verdicts) == 2
    assert answer(rig, family, ACK).action == REDIRECT


@families
@pytest.mark.parametrize("wraps", [0.5, 0.75, 1, 1.5, 2, 100])
def test_an_expired_flow_stays_so_when_jiffies_wrap(rig: Rig, family: Family, wraps: float) -> None:
    """Neither the words that have 32 bits of them, nor half of that, bring it back to life."""
    client_may_reach_server(rig)
    establish(rig, family)
    for beside in (-10_000, 1000):
        rig.expire(ago=int(wraps * (1 << 32)) + beside)
        assert answer(rig, family, ACK).drop == DropReason.POLICY
    assert request(rig, family, ACK).action == REDIRECT
    assert answer(rig, family, ACK).action == REDIRECT


@families
def test_ports_are_used_again_after_the_flow_has_expired(rig: Rig, family: Family) -> None:
    """A dead entry in `flows` does not hide the new one in `pending`."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.expire()
    establish(rig, family)
    assert rig.flow_count() == (1, 0)
    assert rig.seconds_left() > SYN_SECONDS


@families
def test_ports_are_used_again_while_the_flow_closes(rig: Rig, family: Family) -> None:
    """A SYN on a closing flow's ports opens a flow that is not a closing one."""
    client_may_reach_server(rig)
    establish(rig, family)
    request(rig, family, RST)
    establish(rig, family)
    assert rig.seconds_left() > SYN_SECONDS
    assert rig.only_entry().packets[0] == 2


@families
def test_an_expired_pending_flow_is_gone(rig: Rig, family: Family) -> None:
    """An answer that comes too late is none."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    rig.expire("pending")
    assert answer(rig, family, SYN_ACK).drop == DropReason.POLICY


@families
def test_a_syn_is_always_decided(rig: Rig, family: Family) -> None:
    """Also on the ports of a flow that stands, and a retransmitted one changes nothing."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.clear_rules(SERVER)  # and no revision is bumped: only a SYN looks at policy
    assert request(rig, family, SYN).drop == DropReason.POLICY
    assert request(rig, family, ACK).action == REDIRECT
    rig.rule(SERVER, INGRESS)
    assert request(rig, family, SYN).action == REDIRECT
    assert answer(rig, family, SYN_ACK).action == REDIRECT
    assert request(rig, family, ACK).action == REDIRECT


@families
def test_a_syn_the_other_way_is_a_flow_of_its_own(rig: Rig, family: Family) -> None:
    """The server may not open connections to the client, on whichever ports."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    assert answer(rig, family, SYN).drop == DropReason.POLICY
    establish(rig, family)
    assert answer(rig, family, SYN).drop == DropReason.POLICY
    assert request(rig, family, ACK).action == REDIRECT


@families
def test_an_allowed_syn_the_other_way_turns_the_flow(rig: Rig, family: Family) -> None:
    """Then the server is the opener, and the client answers."""
    rig.allow_all()
    establish(rig, family)
    assert answer(rig, family, SYN).action == REDIRECT
    assert rig.flow_count() == (0, 1)
    flow = rig.only_flow("pending")
    assert flow.endpoint[flow.opener] == SERVER
    assert request(rig, family, SYN_ACK).action == REDIRECT
    assert rig.flow_count() == (1, 0)


@families
def test_udp_without_an_answer_stays_pending(rig: Rig, family: Family) -> None:
    """However much is sent; the first answer moves it."""
    rig.rule(CLIENT, EGRESS)
    query = family.udp(family.client, family.world)
    for _ in range(3):
        assert rig.send(FROM, CLIENT, query).action == OK
    assert rig.flow_count() == (0, 1)
    assert rig.only_entry("pending").packets[0] == 3

    reply = family.udp(family.world, family.client, 40000, 53)
    assert rig.send(TO, CLIENT, reply).action == OK
    assert rig.flow_count() == (1, 0)
    assert ANY_SECONDS < rig.seconds_left() <= ANY_SECONDS + REVIEW_SECONDS


@families
@pytest.mark.parametrize("build", ["udp", "sctp"])
def test_another_port_is_another_flow(rig: Rig, family: Family, build: str) -> None:
    """No port of the key is left out."""
    rig.rule(CLIENT, EGRESS)
    make = getattr(family, build)
    for source, target in ((1, 2), (1, 3), (4, 2)):
        rig.send(FROM, CLIENT, make(family.client, family.world, target, source))
    assert rig.flow_count() == (0, 3)
    stranger = make(family.world, family.client, 1, 4)
    assert rig.send(TO, CLIENT, stranger).drop == DropReason.POLICY


@families
def test_each_packet_is_counted_on_its_senders_side(rig: Rig, family: Family) -> None:
    """Frames and their bytes, over opening, moving, and established packets."""
    client_may_reach_server(rig)
    establish(rig, family)
    bare = len(family.tcp(family.client, family.server))
    request(rig, family, ACK, payload=bytes(100))
    answer(rig, family, ACK)
    entry = rig.only_entry()
    assert entry.packets == (3, 2)
    assert entry.bytes == (3 * bare + 100, 2 * bare)


@families
def test_counters_survive_a_review_and_the_wrap_of_their_sum(rig: Rig, family: Family) -> None:
    """What was counted is added up by the slow path, however large the sum of the counts is."""
    client_may_reach_server(rig)
    establish(rig, family)
    before = rig.only_entry()
    keys, values = rig.maps["flows"].lookup_batch()
    packets, size = (1 << 40) + 7, (1 << 50) + 11
    values["packets"], values["bytes"] = packets, size
    values["sent"] = ((packets << 38) + size) % (1 << 64)
    rig.maps["flows"].update_batch(keys, values)
    bare = len(family.tcp(family.client, family.server))
    request(rig, family, ACK)
    assert rig.only_entry().packets == (packets + 1, packets)
    assert rig.only_entry().bytes == (size + bare, size)
    rig.bump_policy(SERVER)  # so that the slow path looks
    request(rig, family, ACK)
    entry, flow = rig.only_entry(), rig.only_flow()
    assert before.packets == (2, 1)
    assert (entry.packets, entry.bytes) == ((packets + 2, packets), (size + 2 * bare, size))
    assert flow.packets[flow.opener] == packets + 2


def test_ipv4_and_ipv6_flows_do_not_meet(rig: Rig) -> None:
    """The same ports in both families are two flows."""
    rig.allow_all()
    for each in FAMILIES:
        request(rig, each, SYN)
    assert rig.flow_count() == (0, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.1", "11.0.0.1"),
        ("10.0.0.1", "10.0.0.129"),
        ("fd00::1", "fd00::2"),
        ("fd00::1", "fd01::1"),  # alike in the half that is compared first
        ("fd00::1", "fd00::81"),  # in that half's highest bit as the programs load it
        ("fd00::1", "fd00::100:0:0:1"),  # and in its lowest
        ("fd01::1", "fd00::100:0:0:1"),
    ],
)
def test_plain_packets_of_both_ends_take_the_short_way(rig: Rig, one: str, other: str) -> None:
    """Whatever bits the addresses differ in, and whichever end opened the flow."""
    family = FAMILIES[":" in one]
    for client, server in ((one, other), (other, one)):
        rig.reset()
        rig.allow_all()
        rig.place(CLIENT, client)
        rig.place(SERVER, server)
        asked = (FROM, CLIENT, family.tcp(client, server, 80, ACK))
        answered = (FROM, SERVER, family.tcp(server, client, 40000, ACK, 80))
        rig.send(FROM, CLIENT, family.tcp(client, server, 80, SYN))
        rig.send(FROM, SERVER, family.tcp(server, client, 40000, SYN_ACK, 80))
        rig.send(*asked)
        added_up = list(rig.only_flow().packets)
        for packet in (asked, answered):
            assert rig.send(*packet).action == REDIRECT
        assert rig.only_entry().packets == (3, 2)
        assert list(rig.only_flow().packets) == added_up  # which the slow path alone changes
