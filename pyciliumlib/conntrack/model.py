"""The flow table's key, entries and clock, as values."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.types.addresses import (
    Address,
    AddressLike,
    address_from_bytes,
    address_to_bytes,
    parse_address,
)
from pyciliumlib.types.ports import PORT_MAX

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: What kernels are built with (kernel/Kconfig.hz, and 1200 on some alphas).
_HZ: Final = (100, 250, 300, 1000)
#: jiffies start this many seconds before they wrap in 32 bits (include/linux/jiffies.h).
_INITIAL_SECONDS: Final = 300
#: How far jiffies may be from the monotonic clock.
_LATE_SECONDS: Final = 10
_CLOSING: Final = 3
#: `struct flow` counts by one number: packets shifted left by this, plus bytes.
_BYTES_BITS: Final = 38
#: Of a translated flow's two entries: which one it is (`enum flow_state`).
BY_SERVICE: Final = 8
BY_BACKEND: Final = 16
HAIRPIN: Final = 32


@frozen
class FlowKey:
    """Both ends of a flow in the table's order, whoever sends (`struct flow_key`)."""

    low: Address
    high: Address
    low_port: int
    high_port: int
    protocol: int

    @classmethod
    def of(
        cls, src: AddressLike, dst: AddressLike, sport: int, dport: int, protocol: int
    ) -> FlowKey:
        """The key of a packet from `src` to `dst`.

        For an ICMP echo the identifier is the requester's port and the other one is 0. Raises
        UnitError for what is no address, InvalidError for what is no port or protocol.
        """
        for what, number, most in (
            ("port", sport, PORT_MAX),
            ("port", dport, PORT_MAX),
            ("protocol", protocol, 255),
        ):
            if not 0 <= number <= most:
                raise InvalidError(f"{what} {number} is not between 0 and {most}")
        source, target = parse_address(src), parse_address(dst)
        low = sport <= dport if source == target else _order(source) < _order(target)
        if low:
            return cls(source, target, sport, dport, protocol)
        return cls(target, source, dport, sport, protocol)

    def packed(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """One row of the map's key dtype."""
        import numpy as np

        row = np.zeros(1, dtype)
        row["low"] = np.frombuffer(address_to_bytes(self.low), "u1")
        row["high"] = np.frombuffer(address_to_bytes(self.high), "u1")
        row["low_port"], row["high_port"] = self.low_port, self.high_port
        row["proto"] = self.protocol
        return row


def _order(address: Address) -> tuple[int, int]:
    """What `addr_less` compares: the second half as the CPU loads it, then the first."""
    data = address_to_bytes(address)
    return int.from_bytes(data[8:], sys.byteorder), int.from_bytes(data[:8], sys.byteorder)


@frozen
class FlowEntry:
    """One flow, seen from the end that opened it.

    `packets` and `bytes` are pairs: sent by the opener, sent by the other. `expires_in` is in
    seconds and negative for an entry that only waits to be collected. `service` is the address and
    port that the opener speaks to, where `dst` is the backend that serves it.
    """

    src: Address
    dst: Address
    sport: int
    dport: int
    protocol: int
    src_identity: int
    dst_identity: int
    packets: tuple[int, int]
    bytes: tuple[int, int]
    expires_in: float
    closing: bool
    replied: bool
    rule: int
    service: tuple[Address, int] | None = None

    @property
    def key(self) -> FlowKey:
        """The key of what policy was asked about, the opener and the backend."""
        return FlowKey.of(self.src, self.dst, self.sport, self.dport, self.protocol)

    @property
    def service_key(self) -> FlowKey | None:
        """The key of the opener and the service."""
        if self.service is None:
            return None
        return FlowKey.of(self.src, self.service[0], self.sport, self.service[1], self.protocol)

    @classmethod
    def decode(
        cls, key: np.void, value: np.void, clock: Clock, now_jiffies: int, replied: bool
    ) -> FlowEntry:
        """An entry from one row of the map's keys and values; `now_jiffies` are all 64 bits."""
        ends = [
            (address_from_bytes(key["low"].tobytes()), int(key["low_port"])),
            (address_from_bytes(key["high"].tobytes()), int(key["high_port"])),
        ]
        opener, other = (1, 0) if value["opener"] else (0, 1)
        sent = sent_by(value, opener), sent_by(value, other)
        # a pod that meets itself by a service is spoken to by another address
        itself = int(value["state"]) & HAIRPIN
        return cls(
            src=ends[other if itself else opener][0],
            dst=ends[other][0],
            sport=ends[opener][1],
            dport=ends[other][1],
            protocol=int(key["proto"]),
            src_identity=int(value["identity"][opener]),
            dst_identity=int(value["identity"][other]),
            packets=(sent[0][0], sent[1][0]),
            bytes=(sent[0][1], sent[1][1]),
            expires_in=jiffies_left(int(value["expires"]), int(value["expires_high"]), now_jiffies)
            / clock.hz,
            closing=int(value["state"]) & _CLOSING == _CLOSING,
            replied=replied,
            rule=int(value["rule"]),
        )


def sent_by(value: np.void, end: int) -> tuple[int, int]:
    """Packets and bytes that one end has sent: up to the last review, and since."""
    packets, size = int(value["packets"][end]), int(value["bytes"][end])
    since = (int(value["sent"][end]) - (packets << _BYTES_BITS) - size) % (1 << 64)
    if since >> 63:  # the value was read while it was written
        return packets, size
    return packets + (since >> _BYTES_BITS), size + since % (1 << _BYTES_BITS)


#: A whole number, or a column of them with 64 bits.
_Whole = TypeVar("_Whole", int, "npt.NDArray[np.int64]")


def jiffies_left(expires: _Whole, expires_high: _Whole, now: int) -> _Whole:
    """How long an entry of `struct flow` lives yet; 0 or less if it has expired.

    It has 40 bits of jiffies, `now` are all of them: those wrap after 34 years at 1000 Hz.
    """
    return (expires_high * (1 << 32) + expires - now + (1 << 39)) % (1 << 40) - (1 << 39)


def signed32(difference: int) -> int:
    """A difference of two 32-bit clocks, as the signed number that the programs compare."""
    return (difference + 0x80000000) % 0x100000000 - 0x80000000


@frozen
class Clock:
    """The kernel's jiffies against its monotonic clock: `hz` ticks a second from `offset` on."""

    hz: int
    offset: int

    @classmethod
    def fitting(cls, jiffies: int, monotonic_ns: int) -> list[Clock]:
        """The clocks that a kernel may have which showed both at one moment.

        jiffies count from five minutes before their 32-bit wrap, so one sample tells HZ apart,
        but for a minute or so about the wrap, which is at the same moment for every HZ. They may
        be late: a machine that is emulated, or that stood still, has lost ticks.
        """
        clocks = []
        for hz in _HZ:
            started = (1 << 32) - _INITIAL_SECONDS * hz
            elapsed = monotonic_ns * hz // 1_000_000_000
            if abs(jiffies - started - elapsed) <= max(_LATE_SECONDS * hz, elapsed // 100):
                clocks.append(cls(hz, jiffies - elapsed))
        return clocks

    @classmethod
    def calibrate(cls, first: tuple[int, int], second: tuple[int, int]) -> Clock:
        """The clock that fits two samples of (jiffies, monotonic ns), a quarter of a second apart.

        Raises InvalidError where no known HZ fits.
        """
        rate = (second[0] - first[0]) / max(1, second[1] - first[1]) * 1_000_000_000
        clocks = cls.fitting(*second)
        if not clocks:
            raise InvalidError(f"jiffies {second[0]} at {second[1]} ns fit no known HZ {_HZ}")
        return min(clocks, key=lambda clock: abs(clock.hz - rate))

    def jiffies(self, monotonic_ns: int) -> int:
        """The low 32 bits of jiffies at a monotonic time."""
        return self.jiffies64(monotonic_ns) & 0xFFFFFFFF

    def jiffies64(self, monotonic_ns: int) -> int:
        """All bits of jiffies at a monotonic time."""
        return self.offset + monotonic_ns * self.hz // 1_000_000_000
