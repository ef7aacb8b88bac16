"""Addresses, prefixes, ports, protocols and quantities."""

from __future__ import annotations

import ipaddress

import pytest

from pyciliumlib.errors import UnitError
from pyciliumlib.types import (
    PortProto,
    Protocol,
    address_from_bytes,
    address_to_bytes,
    covers_ipv4,
    network_from_key,
    network_to_key,
    parse_address,
    parse_network,
)
from pyciliumlib.units import parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        (b"\x0a\0\0\x01", "10.0.0.1"),
        (bytes(10) + b"\xff\xff\x0a\0\0\x01", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        (ipaddress.ip_address("::1"), "::1"),
    ],
)
def test_addresses(value: str | bytes, expected: str) -> None:
    """Texts, bytes of both lengths, and objects."""
    assert expected == str(parse_address(value))


@pytest.mark.parametrize(
    "value", ["", "10.0.0", "10.0.0.1/32", "::ffff:10.0.0.1", "fe80::1%eth0", b"123", 5, None]
)
def test_addresses_that_are_refused(value: object) -> None:
    """No address; one that would alias IPv4; one with a zone."""
    with pytest.raises(UnitError):
        parse_address(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "length", "data"),
    [
        ("10.0.0.0/8", 104, "00000000000000000000ffff0a000000"),
        ("0.0.0.0/0", 96, "00000000000000000000ffff00000000"),
        ("10.1.2.3", 128, "00000000000000000000ffff0a010203"),
        ("fd00::/64", 64, "fd000000000000000000000000000000"),
        ("::/0", 0, "00000000000000000000000000000000"),
    ],
)
def test_prefix_keys(text: str, length: int, data: str) -> None:
    """The form that a longest-prefix map has, and back."""
    network = parse_network(text)
    assert (length, bytes.fromhex(data)) == network_to_key(network)
    assert network == network_from_key(length, bytes.fromhex(data))


@pytest.mark.parametrize("value", ["", "10.0.0.0/33", "::ffff:0:0/96", "::ffff:10.0.0.0/104", 8])
def test_prefixes_that_are_refused(value: object) -> None:
    """No prefix, or IPv4 in disguise."""
    with pytest.raises(UnitError):
        parse_network(value)  # type: ignore[arg-type]


def test_keys_that_are_refused() -> None:
    """Too many bits, too few bytes."""
    with pytest.raises(UnitError):
        network_from_key(129, bytes(16))
    with pytest.raises(UnitError):
        address_from_bytes(bytes(4))
    assert address_to_bytes(parse_address("::1")) == bytes(15) + b"\x01"


def test_short_ipv6_prefixes_cover_ipv4() -> None:
    """In the 16-byte form, `::/0` holds all of IPv4 and `fd00::/8` none."""
    assert covers_ipv4(parse_network("::/0"))
    assert covers_ipv4(parse_network("::/80"))
    assert not covers_ipv4(parse_network("fd00::/8"))
    assert not covers_ipv4(parse_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080/TCP", (8080, 8080, Protocol.TCP)),
        ("8080/tcp", (8080, 8080, Protocol.TCP)),
        ("30000-32767/UDP", (30000, 32767, Protocol.UDP)),
        ("53", (53, 53, Protocol.ANY)),
        (53, (53, 53, Protocol.ANY)),
        ("0/TCP", (0, 65535, Protocol.TCP)),
        ("TCP", (0, 65535, Protocol.TCP)),
        ("icmpv6", (0, 65535, Protocol.ICMPv6)),
        ("ANY", (0, 65535, Protocol.ANY)),
    ],
)
def test_ports(text: str | int, expected: tuple[int, int, Protocol]) -> None:
    """A port, a range, a protocol alone; what is read is written the same way."""
    ports = PortProto.parse(text)
    assert expected == (ports.first, ports.last, ports.protocol)
    assert ports == PortProto.parse(str(ports))


@pytest.mark.parametrize(
    "text",
    ["", "/TCP", "http", "80/TPC", "65536", "90-80/TCP", "80-/TCP", "-80", "80/ICMP", "8 0", "٨٠"],
)
def test_ports_that_are_refused(text: str) -> None:
    """Each is told with an example of what to write."""
    with pytest.raises(UnitError):
        PortProto.parse(text)


def test_protocols() -> None:
    """By name or number, and only known ones."""
    assert Protocol.parse("sctp") == Protocol.parse(132) == 132
    assert str(Protocol.ICMPv6) == "ICMPv6"
    with pytest.raises(UnitError, match='did you mean "TCP"'):
        Protocol.parse("TCPP")
    for wrong in (200, None):
        with pytest.raises(UnitError):
            Protocol.parse(wrong)  # type: ignore[arg-type]


def test_ports_contain() -> None:
    """A packet's port and protocol; ANY accepts each."""
    ports = PortProto.parse("80-90/TCP")
    assert ports.contains(80, Protocol.TCP)
    assert ports.contains(90, Protocol.TCP)
    assert not ports.contains(91, Protocol.TCP)
    assert not ports.contains(80, Protocol.UDP)
    assert PortProto.parse("80").contains(80, Protocol.UDP)


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_rate, "10Mbit", 10_000_000),
        (parse_rate, "10M", 10_000_000),
        (parse_rate, "1.5Gbit/s", 1_500_000_000),
        (parse_rate, "64Kibit", 65_536),
        (parse_rate, 1000, 1000),
        (parse_size, "64k", 64_000),
        (parse_size, "64KiB", 65_536),
        (parse_size, "1500", 1500),
        (parse_duration, "5s", 5 * 10**9),
        (parse_duration, "1h2m3.5s", 3_723_500_000_000),
        (parse_duration, "250ms", 250_000_000),
        (parse_duration, "10us", 10_000),
    ],
)
def test_quantities(parse: object, text: str, expected: int) -> None:
    """Bits per second, bytes, nanoseconds."""
    assert expected == parse(text)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_rate, "10bps"),
        (parse_rate, "10mbit"),
        (parse_rate, "-1M"),
        (parse_rate, ""),
        (parse_rate, "0.5bit"),
        (parse_rate, "9" * 5000),
        (parse_rate, "18446744073710M"),
        (parse_size, "64kk"),
        (parse_size, "1e3"),
        (parse_duration, "5"),
        (parse_duration, ""),
        (parse_duration, "5s 3ms"),
        (parse_duration, "0.5ns"),
        (parse_duration, "5 parsecs"),
        (parse_duration, 5),
        *((parse, "1" + "0" * 5000) for parse in (parse_rate, parse_size, parse_duration)),
        *((parse, "9" * 1_000_001 + "s") for parse in (parse_rate, parse_size, parse_duration)),
        *((parse, 10**5000) for parse in (parse_rate, parse_size, parse_duration)),
        (parse_rate, "9" * 1_000_001 + "M"),  # more than Decimal takes
        (parse_size, "9" * 1_000_001 + "Ki"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_quantities_that_are_refused(parse: object, text: object) -> None:
    """Ambiguous units, no units, parts of the smallest unit."""
    with pytest.raises(UnitError):
        parse(text)  # type: ignore[operator]
