"""The load balancer's object, loaded for one place: its hook, sizes, addresses and seeds."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from typing import Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import ExistsError
from pyciliumlib.kernel import Link, Object, ObjectSpec, Program, attach_tc, attach_xdp
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.kernel.link import program_label
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.tc import attached_tc
from pyciliumlib.loadbalancer.backend import number
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.kinds import Acceleration
from pyciliumlib.loadbalancer.slots import ROW
from pyciliumlib.resources import object_path
from pyciliumlib.types import Address, PortProto

_MAX = 1 << 24


@frozen
class Sizes:
    """How much the maps hold: each a number of entries, 1 to 16,777,216.

    `slots` are those of all services together: a Maglev service takes the table's size for each
    family, unless it shares its backends with another; at random it takes its backends' number.
    They cost 4 bytes each, `flows` about 120; `translated` are those of them that may be
    translated, and cost 200 more.
    """

    services: int = field(default=1024, validator=number(1, _MAX, "services"))
    frontends: int = field(default=4096, validator=number(1, _MAX, "frontends"))
    backends: int = field(default=4096, validator=number(1, _MAX, "backends"))
    slots: int = field(default=1 << 20, validator=number(1, 1 << 28, "slots"))
    source_ranges: int = field(default=16384, validator=number(1, _MAX, "source ranges"))
    flows: int = field(default=65536, validator=number(1, _MAX, "flows"))
    translated: int = field(default=65536, validator=number(1, _MAX, "translated flows"))
    clients: int = field(default=16384, validator=number(1, _MAX, "clients"))

    def entries(self) -> Mapping[str, int]:
        """The maps' sizes by their names."""
        services, backends = self.services + 1, self.backends + 1  # number 0 is nobody's
        return {
            # a frontend may have one for each scope, and its address one of its own
            "lb_services": 3 * self.frontends,
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
        """Raises ExistsError where the device has a balancer, else what attaching there does."""
        if self is not Hook.TC:
            return attach_xdp(program, device, self.value)
        if probe("tcx"):
            for there in attached_tc(device, "ingress"):
                label = program_label(there.prog_id)
                if self.program in label:
                    raise ExistsError(f"{device} has a balancer, {label}; close that one first")
        return attach_tc(program, device, "ingress")


#: The hooks to try for each setting, the best first.
HOOKS: Final[Mapping[Acceleration, tuple[Hook, ...]]] = {
    Acceleration.NATIVE: (Hook.NATIVE,),
    Acceleration.BEST_EFFORT: (Hook.NATIVE, Hook.TC),
    Acceleration.GENERIC: (Hook.GENERIC,),
    Acceleration.DISABLED: (Hook.TC,),
}


def load(
    config: LoadBalancerConfig, place: Place, sizes: Sizes, hook: Hook = Hook.NATIVE
) -> Object:
    """The loaded object; the caller closes it. Raises what `ObjectSpec.load` does."""
    spec = ObjectSpec.open(object_path(hook.program))
    for name, entries in sizes.entries().items():
        spec.resize(name, entries)
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
            "mtu": place.mtu,
            "nat_first": place.nat_ports.first,
            "nat_ports": place.nat_ports.last - place.nat_ports.first + 1,
        }
    )
    return spec.load()
