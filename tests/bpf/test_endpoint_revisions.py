"""A decision holds as long as nothing that it rests on has changed; then it is made again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from tests.bpf.harness import (
    CLIENT,
    CLIENT_IDENTITY,
    EGRESS,
    FROM,
    INGRESS,
    OK,
    REDIRECT,
    SERVER,
    SERVER_IDENTITY,
    TO,
    Outcome,
    Rig,
)
from tests.bpf.packets import ACK, FAMILIES, SYN, SYN_ACK, Family
from tests.bpf.test_endpoint_flows import answer, client_may_reach_server, establish, request

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
senders = pytest.mark.parametrize("sender", [request, answer], ids=["opener", "replier"])
Sender = Callable[[Rig, Family, str], Outcome]

#: What a decision between two local endpoints rests on, and how each is said to have changed.
BUMPS: dict[str, Callable[[Rig, Family], None]] = {
    "the opener's policy": lambda rig, family: rig.bump_policy(CLIENT),
    "the replier's policy": lambda rig, family: rig.bump_policy(SERVER),
    "the opener's address": lambda rig, family: rig.bump_address(family.client),
    "the replier's address": lambda rig, family: rig.bump_address(family.server),
    "a prefix": lambda rig, family: rig.bump_prefixes(),
}


@families
@senders
@pytest.mark.parametrize("bump", BUMPS.values(), ids=BUMPS)
def test_each_revision_is_looked_at(
    rig: Rig, family: Family, sender: Sender, bump: Callable[[Rig, Family], None]
) -> None:
    """Policy has changed: the next packet of either side meets the new one, once it is bumped."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.clear_rules(SERVER)
    assert sender(rig, family, ACK).action == REDIRECT
    bump(rig, family)
    assert sender(rig, family, ACK).drop == DropReason.POLICY


@families
@senders
def test_a_flow_that_is_still_allowed_goes_on(rig: Rig, family: Family, sender: Sender) -> None:
    """Decided again in its own direction, with its counters, and told to nobody."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.bump_policy(SERVER)
    outcome = sender(rig, family, ACK)
    assert outcome.action == REDIRECT
    assert outcome.verdicts == []
    assert rig.flow_count() == (1, 0)
    flow = rig.only_flow()
    assert flow.endpoint[flow.opener] == CLIENT
    assert sum(rig.only_entry().packets) == 4
    assert sender(rig, family, ACK).action == REDIRECT
    assert rig.seconds_left() > 60


@families
@senders
@pytest.mark.parametrize("endpoint", [CLIENT, SERVER])
def test_a_withdrawn_rule_stops_both_directions(
    rig: Rig, family: Family, sender: Sender, endpoint: int
) -> None:
    """Whichever side's packet comes first, neither side's passes any more.

    The server and the client may reach each other by all other rules, so that a packet which were
    judged in the wrong direction would pass.
    """
    rig.allow_all()
    establish(rig, family)
    rig.clear_rules(endpoint)
    rig.rule(endpoint, INGRESS if endpoint == CLIENT else EGRESS)
    rig.bump_policy(endpoint)
    direction = EGRESS if endpoint == CLIENT else INGRESS
    for send in (sender, request, answer, request, answer):
        outcome = send(rig, family, ACK)
        assert outcome.drop == DropReason.POLICY
        assert outcome.verdicts[-1] == (direction, DropReason.POLICY, 0)


@families
def test_a_rule_that_comes_back_lets_the_flow_go_on(rig: Rig, family: Family) -> None:
    """The flow was stopped, not forgotten."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.clear_rules(SERVER)
    rig.bump_policy(SERVER)
    assert answer(rig, family, ACK).drop == DropReason.POLICY
    rig.rule(SERVER, INGRESS)
    rig.bump_policy(SERVER)
    for send in (answer, request):
        assert send(rig, family, ACK).action == REDIRECT


@families
@senders
def test_a_pending_flow_is_decided_again_too(rig: Rig, family: Family, sender: Sender) -> None:
    """The rule goes between the SYN and its answer."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    rig.clear_rules(SERVER)
    rig.bump_policy(SERVER)
    assert sender(rig, family, SYN_ACK).drop == DropReason.POLICY


@families
def test_a_pending_flow_that_is_still_allowed_is_answered(rig: Rig, family: Family) -> None:
    """A change of policy during the handshake does not break it."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    rig.bump_policy(SERVER)
    assert answer(rig, family, SYN_ACK).action == REDIRECT
    assert request(rig, family, ACK).action == REDIRECT
    assert answer(rig, family, ACK).action == REDIRECT
    assert rig.flow_count() == (1, 0)


