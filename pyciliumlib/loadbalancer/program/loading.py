"""The load balancer's object, loaded for one place: its hook, sizes, addresses and seeds."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import ExistsError, StateError
from pyciliumlib.kernel import (
    Link,
    Object,
    ObjectSpec,
    Program,
    attach_tc,
    attach_xdp,
    probe,
)
from pyciliumlib.kernel.clsact import Direction, TcFilter
from pyciliumlib.kernel.device import device_index
from pyciliumlib.kernel.link import live_link, program_label
from pyciliumlib.kernel.tc import attached_tc
from pyciliumlib.loadbalancer.backend import number
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.kinds import Acceleration, NoBackendResponse
from pyciliumlib.loadbalancer.slots import ROW
from pyciliumlib.resources import object_path
from pyciliumlib.types import Address, PortProto

_MAX = 1 << 24


@frozen
class Sizes:
    """How much the maps hold: each a number of entries, 1 to 16,777,216.

    `slots` are those of all services together: a Maglev service takes the table's size for each
    family, unless it shares its backends with another; at random it takes its backends' number.
    They cost 4 bytes each, `flows` about 120, and so do `sockets`, those that were translated;
    `translated` are those of the flows that may be translated, and cost 200 more.
    """

    services: int = field(default=1024, validator=number(1, _MAX, "services"))
    frontends: int = field(default=4096, validator=number(1, _MAX, "frontends"))
    backends: int = field(default=4096, validator=number(1, _MAX, "backends"))
    slots: int = field(default=1 << 20, validator=number(1, 1 << 28, "slots"))
    source_ranges: int = field(default=16384, validator=number(1, _MAX, "source ranges"))
    flows: int = field(default=65536, validator=number(1, _MAX, "flows"))
    translated: int = field(default=65536, validator=number(1, _MAX, "translated flows"))
    clients: int = field(default=16384, validator=number(1, _MAX, "clients"))
    sockets: int = field(default=65536, validator=number(1, _MAX, "sockets"))

    def entries(self) -> Mapping[str, int]:
        """The maps' sizes by their names."""
        services, backends = self.services + 1, self.backends + 1  # number 0 is nobody's
        return {
            # a frontend may have one for each scope, and its address one of its own
            "lb_services": 3 * self.frontends,
            "lb_frontends": self.frontends + 1,
            "lb_revisions": services,
            "lb_service_counters": services,
            "lb_backends": backends,
            "lb_backend_counters": backends,
            "lb_hops": backends,
            "lb_members": max(self.backends, 4 * self.services),
            "lb_slots": -(-self.slots // ROW),
            "lb_ranges": self.source_ranges,
            "lb_flows": self.flows,
            "lb_pending": max(64, self.flows // 4),
            "lb_nat": self.translated,
            "lb_nat_pending": max(64, self.translated // 4),
            "lb_affinity": self.clients,
            "lb_reverse_sk": self.sockets,
        }


@frozen
class Place:
    """The device's side of the balancer: by which addresses and ports it sends, and what fits."""

    ipv4: ipaddress.IPv4Address | None
    ipv6: ipaddress.IPv6Address | None
    mtu: int
    nat_ports: PortProto

    def source(self, version: int) -> Address | None:
        """The address by which backends of a family know the balancer."""
        return self.ipv4 if version == 4 else self.ipv6


class Hook(enum.Enum):
    """Where at its device the balancer runs."""

    NATIVE = "native"
    GENERIC = "generic"
    TC = "tc"

    def __str__(self) -> str:
        return self.value

    @property
    def program(self) -> str:
        """The name of the object and of its program: one path, compiled for XDP and for tc."""
        return "loadbalancer_tc" if self is Hook.TC else "loadbalancer"

    def attach(self, program: Program, device: str) -> Link | TcFilter:
        """Raises ExistsError where the device has such a one, else what attaching there does."""
        if self is not Hook.TC:
            return attach_xdp(program, device, self.value)
        return attach_once(program, device, "ingress")

    def adopt(self, program: Program, device: str, pin: Path) -> Link | TcFilter | None:
        """As the function `adopt`."""
        return adopt(program, device, pin, "ingress" if self is Hook.TC else None)


def adopt(
    program: Program, device: str, pin: Path, direction: Direction | None
) -> Link | TcFilter | None:
    """What an earlier process attached and kept, with this program; None if it is gone.

    `direction` is that of tc. Raises StateError if it is at another device.
    """
    link: Link | TcFilter | None = live_link(pin)
    if link is None and direction is not None and not probe("tcx").has("tcx"):
        link = TcFilter.find(device, direction)
    if link is not None:
        if link.info.ifindex != device_index(device):
            link.close()
            raise StateError(
                f"the link pinned at {pin} is not at {device}: that is another device now; "
                "remove the pin root, or rename the device"
            )
        link.update(program)
    return link


def attach_once(program: Program, device: str, direction: Direction) -> Link | TcFilter:
    """Attach at tc; raises ExistsError where the device has a program of this name already."""
    if probe("tcx").has("tcx"):
        for there in attached_tc(device, direction):
            label = program_label(there.prog_id)
            if program.name in label:
                raise ExistsError(f"{device} has {label} already; close that one first")
    return attach_tc(program, device, direction)


#: The hooks to try for each setting, the best first.
HOOKS: Final[Mapping[Acceleration, tuple[Hook, ...]]] = {
    Acceleration.NATIVE: (Hook.NATIVE,),
    Acceleration.BEST_EFFORT: (Hook.NATIVE, Hook.TC),
    Acceleration.GENERIC: (Hook.GENERIC,),
    Acceleration.DISABLED: (Hook.TC,),
}


def load(
    config: LoadBalancerConfig,
    place: Place,
    sizes: Sizes,
    hook: Hook = Hook.NATIVE,
    pins: Path | None = None,
) -> Object:
    """The loaded object; the caller closes it. Raises what `ObjectSpec.load` does.

    With `pins` its maps are those that are pinned there, or will be.
    """
    spec = sized(hook.program, sizes)
    seed = config.maglev().seed.flow
    ipv6 = place.ipv6.packed if place.ipv6 else bytes(16)
    spec.config.update(
        {
            "jiffies_per_second": kernel_clock().hz,
            "filter_cells": spec.maps["lb_filter"].max_entries,
            "flow_seed_ipv4": seed.seed_ipv4,
            "flow_seed_ipv6": seed.seed_ipv6,
            "source_ipv4": int(place.ipv4) if place.ipv4 else 0,
            "source_ipv6": np.frombuffer(ipv6, np.uint32).tolist(),
            "geneve_port": config.geneve_port,
            "mtu": place.mtu,
            "reject_unserved": config.no_backend_response is NoBackendResponse.REJECT,
            "nat_first": place.nat_ports.first,
            "nat_ports": place.nat_ports.last - place.nat_ports.first + 1,
        }
    )
    return spec.load(pins=pins)


def sized(name: str, sizes: Sizes) -> ObjectSpec:
    """An object whose maps have these sizes."""
    spec = ObjectSpec.open(object_path(name))
    for map_name, entries in sizes.entries().items():
        if map_name in spec.maps:
            spec.resize(map_name, entries)
    return spec
