"""Pings are flows by their identifier; ICMP errors belong to the flow that they quote."""

from __future__ import annotations

import pytest

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, EGRESS, FROM, INGRESS, OK, REDIRECT, SERVER, TO, Rig
from tests.bpf.packets import ACK, FAMILIES, SYN_ACK, V4, V6, Family
from tests.bpf.test_endpoint_flows import client_may_reach_server, establish

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
RELATED = 8


def ping(rig: Rig, family: Family, identifier: int = 7) -> int:
    """The client asks; the reason it is dropped for, or 0."""
    return rig.send(FROM, CLIENT, family.echo(family.client, family.server, identifier)).drop


def pong(rig: Rig, family: Family, identifier: int = 7) -> int:
    """The server answers."""
    frame = family.echo(family.server, family.client, identifier, reply=True)
    return rig.send(FROM, SERVER, frame).drop


def ping_back(rig: Rig, family: Family, identifier: int = 7) -> int:
    """The server asks."""
    return rig.send(FROM, SERVER, family.echo(family.server, family.client, identifier)).drop


def client_may_ping(rig: Rig, family: Family) -> None:
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=family.icmp, port=family.echo_request)


@families
@pytest.mark.parametrize("identifier", [0, 1, 7, 0x100, 0x101, 0x1FF, 0x8000, 0xFFFF])
def test_a_ping_and_its_answer(rig: Rig, family: Family, identifier: int) -> None:
    """The answer needs no rule; a ping the other way is a flow of its own, on any identifier."""
    client_may_ping(rig, family)
    assert ping(rig, family, identifier) == 0
    assert rig.flow_count() == (0, 1)
    assert ping_back(rig, family, identifier) == DropReason.POLICY
    assert pong(rig, family, identifier) == 0
    assert rig.flow_count() == (1, 0)
    assert ping_back(rig, family, identifier) == DropReason.POLICY
    assert ping(rig, family, identifier) == 0


@families
def test_an_answer_to_another_ping(rig: Rig, family: Family) -> None:
    """An identifier that nobody has sent is judged as its request would be."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, EGRESS)
    assert pong(rig, family, 8) == DropReason.POLICY
    client_may_ping(rig, family)
    assert pong(rig, family, 8) == 0


@families
def test_an_unasked_answer_opens_no_way_for_requests(rig: Rig, family: Family) -> None:
    """The client may ping the server, so its answer passes; a ping back still does not."""
    client_may_ping(rig, family)
    assert pong(rig, family) == 0
    assert ping_back(rig, family) == DropReason.POLICY
    (flow,) = rig.maps["pending"].values()
    assert flow.endpoint[flow.opener] == CLIENT


@families
def test_an_answer_is_not_a_request_the_other_way(rig: Rig, family: Family) -> None:
    """Who may ping may not therefore send answers that nobody asked for."""
    client_may_ping(rig, family)
    frame = family.echo(family.client, family.server, 7, reply=True)
    assert rig.send(FROM, CLIENT, frame).drop == DropReason.POLICY


@families
def test_other_messages_are_flows_of_their_own_direction(rig: Rig, family: Family) -> None:
    """A message that is allowed one way does not bring the same type back."""
    kind = 13 if family is V4 else 100
    rig.allow_all(CLIENT)
    rig.rule(SERVER, INGRESS)
    assert rig.send(FROM, CLIENT, family.icmp_message(family.client, family.server, kind)).passed
    back = family.icmp_message(family.server, family.client, kind)
    assert rig.send(FROM, SERVER, back).drop == DropReason.POLICY


@families
def test_other_messages_do_not_pass_for_a_ping(rig: Rig, family: Family) -> None:
    """No type shares a flow with an echo, whatever its identifier."""
    client_may_ping(rig, family)
    kinds = (5, 13, 17) if family is V4 else (100, 101, 127)
    for kind in kinds:
        for identifier in (kind, 0x100 | kind, 0x200 | kind):
            assert ping(rig, family, identifier) == 0
        for src, dst, endpoint in (
            (family.client, family.server, CLIENT),
            (family.server, family.client, SERVER),
        ):
            frame = family.icmp_message(src, dst, kind)
            assert rig.send(FROM, endpoint, frame).drop == DropReason.POLICY


@families
@pytest.mark.parametrize("build", ["tcp", "udp", "sctp", "echo"])
def test_an_error_about_a_flow_passes_with_it(rig: Rig, family: Family, build: str) -> None:
    """The server's own error about what the client sent needs no rule."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS)
    quoted = getattr(family, build)(family.client, family.server)
    rig.send(FROM, CLIENT, quoted)
    outcome = rig.send(FROM, SERVER, family.unreachable(family.server, family.client, quoted))
    assert outcome.action == REDIRECT
    assert [trace.flags & RELATED for trace in outcome.traces] == [RELATED]
    assert rig.flow_count() == (0, 1)


@families
def test_an_error_about_a_reply(rig: Rig, family: Family) -> None:
    """The client may say that it cannot take the answer."""
    client_may_reach_server(rig)
    establish(rig, family)
    quoted = family.tcp(family.server, family.client, 40000, ACK, 80)
    outcome = rig.send(FROM, CLIENT, family.unreachable(family.client, family.server, quoted))
    assert outcome.action == REDIRECT
    assert outcome.verdicts == []


