"""A pod's packets for a service, and what its backends answer: every byte of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet import TCP as TCPHeader
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether

from pyciliumlib.flow import DropReason
from tests.bpf.harness import (
    CLIENT,
    EGRESS,
    FROM,
    INGRESS,
    OK,
    REDIRECT,
    SERVER,
    SHOT,
    Devices,
)
from tests.bpf.packets import ACK, FAMILIES, FIN_ACK, SYN, SYN_ACK, Family, checksums_hold
from tests.bpf.services import (
    FLOW_BACKEND,
    FLOW_SERVICE,
    OTHER_VIP,
    PORT,
    SPORT,
    TARGET,
    Pair,
    ServiceRig,
    delivered,
    service_rig,
)

TCP, UDP = 6, 17
KINDS = [(family, transport) for family in FAMILIES for transport in ("tcp", "udp", "sctp")]
families = pytest.mark.parametrize("family", FAMILIES, ids=str)


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[ServiceRig]:
    with service_rig(where) as made:
        yield made


@pytest.fixture
def rig(loaded: ServiceRig) -> ServiceRig:
    """No services and no flows; everything is allowed."""
    loaded.reset()
    loaded.rig.allow_all()
    return loaded


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def local(request: pytest.FixtureRequest) -> Pair:
    """The backend is the other pod of the node."""
    family, transport = request.param
    return Pair(family, transport, family.server)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def remote(request: pytest.FixtureRequest) -> Pair:
    """The backend is reached through the stack."""
    family, transport = request.param
    return Pair(family, transport, family.peer)


def tcp(family: Family) -> Pair:
    return Pair(family, "tcp", family.server)


def shake_hands(rig: ServiceRig, pair: Pair) -> None:
    """From the first packet to an established flow, with a backend on the node."""
    for frame, inside, sends, gets in (
        (pair.request(SYN), pair.request_inside(SYN), CLIENT, SERVER),
        (pair.answer_inside(SYN_ACK), pair.answer(SYN_ACK), SERVER, CLIENT),
        (pair.request(ACK), pair.request_inside(ACK), CLIENT, SERVER),
    ):
        outcome = rig.send(FROM, sends, frame)
        assert (outcome.action, outcome.drop) == (REDIRECT, 0)
        assert outcome.packet == delivered(inside, gets)


# ------------------------------------------------------------------ both directions


def test_a_backend_on_the_node(rig: ServiceRig, local: Pair) -> None:
    """From the first packet on, and again when the flow is established and nothing is told."""
    rig.put(local.service())
    shake_hands(rig, local)
    outcome = rig.from_client(local.request())
    assert outcome.packet == delivered(local.request_inside(), SERVER)
    assert (outcome.action, outcome.events) == (REDIRECT, ())
    outcome = rig.from_server(local.answer_inside())
    assert outcome.packet == delivered(local.answer(), CLIENT)
    assert (outcome.action, outcome.events) == (REDIRECT, ())


def test_a_backend_behind_the_stack(rig: ServiceRig, remote: Pair) -> None:
    """The same packets, by the other hook."""
    rig.put(remote.service())
    for flags in (SYN, ACK, ACK):
        outcome = rig.from_client(remote.request(flags))
        assert (outcome.action, outcome.packet) == (OK, remote.request_inside(flags))
        answer = SYN_ACK if flags == SYN else ACK
        outcome = rig.from_stack(remote.answer_inside(answer))
        assert (outcome.action, outcome.packet) == (OK, remote.answer(answer))
    assert outcome.events == ()


@families
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_payloads_of_any_length(rig: ServiceRig, family: Family, size: int) -> None:
    """Checksums of odd lengths follow as well."""
    pair = tcp(family)
    rig.put(pair.service())
    shake_hands(rig, pair)
    payload = bytes(range(256)) * 4
    frame = rig.from_client(pair.request(payload=payload[:size])).packet
    assert frame == delivered(pair.request_inside(payload=payload[:size]), SERVER)
    assert checksums_hold(frame)


@families
def test_a_datagram_without_a_checksum(rig: ServiceRig, family: Family) -> None:
    """0 stays 0: there is none (RFC 768; with IPv6, RFC 6936)."""
    pair = Pair(family, "udp", family.server)
    rig.put(pair.service())
    frame = bytearray(pair.request())
    at = family.headers + 6
    frame[at : at + 2] = bytes(2)
    for _ in range(2):
        outcome = rig.from_client(bytes(frame))
        assert outcome.action == REDIRECT
        assert outcome.packet[at : at + 2] == bytes(2)
        rig.from_server(pair.answer_inside())


@families
def test_options_and_extensions(rig: ServiceRig, family: Family) -> None:
    """The transport header is where the IP header ends, wherever that is."""
    pair = tcp(family)
    rig.put(pair.service())

    def frame(dst: str, dport: int) -> bytes:
        header = TCPHeader(sport=SPORT, dport=dport, flags=SYN)
        if family.version == 4:
            return bytes(family.ip(family.client, dst, options=[IPOption_NOP()] * 4) / header)
        return bytes(family.ip(family.client, dst) / IPv6ExtHdrDestOpt() / header)

    outcome = rig.from_client(frame(pair.vip, PORT))
    assert outcome.action == REDIRECT
    assert outcome.packet == delivered(frame(pair.backend, TARGET), SERVER)


# ------------------------------------------------------------------ the two entries


@families
def test_a_flow_has_two_entries(rig: ServiceRig, family: Family) -> None:
    """Both wait for the first answer, and move together."""
    pair = tcp(family)
    rig.put(pair.service())
    rig.from_client(pair.request(SYN))
    assert rig.rig.flow_count() == (0, 2)
    rig.from_server(pair.answer_inside(SYN_ACK))
    assert rig.rig.flow_count() == (2, 0)
    rig.from_client(pair.request(ACK))
    service, backend = rig.entry(family.client, pair.vip), rig.entry(family.client, pair.backend)
    assert (service.state & FLOW_SERVICE, backend.state & FLOW_BACKEND) == (8, 16)
    number = rig.backend_number(pair.backend)
    assert service.backend == backend.backend == number
    assert service.frontend == backend.frontend != 0
    assert service.endpoint[service.opener] == backend.endpoint[backend.opener] == CLIENT
    assert sorted(service.identity) == sorted(backend.identity)


@families
def test_an_entry_that_was_lost_is_made_again(rig: ServiceRig, family: Family) -> None:
    """By the next packet of either direction that the slow path sees."""
    pair = tcp(family)
    rig.put(pair.service())
    for lost, again in (
        (pair.vip, lambda: rig.from_server(pair.answer_inside(FIN_ACK))),
        (pair.vip, lambda: rig.from_client(pair.request())),
        (pair.backend, lambda: rig.from_client(pair.request(FIN_ACK))),
    ):
        rig.rig.forget_flows()
        shake_hands(rig, pair)
        rig.forget(family.client, lost)
        assert rig.entry(family.client, lost) is None
        assert again().action == REDIRECT
        found = rig.entry(family.client, lost) or rig.entry(family.client, lost, "pending")
        assert found is not None and found.backend == rig.backend_number(pair.backend)


@families
def test_established_flows_are_reviewed_together(rig: ServiceRig, family: Family) -> None:
    """A look at one of the entries is a look at both, so that neither dies of the other's use."""
    pair = tcp(family)
    rig.put(pair.service())
    for frame, sends in ((pair.request(), CLIENT), (pair.answer_inside(), SERVER)):
        rig.rig.forget_flows()
        shake_hands(rig, pair)
        flows = rig.maps["flows"]
        keys, values = flows.lookup_batch()
        values["due"] -= 10000
        values["expires"] -= 1000
        flows.update_batch(keys, values)
        before = int(values["expires"].max())
        assert rig.send(FROM, sends, frame).action == REDIRECT
        _, after = flows.lookup_batch()
        assert len(after) == 2
        assert all(int(expires) - before >= 1000 for expires in after["expires"])