@families
@senders
def test_an_address_that_is_anothers_now(rig: Rig, family: Family, sender: Sender) -> None:
    """An address reused by another identity does not get the flows of the former one."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, identity=CLIENT_IDENTITY)
    establish(rig, family)
    rig.place(CLIENT, family.client, identity=4444)
    rig.bump_address(family.client)
    outcome = sender(rig, family, ACK)
    assert outcome.drop == DropReason.POLICY
    assert {4444, SERVER_IDENTITY} == {
        outcome.events[-1].src_identity,
        outcome.events[-1].dst_identity,
    }


@families
def test_an_address_that_moved_to_another_device(rig: Rig, family: Family) -> None:
    """Its flows are delivered to the new device, and the old one may not send from it."""
    rig.allow_all()
    establish(rig, family)
    rig.place(SERVER, family.client)
    rig.bump_address(family.client)
    assert request(rig, family, ACK).drop == DropReason.INVALID_SOURCE
    assert answer(rig, family, ACK).action == REDIRECT
    flow = rig.only_flow()
    assert flow.ifindex[flow.opener] == rig.where.ifindex[SERVER]


@families
def test_a_remote_address_that_is_anothers_now(rig: Rig, family: Family) -> None:
    """The ipcache's entries count like the endpoints'."""
    rig.rule(CLIENT, EGRESS, identity=2003)
    rig.send(FROM, CLIENT, family.tcp(family.client, family.peer))
    back = family.tcp(family.peer, family.client, 40000, SYN_ACK, 80)
    assert rig.send(TO, CLIENT, back).action == OK
    rig.set_identity(family.peer, 2004)
    rig.bump_address(family.peer)
    assert rig.send(TO, CLIENT, back).drop == DropReason.POLICY


@families
def test_a_prefix_that_is_anothers_now(rig: Rig, family: Family) -> None:
    """A prefix bumps cell 0, which every flow looks at."""
    rig.maps["ipcache"].clear()
    rig.set_identity(family.prefix, 5000)
    rig.rule(CLIENT, EGRESS, identity=5000)
    frame = family.udp(family.client, family.peer)
    assert rig.send(FROM, CLIENT, frame).action == OK
    rig.set_identity(family.prefix, 5001)
    rig.bump_prefixes()
    assert rig.send(FROM, CLIENT, frame).drop == DropReason.POLICY


@families
@pytest.mark.parametrize("generation", [0, 1])
def test_both_ends_are_decided_by_the_same_generation(
    rig: Rig, family: Family, generation: int
) -> None:
    """Each half allows one port at both ends; no packet meets one half here and one there."""
    ports = (8000, 8001)
    for half, port in enumerate(ports):
        rig.rule(CLIENT, EGRESS, proto=6, port=port, generation=half)
        rig.rule(SERVER, INGRESS, proto=6, port=port, generation=half)
    rig.maps["policy_generation"][0] = generation
    for half, port in enumerate(ports):
        outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.server, port))
        assert outcome.passed == (half == generation)


@families
def test_a_flip_alone_leaves_established_flows(rig: Rig, family: Family) -> None:
    """What an endpoint's flows rest on is its own revision, so others are not disturbed."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.maps["policy_generation"][0] = 1
    assert request(rig, family, ACK).action == REDIRECT
    rig.bump_policy(CLIENT)
    assert request(rig, family, ACK).drop == DropReason.POLICY


@families
def test_a_change_that_was_not_announced_is_found_in_seconds(rig: Rig, family: Family) -> None:
    """A writer may die between an endpoint's cell and the one that counts all changes."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.clear_rules(SERVER)
    rig.maps["policy_rev"][SERVER] += 1
    assert request(rig, family, ACK).action == REDIRECT
    keys, values = rig.maps["flows"].lookup_batch()
    values["due"] -= 6 * kernel_clock().hz
    rig.maps["flows"].update_batch(keys, values)
    assert request(rig, family, ACK).drop == DropReason.POLICY


@families
def test_other_endpoints_changes_are_met_once(rig: Rig, family: Family) -> None:
    """A flow that they do not concern goes on, and takes note."""
    client_may_reach_server(rig)
    establish(rig, family)
    rig.bump_policy(5)
    rig.clear_rules(SERVER)  # and no revision of its own is bumped
    assert request(rig, family, ACK).action == REDIRECT
    cells = rig.maps["policy_rev"][0] + rig.maps["ipcache_rev"][0]
    assert rig.only_flow().changes == cells


@families
def test_revisions_of_64_bits_do_not_stick(rig: Rig, family: Family) -> None:
    """Passing 2**32 is a change like any other."""
    client_may_reach_server(rig)
    rig.maps["policy_rev"][SERVER] = 0xFFFFFFFF
    establish(rig, family)
    rig.clear_rules(SERVER)
    rig.bump_policy(SERVER)
    assert request(rig, family, ACK).drop == DropReason.POLICY
    rig.maps["policy_rev"][SERVER] = 0