@families
def test_an_error_about_an_echo_reply(rig: Rig, family: Family) -> None:
    """The quoted answer belongs to the flow that its request opened."""
    client_may_ping(rig, family)
    ping(rig, family)
    quoted = family.echo(family.server, family.client, reply=True)
    rig.send(FROM, SERVER, quoted)
    outcome = rig.send(FROM, CLIENT, family.unreachable(family.client, family.server, quoted))
    assert outcome.action == REDIRECT
    assert outcome.verdicts == []


@families
def test_a_router_on_the_way_may_speak(rig: Rig, family: Family) -> None:
    """An error from the stack comes from whoever met the packet, and nobody else is spoken for."""
    rig.rule(CLIENT, EGRESS)
    quoted = family.tcp(family.client, family.world)
    rig.send(FROM, CLIENT, quoted)
    error = family.unreachable(family.router, family.client, quoted)
    assert rig.send(TO, CLIENT, error).action == OK
    forged = family.unreachable(family.server, family.client, quoted)
    assert rig.send(TO, CLIENT, forged).drop == DropReason.INVALID_SOURCE


@families
def test_an_endpoint_speaks_for_itself_only(rig: Rig, family: Family) -> None:
    """An error about a flow of its own, but in another's name."""
    client_may_reach_server(rig)
    establish(rig, family)
    quoted = family.tcp(family.client, family.server)
    for name in (family.router, family.client, family.world):
        outcome = rig.send(FROM, SERVER, family.unreachable(name, family.client, quoted))
        assert outcome.drop == DropReason.INVALID_SOURCE


@families
@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        ("a flow that is not there", DropReason.POLICY),
        ("one whose sender is not the receiver", DropReason.POLICY),
        ("one cut short", DropReason.POLICY),
        ("one of an unknown transport", DropReason.POLICY),
    ],
)
def test_an_unrelated_error_is_judged_by_policy(
    rig: Rig, family: Family, quote: str, reason: int
) -> None:
    """As a message of its own type, which no rule allows here."""
    client_may_reach_server(rig)
    rig.rule(CLIENT, INGRESS, proto=6)
    establish(rig, family)
    genuine = family.tcp(family.client, family.server)
    quoted = {
        "a flow that is not there": family.tcp(family.client, family.server, sport=40001),
        "one whose sender is not the receiver": family.tcp(family.server, family.client, 40000),
        "one cut short": genuine[: family.headers + 4],
        "one of an unknown transport": family.protocol(family.client, family.server, 47),
    }[quote]
    outcome = rig.send(FROM, SERVER, family.unreachable(family.server, family.client, quoted))
    assert outcome.drop == reason
    rig.rule(SERVER, EGRESS, proto=family.icmp)
    rig.rule(CLIENT, INGRESS, proto=family.icmp)
    outcome = rig.send(FROM, SERVER, family.unreachable(family.server, family.client, quoted))
    assert outcome.action == REDIRECT
    assert len(outcome.verdicts) == 2


@families
def test_an_error_about_a_flow_that_is_forbidden_now(rig: Rig, family: Family) -> None:
    """A stale flow brings nothing along."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.clear_rules(SERVER)
    rig.bump_policy(SERVER)
    quoted = family.tcp(family.client, family.server)
    outcome = rig.send(FROM, SERVER, family.unreachable(family.server, family.client, quoted))
    assert outcome.drop == DropReason.POLICY


@families
def test_an_error_about_a_flow_that_is_over(rig: Rig, family: Family) -> None:
    """Nor does an expired one."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.expire()
    quoted = family.tcp(family.client, family.server)
    outcome = rig.send(FROM, SERVER, family.unreachable(family.server, family.client, quoted))
    assert outcome.drop == DropReason.POLICY


@families
def test_a_stranger_does_not_speak_about_a_flow(rig: Rig, family: Family) -> None:
    """An error about the world's side of a flow that comes from another endpoint."""
    rig.allow_all(CLIENT)
    rig.send(FROM, CLIENT, family.tcp(family.client, family.world))
    rig.send(TO, CLIENT, family.tcp(family.world, family.client, 40000, SYN_ACK, 80))
    quoted = family.tcp(family.client, family.world)
    error = family.unreachable(family.server, family.client, quoted)
    outcome = rig.send(FROM, SERVER, error)
    assert outcome.drop == DropReason.POLICY
    assert [trace.flags & RELATED for trace in outcome.traces] == []


@pytest.mark.parametrize(
    ("family", "kind"), [(V4, 3), (V4, 11), (V4, 12), (V6, 1), (V6, 2), (V6, 3), (V6, 4)]
)
def test_every_kind_of_error(rig: Rig, family: Family, kind: int) -> None:
    """Unreachable, too big, time exceeded, parameter problem."""
    rig.rule(CLIENT, EGRESS)
    quoted = family.udp(family.client, family.world)
    rig.send(FROM, CLIENT, quoted)
    error = family.icmp_message(family.router, family.client, kind, bytes(4) + quoted[14:])
    assert rig.send(TO, CLIENT, error).action == OK
