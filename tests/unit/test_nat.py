"""Translated flows as a model, and which ports of a node they may have."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.conntrack import Ends, Nat
from pyciliumlib.loadbalancer import LoadBalancerConfig
from pyciliumlib.loadbalancer.nat_ports import SocketPorts, format_ports, parse_ports
from pyciliumlib.types import PortProto

FLOW = Ends("198.51.100.7", 50001, "203.0.113.10", 80)
OTHER = Ends("198.51.100.8", 50001, "203.0.113.10", 80)
BACKEND = ("10.0.0.1", 8080)


@pytest.fixture
def nat() -> Nat:
    return Nat("192.0.2.1", PortProto(50000, 50003))


def test_a_clients_own_port_is_kept(nat: Nat) -> None:
    """As long as it is free; a client from elsewhere may get any."""
    assert nat.allowed(FLOW, *BACKEND) == {50001}
    assert nat.allowed(Ends("198.51.100.7", 1, "203.0.113.10", 80), *BACKEND) == {
        50000, 50001, 50002, 50003,
    }  # fmt: skip


def test_what_packets_become(nat: Nat) -> None:
    """To the backend, back, and quoted in an error from either side."""
    inside = nat.bind(FLOW, *BACKEND, 50001)
    assert inside == Ends("192.0.2.1", 50001, "10.0.0.1", 8080)
    assert nat.out(FLOW) == inside
    assert nat.back(inside.reversed) == FLOW.reversed
    assert nat.quoted(inside) == FLOW
    assert nat.quoted(FLOW.reversed) == inside.reversed
    assert nat.out(OTHER) is nat.back(OTHER) is nat.quoted(OTHER) is None


def test_a_port_is_one_flows_towards_one_backend(nat: Nat) -> None:
    """Others get what is left; towards another backend all are free."""
    nat.bind(FLOW, *BACKEND, 50001)
    assert nat.allowed(FLOW, *BACKEND) == {50001}
    assert nat.allowed(OTHER, *BACKEND) == {50000, 50002, 50003}
    assert nat.allowed(OTHER, "10.0.0.2", 8080) == {50001}
    assert nat.allowed(OTHER, "10.0.0.1", 8081) == {50001}
    with pytest.raises(errors.ExistsError, match="another flow's"):
        nat.bind(OTHER, *BACKEND, 50001)
    with pytest.raises(errors.InvalidError, match="none of 50000-50003"):
        nat.bind(OTHER, *BACKEND, 1)


def test_ports_run_out(nat: Nat) -> None:
    """And are there again when a flow has ended or has gone to another backend."""
    flows = [Ends("198.51.100.7", port, "203.0.113.10", 80) for port in range(1, 5)]
    for flow, port in zip(flows, range(50000, 50004), strict=True):
        nat.bind(flow, *BACKEND, port)
    assert nat.allowed(OTHER, *BACKEND) == frozenset()
    nat.release(flows[0])
    nat.bind(flows[1], "10.0.0.2", 8080, 50000)
    assert nat.allowed(OTHER, *BACKEND) == {50001}
    assert len(nat) == 3
    with pytest.raises(errors.NotFoundError):
        nat.release(flows[0])


# ---------------------------------------------------------------------- a node's ports

RANGES: list[tuple[str, str, dict[str, Any], str, str]] = [
    # what the kernel gives to sockets, less what is reserved; settings; flows' ports, to reserve
    ("32768-60999", "", {}, "36864-65535", "36864-60999"),
    ("32768-60999", "40000-65535", {}, "36864-65535", "36864-39999"),
    ("1024-65535", "", {}, "32768-65535", "32768-65535"),
    ("1024-32767", "", {}, "32768-65535", ""),
    ("60000-60999", "", {}, "32768-59999", ""),
    ("30000-60999", "", {}, "36864-65535", "36864-60999"),
    ("32768-60999", "", {"node_ports": "20000-29999"}, "36864-65535", "36864-60999"),
    ("32768-60999", "", {"nat_ports": "61000-65535"}, "61000-65535", ""),
    (
        "32768-60999",
        "50000",
        {"nat_ports": "49998-50002"},
        "49998-50002",
        "49998-49999,50001-50002",
    ),
]


@pytest.mark.parametrize(("given", "reserved", "config", "ports", "to_reserve"), RANGES)
def test_ports_of_flows(
    given: str, reserved: str, config: dict[str, Any], ports: str, to_reserve: str
) -> None:
    """Beside those that sockets keep, and what the kernel must not give to these any more."""
    sockets = SocketPorts(PortProto.parse(given), parse_ports(reserved))
    found = sockets.nat_ports(LoadBalancerConfig(**config))
    assert f"{found.first}-{found.last}" == ports
    assert format_ports(sockets.to_reserve(found)) == to_reserve


def test_sockets_keep_some() -> None:
    """A range that leaves them hardly any is refused, and says what to change."""
    sockets = SocketPorts(PortProto(32768, 60999))
    with pytest.raises(errors.InvalidError, match=r"232 of the ports 32768-60999.*nat_ports"):
        sockets.to_reserve(PortProto(33000, 65535))


def test_node_ports_up_to_the_end() -> None:
    """Leave none for flows."""
    with pytest.raises(errors.InvalidError, match="write nat_ports"):
        SocketPorts(PortProto(1024, 2048)).nat_ports(
            LoadBalancerConfig(node_ports=PortProto(30000, 65535))
        )


@pytest.mark.parametrize("text", ["", "1", "1-3", "1-2,7,9-65535"])
def test_lists_of_ports(text: str) -> None:
    """Are read and written alike."""
    assert format_ports(parse_ports(f"{text}\n")) == text


@pytest.mark.parametrize("value", ["0", "TCP", "80/TCP", "9-1", "x"])
def test_bad_nat_ports(value: str) -> None:
    """A range of ports, and nothing else."""
    with pytest.raises(errors.InvalidError):
        LoadBalancerConfig(nat_ports=value)