@families
def test_the_end_of_a_connection_is_the_end_of_both(rig: ServiceRig, family: Family) -> None:
    """FIN from both sides, seen by way of different keys."""
    pair = tcp(family)
    rig.put(pair.service())
    shake_hands(rig, pair)
    rig.from_client(pair.request(FIN_ACK))
    rig.from_server(pair.answer_inside(FIN_ACK))
    _, values = rig.maps["flows"].lookup_batch()
    assert len(values) == 2
    assert all(int(state) & 3 == 3 for state in values["state"])
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)


@families
def test_counters(rig: ServiceRig, family: Family) -> None:
    """Every packet of the client's counts for its service and backend; no answer does."""
    pair = tcp(family)
    rig.put(pair.service())
    shake_hands(rig, pair)
    sizes = [len(pair.request(flags)) for flags in (SYN, ACK)]
    for size in (0, 100):
        sizes.append(len(rig.from_client(pair.request(payload=bytes(size))).packet))
        rig.from_server(pair.answer_inside())
    (key,) = rig.table.services
    for name, number in (
        ("lb_service_counters", rig.table.service_id(key)),
        ("lb_backend_counters", rig.backend_number(pair.backend)),
    ):
        _, values = rig.maps[name].lookup_batch()
        assert int(values["packets"][number].sum()) == len(sizes)
        assert int(values["bytes"][number].sum()) == sum(sizes)
        assert int(values["packets"].sum()) == len(sizes)


