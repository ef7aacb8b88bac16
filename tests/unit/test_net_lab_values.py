"""Names, addresses and ports of a lab; no root needed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyciliumlib import errors
from pyciliumlib.lab.addressing import (
    PodAddresses,
    address_pair,
    lan_addresses,
    node_cidrs,
    pod_cidrs,
)
from pyciliumlib.lab.client import single_port
from pyciliumlib.lab.names import check_host_name, device_name
from pyciliumlib.net import check_ifname

HOST_NAMES = st.text("ab0", min_size=1, max_size=63)


@pytest.mark.parametrize("name", ["", "Web", "-web", "web-", "a_b", "a/b", "a" * 64, "web\n"])
def test_host_name_refused(name: str) -> None:
    """Only RFC 1123 names: they become parts of paths and of names of devices."""
    with pytest.raises(errors.InvalidError, match="no name for a host"):
        check_host_name(name)


@given(st.sets(HOST_NAMES, max_size=50))
def test_device_names_are_valid_and_differ(names: set[str]) -> None:
    """Hosts with different names get different devices, each with a name that the kernel takes."""
    assert len({check_ifname(device_name("lxc-", name)) for name in names}) == len(names)


def test_node_prefixes_do_not_overlap() -> None:
    """Every node that a lab has room for has pods' prefixes of its own, and a LAN address."""
    cidrs = [node_cidrs(index) for index in range(1, 100)]
    assert len({v4 for v4, _ in cidrs}) == len({v6 for _, v6 in cidrs}) == 99
    assert len({lan_addresses(index) for index in range(1, 255)}) == 254


@pytest.mark.parametrize("index", [0, 100])
def test_no_room_for_node(index: int) -> None:
    """The hundredth node would get addresses of the hosts outside."""
    with pytest.raises(errors.ExhaustedError):
        node_cidrs(index)


@pytest.fixture
def pool() -> PodAddresses:
    """A node with room for five pods."""
    return PodAddresses(ipaddress.IPv4Network("10.0.0.0/29"), ipaddress.IPv6Network("fd00::/64"))


def test_addresses_are_handed_out_once(pool: PodAddresses) -> None:
    """Five pods fit into a /29 beside network, router and broadcast; the sixth is refused."""
    taken = {pool.take(None, None) for _ in range(5)}
    assert len(taken) == 5
    assert (pool.router4, pool.router6) not in taken
    with pytest.raises(errors.ExhaustedError, match="wider CIDR"):
        pool.take(None, None)


def test_address_can_be_asked_for_and_reused(pool: PodAddresses) -> None:
    """A released address can be taken again, a taken one cannot."""
    pair = pool.take("10.0.0.4", "fd00::44")
    assert pair == (ipaddress.IPv4Address("10.0.0.4"), ipaddress.IPv6Address("fd00::44"))
    with pytest.raises(errors.ExistsError):
        pool.take("10.0.0.4", None)
    pool.release(pair)
    assert pool.take("10.0.0.4", "fd00::44") == pair


@pytest.mark.parametrize(
    ("ip4", "ip6", "expected"),
    [
        ("10.0.0.1", None, errors.ExistsError),
        (None, "fd00::1", errors.ExistsError),
        ("10.9.9.9", None, errors.InvalidError),
        (None, "fd01::2", errors.InvalidError),
        ("fd00::2", None, errors.InvalidError),
        (None, "10.0.0.2", errors.InvalidError),
        ("ten", None, errors.InvalidError),
    ],
)
def test_bad_address_takes_nothing(
    pool: PodAddresses, ip4: str | None, ip6: str | None, expected: type[Exception]
) -> None:
    """A refused pair leaves both of its addresses free."""
    with pytest.raises(expected):
        pool.take(ip4, ip6)
    first = (ipaddress.IPv4Address("10.0.0.2"), ipaddress.IPv6Address("fd00::2"))
    assert pool.take(None, None) == first


@pytest.mark.parametrize("port", ["80", "80-90/TCP", "TCP", "ICMP", "80/XYZ", ""])
def test_port_refused(port: str) -> None:
    """A server or a client needs one port of one protocol."""
    with pytest.raises(errors.InvalidError):
        single_port(port)


@pytest.mark.parametrize(
    ("cidr4", "cidr6"),
    [("ten", None), (None, "10.0.0.0/8"), ("fd00::/64", None), (None, "fd00::/200")],
)
def test_prefixes_of_a_node_that_are_refused(cidr4: str | None, cidr6: str | None) -> None:
    """By an error of the library, for each of the two."""
    assert pod_cidrs(1, None, "fd01::/64")[1] == ipaddress.IPv6Network("fd01::/64")
    with pytest.raises(errors.InvalidError):
        pod_cidrs(1, cidr4, cidr6)


@pytest.mark.parametrize(("ip4", "ip6"), [("fd00::1", "fd00::1"), ("10.0.0.1", "10.0.0.1")])
def test_a_pair_of_addresses_has_both_families(ip4: str, ip6: str) -> None:
    """An outside host with two of one family could not be reached by the other."""
    with pytest.raises(errors.InvalidError, match="family"):
        address_pair(ip4, ip6)
