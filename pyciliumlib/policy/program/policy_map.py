"""One policy on one device, alone: no endpoints, no other part of the datapath."""

from __future__ import annotations

import contextlib
from typing import Any, Final, Literal, TypeAlias

from pyciliumlib.closeable import Closeable
from pyciliumlib.conntrack import Conntrack
from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import ClosedError, InvalidError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.flow.program import FlowStream
from pyciliumlib.identity import IPCache, IPCacheTable
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.kernel.tc import attach_tc
from pyciliumlib.net import NetNS
from pyciliumlib.policy import table
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    DENY_BYTE,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
    priority_of,
)
from pyciliumlib.policy.explain import Target, parse_target
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.model import NORMAL
from pyciliumlib.policy.nodes import visible
from pyciliumlib.policy.program.tries import PolicyTries
from pyciliumlib.policy.table import Hit, Plan, PolicyLookup
from pyciliumlib.resources import object_path
from pyciliumlib.types import Direction, PortProto, Protocol

DirectionName: TypeAlias = Literal["ingress", "egress"]
Facing: TypeAlias = Literal["subject", "world"]
_SUBJECT: Final = 1
_TRIES: Final = 2
#: Rows of tries beyond the number of entries: a lone port takes six.
_NODES: Final = 1024


class PolicyMap(Closeable):
    """A policy in the kernel, filled by hand or from a resolved one, and put on one device.

    Who the other ends are, `ipcache` says; an address that it does not know is the world. Replies
    of what was allowed pass, and stop when the entry goes. What no entry allows is dropped, so an
    empty policy drops everything but what the link itself needs: ARP, neighbour discovery, the
    search for routers, and multicast listeners.

        with PolicyMap() as policy:
            policy.allow("ingress", port="443/TCP")
            policy.allow("egress")
            policy.attach("eth0")

    Needs CAP_BPF and CAP_NET_ADMIN, or root. Least kernel: 5.10.
    """

    def __init__(
        self,
        *,
        entries: int = 16384,
        flows: int = 16384,
        identity: int = 0,
        extended_protocols: bool = False,
    ) -> None:
        """`entries` and `flows` are sizes of maps; flows show `identity` as the subject's.

        Without `extended_protocols` GRE and the like are dropped as unknown, whatever is allowed.
        """
        for name, size in (("entries", entries), ("flows", flows)):
            if type(size) is not int or not 1 <= size <= 1 << 24:
                raise InvalidError(f"{name} is {size!r}; it must be 1 to {1 << 24}")
        _check_identity(identity)
        self._resources = contextlib.ExitStack()
        self._closed = False
        self._rows: dict[tuple[Direction, int, Slot], EntryValue] = {}
        clock = kernel_clock()
        spec = ObjectSpec.open(object_path("policy"))
        for name, size in (
            ("policies", 2 * _TRIES),
            ("policy_rev", _TRIES),
            ("policy_nodes", entries + _NODES),
            ("policy_entries", entries + 1),
            ("flows", flows),
            ("pending", max(64, flows // 4)),
        ):
            spec.resize(name, size)
        spec.config.update(
            {
                "max_endpoints": _TRIES,
                "jiffies_per_second": clock.hz,
                "subject_identity": identity,
                "extended_protocols": extended_protocols,
            }
        )
        self._programs = spec.load()
        self._resources.callback(self._programs.close)
        try:
            maps = self._programs.maps
            self._tries = PolicyTries(maps, _TRIES, entries)
            self._resources.callback(self._tries.close)
            self._tries.allocate()
            self.ipcache = IPCache()
            IPCacheTable(maps["ipcache"], maps["ipcache_rev"]).follow(self.ipcache)
            self.conntrack = Conntrack(maps["flows"], maps["pending"], clock)
            self.flows = FlowStream(self._programs, spec.type("event").dtype, lambda *_: None)
            self._resources.callback(self.flows.close)
        except BaseException:
            self._resources.close()
            raise

    # ------------------------------------------------------------------ contents

    def allow(
        self, direction: DirectionName, identity: int = 0, port: str | PortProto = "ANY"
    ) -> None:
        """Let through what `identity` (0: anybody) sends or gets on "443/TCP", say, or "ANY"."""
        self._put(direction, identity, port, ALLOW_BYTE)

    def deny(
        self, direction: DirectionName, identity: int = 0, port: str | PortProto = "ANY"
    ) -> None:
        """Drop it, whatever of the same identity or of anybody is allowed beside."""
        self._put(direction, identity, port, DENY_BYTE)

    def remove(
        self, direction: DirectionName, identity: int = 0, port: str | PortProto = "ANY"
    ) -> bool:
        """Take an entry back; whether there was one."""
        rows = dict(self._rows)
        found = [rows.pop((d, i, s), None) for d, i, s in _keys(direction, identity, port)]
        self._set(rows)
        return any(entry is not None for entry in found)

    def replace(self, entries: PolicyEntries) -> Plan:
        """Hold exactly `entries`, such as those of a resolved `EndpointPolicy`; what changed.

        Every packet meets the old policy or the new one. `allow` and `deny` add to it afterwards.
        """
        grouped = GroupedEntries.of(entries)
        steps = table.plan(visible(grouped), self.entries)
        rows = {(slot.direction, identity, slot): value for identity, slot, value in entries.rows()}
        self._tries.replace({_SUBJECT: grouped})
        self._rows = rows
        return steps

    @property
    def entries(self) -> PolicyEntries:
        """What packets can meet of the map in the kernel now.

        An entry for a range of ports is not among them where narrower ones fill the range.
        """
        self._check_open()
        return self._tries.read(_SUBJECT)

    def lookup(self, direction: DirectionName, identity: int, port: Target) -> Hit:
        """What the map says about a packet, worked out as the program does it.

        `port` is one port of one protocol, "443/TCP", or an ICMP type, "8/ICMP".
        """
        return PolicyLookup.of(self.entries).lookup(
            _direction(direction), identity, *parse_target(port)
        )

    def __len__(self) -> int:
        return len(self.entries)

    # ------------------------------------------------------------------ the device

    def attach(self, device: str | int, *, facing: Facing = "world") -> None:
        """Enforce the policy on a device of the calling thread's network namespace.

        `facing` says what is beyond the device: the "world", as with a host's `eth0`, so that what
        it receives is ingress; or the "subject", as with the host side of a pod's veth, so that
        what it receives is the subject's egress. Raises DeviceError, PrivilegeError.
        """
        if facing not in ("subject", "world"):
            raise InvalidError(f'facing {facing!r}: write "subject" or "world"')
        receives = "policy_from_subject" if facing == "subject" else "policy_to_subject"
        sends = "policy_to_subject" if facing == "subject" else "policy_from_subject"
        with contextlib.ExitStack() as undo:
            # a clsact filter is known by its device's number, which means nothing elsewhere
            netns = undo.enter_context(NetNS.current())
            inward = attach_tc(self._programs.programs[receives], device, "ingress")
            undo.callback(netns.call, inward.close)
            outward = attach_tc(self._programs.programs[sends], device, "egress")
            undo.callback(netns.call, outward.close)
            self._resources.push(undo.pop_all())

    def metrics(self) -> Metrics:
        """Packets and bytes by direction and reason."""
        maps = self._programs.maps
        return Metrics.read(maps["metrics"], maps["events_lost"])

    # ------------------------------------------------------------------ inside

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this policy map is closed; make another one")

    def _put(
        self, direction: DirectionName, identity: int, port: str | PortProto, action: int
    ) -> None:
        value = EntryValue(precedence(action, priority_of(NORMAL)), rule=0)
        self._set({**self._rows, **dict.fromkeys(_keys(direction, identity, port), value)})

    def _set(self, rows: dict[tuple[Direction, int, Slot], EntryValue]) -> None:
        self._check_open()
        by_identity: dict[int, list[tuple[Slot, EntryValue]]] = {}
        for (way, identity, slot), value in rows.items():
            # a lookup returns the narrowest entry, so one that a wider one overrules must not be
            wider = (rows.get((way, identity, wide)) for wide in slot.wider())
            if all(entry is None or entry.precedence <= value.precedence for entry in wider):
                by_identity.setdefault(identity, []).append((slot, value))
        entries = PolicyEntries.concatenate(
            [PolicyEntries.of(listed, identity) for identity, listed in by_identity.items()]
        )
        self._tries.replace({_SUBJECT: GroupedEntries.of(entries)})
        self._rows = rows

    def close(self) -> None:
        """Take the policy off its devices and free its maps; a second call does nothing."""
        self._closed = True
        self._resources.close()


def _direction(name: str) -> Direction:
    try:
        return Direction[name.upper()]
    except (KeyError, AttributeError):
        raise InvalidError(f'direction {name!r}: write "ingress" or "egress"') from None


def _check_identity(identity: int) -> None:
    if type(identity) is not int or not 0 <= identity < 1 << 32:
        raise InvalidError(f"identity {identity!r}: write 0 (anybody) or the number of one")


def _keys(
    direction: str, identity: int, port: str | PortProto
) -> list[tuple[Direction, int, Slot]]:
    wanted = port if isinstance(port, PortProto) else PortProto.parse(port)
    way = _direction(direction)
    _check_identity(identity)
    protocols: list[Any] = [wanted.protocol]
    if wanted.protocol is Protocol.ANY and wanted.first:
        protocols = [Protocol.TCP, Protocol.UDP, Protocol.SCTP]
    return [
        (way, identity, Slot(way, protocol, number, bits))
        for protocol in protocols
        for number, bits in wanted.blocks()
    ]