# ------------------------------------------------------------------ policy


@families
def test_policy_is_asked_about_the_backend(rig: ServiceRig, family: Family) -> None:
    """About its identity and its port, at both ends; the service's own mean nothing."""
    pair = tcp(family)
    rig.put(pair.service())
    for endpoint in (CLIENT, SERVER):
        rig.rig.clear_rules(endpoint)
    rig.rig.rule(CLIENT, EGRESS, proto=TCP, port=PORT, cookie=1)
    rig.rig.rule(SERVER, INGRESS, cookie=2)
    outcome = rig.from_client(pair.request(SYN))
    assert outcome.drop == DropReason.POLICY
    assert rig.rig.flow_count() == (0, 0)
    rig.rig.rule(CLIENT, EGRESS, identity=1002, proto=TCP, port=TARGET, cookie=3)
    outcome = rig.from_client(pair.request(SYN))
    assert outcome.verdicts == [(EGRESS, 0, 3), (INGRESS, 0, 2)]
    assert outcome.packet == delivered(pair.request_inside(SYN), SERVER)
    assert rig.from_server(pair.answer_inside(SYN_ACK)).action == REDIRECT


@families
@pytest.mark.parametrize("end", [CLIENT, SERVER])
def test_a_rule_that_is_withdrawn(rig: ServiceRig, family: Family, end: int) -> None:
    """The next packet of either direction meets that, also on the established path."""
    pair = tcp(family)
    rig.put(pair.service())
    shake_hands(rig, pair)
    rig.rig.clear_rules(end)
    rig.rig.bump_policy(end)
    assert rig.from_client(pair.request()).drop == DropReason.POLICY
    assert rig.from_server(pair.answer_inside()).drop == DropReason.POLICY
    rig.rig.allow_all(end)
    rig.rig.bump_policy(end)
    assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)


@families
def test_a_backend_that_becomes_somebody_else(rig: ServiceRig, family: Family) -> None:
    """A change of the identity behind the backend's address, by either entry."""
    pair = Pair(family, "tcp", family.peer)
    rig.put(pair.service())
    rig.rig.clear_rules(CLIENT)
    rig.rig.rule(CLIENT, EGRESS, identity=2003)
    for flags, answer in ((SYN, SYN_ACK), (ACK, ACK)):
        assert rig.from_client(pair.request(flags)).action == OK
        assert rig.from_stack(pair.answer_inside(answer)).action == OK
    rig.rig.set_identity(family.peer, 2004)
    rig.rig.bump_address(family.peer)
    assert rig.from_client(pair.request()).drop == DropReason.POLICY
    assert rig.from_stack(pair.answer_inside()).drop == DropReason.POLICY


@families
@pytest.mark.parametrize("second", [False, True])
def test_a_client_that_becomes_somebody_else(rig: ServiceRig, family: Family, second: bool) -> None:
    """A change of the client's own identity, whichever end of the two keys it is."""
    pair = Pair(family, "tcp", family.server, second)
    rig.put(pair.service())
    rig.rig.clear_rules(SERVER)
    rig.rig.rule(SERVER, INGRESS, identity=1001)
    shake_hands(rig, pair)
    assert rig.from_client(pair.request()).events == ()
    rig.rig.place(CLIENT, pair.client, identity=1009)
    rig.rig.bump_address(pair.client)
    assert rig.from_client(pair.request()).drop == DropReason.POLICY
    assert rig.from_server(pair.answer_inside()).drop == DropReason.POLICY


@families
def test_nobody_speaks_as_the_service(rig: ServiceRig, family: Family) -> None:
    """Not even its backend, with or without a flow; and nobody as another pod."""
    pair = tcp(family)
    rig.put(pair.service())
    forged = pair.packet(pair.vip, PORT, family.client, SPORT)
    assert rig.from_server(forged).drop == DropReason.INVALID_SOURCE
    shake_hands(rig, pair)
    assert rig.from_server(forged).drop == DropReason.INVALID_SOURCE
    assert rig.from_stack(forged).drop == DropReason.INVALID_SOURCE
    assert rig.from_server(pair.request()).drop == DropReason.INVALID_SOURCE
    assert rig.from_server(pair.request(SYN)).drop == DropReason.INVALID_SOURCE
    assert rig.from_client(pair.answer_inside()).drop == DropReason.INVALID_SOURCE
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)


# ------------------------------------------------------------------ no way to a backend


@families
def test_other_ports_of_a_service_address(rig: ServiceRig, family: Family) -> None:
    """They are nobody's, and nothing is answered."""
    pair = tcp(family)
    rig.put(pair.service())
    for frame in (
        pair.packet(family.client, SPORT, pair.vip, PORT + 1, SYN),
        family.udp(family.client, pair.vip, PORT),
    ):
        outcome = rig.from_client(frame)
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.NO_SERVICE_BACKEND)


@families
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_service_without_a_backend(rig: ServiceRig, family: Family, transport: str) -> None:
    """The sender is told, in the service's name, and the drop is told as well."""
    pair = Pair(family, transport, family.server)
    rig.put(pair.service().with_backends([]))
    frame = pair.request(SYN)
    outcome = rig.from_client(frame)
    assert (outcome.action, outcome.drop) == (REDIRECT, DropReason.NO_SERVICE_BACKEND)
    assert rig.rig.metrics()[EGRESS, DropReason.NO_SERVICE_BACKEND][0] == 1
    answer = Ether(outcome.packet)
    assert (answer.dst, answer.src) == ("0a:00:00:00:00:01", "0a:00:00:00:01:01")
    assert (answer.payload.src, answer.payload.dst) == (pair.vip, family.client)
    error = answer[ICMP] if family.version == 4 else answer[ICMPv6DestUnreach]
    assert (error.type, error.code) == ((3, 3) if family.version == 4 else (1, 4))
    quoted = frame[14 : family.headers + 8]
    assert bytes(error.payload) == quoted
    fresh = answer.copy()
    del fresh[type(error)].fields["chksum" if family.version == 4 else "cksum"]
    if family.version == 4:
        del fresh.payload.chksum
    assert bytes(fresh) == outcome.packet


@families
def test_silence_by_choice(where: Devices, family: Family) -> None:
    """`service-no-backend-response: drop`."""
    with service_rig(where, reject_unserved=False) as rig:
        rig.rig.allow_all()
        pair = tcp(family)
        rig.put(pair.service().with_backends([]))
        outcome = rig.from_client(pair.request(SYN))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.NO_SERVICE_BACKEND)


@families
def test_what_is_no_service_goes_by(rig: ServiceRig, family: Family) -> None:
    """Other addresses, and what has no ports, such as a ping of a service's address."""
    pair = tcp(family)
    rig.put(pair.service())
    frame = pair.packet(family.client, SPORT, OTHER_VIP[family.version], PORT, SYN)
    assert rig.from_client(frame).packet == frame
    ping = family.echo(family.client, pair.vip)
    assert rig.from_client(ping).packet == ping
    direct = pair.packet(family.client, SPORT + 1, family.server, TARGET, SYN)
    assert rig.from_client(direct).packet == delivered(direct, SERVER)
    assert rig.from_stack(pair.packet(family.world, SPORT, pair.vip, PORT, SYN)).drop
