"""How large a datapath's maps are and what its programs do."""

from __future__ import annotations

from typing import Any, Final, Literal

from attrs import Attribute, field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer import LoadBalancerConfig, LocalNode
from pyciliumlib.loadbalancer.program import Sizes
from pyciliumlib.net.link import check_ifname
from pyciliumlib.types import Address, parse_address


def _size(default: int, low: int, high: int) -> Any:
    """An attribute that holds a whole number from `low` to `high`."""

    def check(_: object, attribute: Attribute[int], value: object) -> None:
        if type(value) is not int or not low <= value <= high:
            raise InvalidError(f"{attribute.name} is {value!r}; it must be {low} to {high}")

    return field(default=default, validator=check)


def _one_of(default: bool | str | None, *choices: bool | str | None) -> Any:
    """An attribute that holds one of `choices`."""

    def check(_: object, attribute: Attribute[object], value: object) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            listed = ", ".join(map(repr, choices))
            raise InvalidError(f"{attribute.name} is {value!r}; it must be one of {listed}")

    return field(default=default, validator=check)


def _switch(default: bool) -> Any:
    return _one_of(default, True, False)


def _is_power_of_two(_: object, attribute: Attribute[int], value: object) -> None:
    if type(value) is not int or value < 4096 or value & (value - 1):
        raise InvalidError(
            f"{attribute.name} is {value!r}; it must be a power of two, 4096 or more"
        )


def _are_devices(_: object, attribute: Attribute[tuple[str, ...]], value: object) -> None:
    if not isinstance(value, tuple) or any(not isinstance(name, str) for name in value):
        raise InvalidError(
            f'{attribute.name} is {value!r}; write a tuple of names, such as ("eth0",)'
        )
    for name in value:
        check_ifname(name)


def _is_name(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidError(f'{attribute.name} is {value!r}; write a name, such as "default"')


def _address_of(version: int) -> Any:
    def check(_: object, attribute: Attribute[Address], value: Address) -> None:
        if value.version != version:
            raise InvalidError(f"{attribute.name} is {value}; it must be an IPv{version} address")

    return check


#: Room for the services of a small cluster; a Maglev service takes its table's size of slots.
_SERVICES: Final = Sizes(
    frontends=1024, backends=1024, slots=1 << 17, source_ranges=1024, clients=4096
)


@frozen
class DatapathConfig:
    """Sizes, timeouts and switches of a datapath; the defaults suit a lab of some hundred pods.

    Sizes are entries of the map of that name, timeouts are seconds. `policy` is how many identities
    an endpoint's policy may be about, and entries of each; `policy_nodes` are rows that all
    endpoints share for protocols and ports: a lone port takes up to six, of 64 bytes, and equal
    ones are one.
    `redirect_peer` None means: if the kernel has it; `tc` is how programs hang on devices, "auto"
    is tcx where the kernel has it.
    What the node gives its address, as by masquerade, is forgotten after `timeout_masqueraded`
    unless it is TCP: by an eighth more it is to be less than conntrack's own timeouts, which are
    30 s and more in Linux.
    With `extended_protocols` policy judges GRE, VRRP and the like; else they are dropped.
    `cluster_name`, `cluster_id` are what Cilium calls so. `services` says how services are
    balanced, `service_sizes` how many there may be, `local_node` who this node is to them (its
    addresses are the node's, unless given). A pod that meets itself by a service is spoken to by
    the loopback addresses. With `host_firewall` policies with a `nodeSelector` are enforced: at
    `devices`, which lead out of the node, and between the node and its pods; they select by the
    labels of `local_node`. With `node_port` clients outside reach services by `devices`, whose
    backends are pods of this node. Of a kernel map only what is used takes memory, except `flows`,
    `pending`, `fragments` and `policy_nodes`, which are preallocated.

    >>> DatapathConfig(flows=1024).pending
    4096
    """

    max_endpoints: int = _size(256, 2, 65535)
    flows: int = _size(16384, 64, 1 << 24)
    pending: int = _size(4096, 64, 1 << 24)
    fragments: int = _size(1024, 64, 1 << 20)
    ipcache: int = _size(65536, 64, 1 << 24)
    ipcache_cells: int = _size(1024, 3, 1 << 20)
    policy: int = _size(16384, 16, 1 << 24)
    policy_nodes: int = _size(16384, 64, 1 << 24)
    event_bytes: int = field(default=1 << 18, validator=_is_power_of_two)
    timeout_tcp: int = _size(8000, 1, 1 << 21)
    timeout_tcp_syn: int = _size(60, 1, 1 << 21)
    timeout_tcp_fin: int = _size(10, 1, 1 << 21)
    timeout_any: int = _size(60, 1, 1 << 21)
    timeout_masqueraded: int = _size(25, 1, 1 << 21)
    ipv4: bool = _switch(True)
    ipv6: bool = _switch(True)
    redirect_peer: bool | None = _one_of(None, None, True, False)
    tc: Literal["auto", "tcx", "clsact"] = _one_of("auto", "auto", "tcx", "clsact")
    trace_every_packet: bool = _switch(False)
    extended_protocols: bool = _switch(False)
    cluster_name: str = field(default="default", validator=_is_name)
    cluster_id: int = _size(0, 0, 511)
    services: LoadBalancerConfig = field(factory=LoadBalancerConfig)
    service_sizes: Sizes = _SERVICES
    local_node: LocalNode = field(factory=LocalNode)
    service_loopback_ipv4: Address = field(
        default=parse_address("169.254.42.1"), converter=parse_address, validator=_address_of(4)
    )
    service_loopback_ipv6: Address = field(
        default=parse_address("fe80::1"), converter=parse_address, validator=_address_of(6)
    )

    host_firewall: bool = _switch(False)
    node_port: bool = _switch(False)
    devices: tuple[str, ...] = field(default=(), validator=_are_devices)

    def __attrs_post_init__(self) -> None:
        for name in ("host_firewall", "node_port"):
            if getattr(self, name) and not self.devices:
                raise InvalidError(
                    f"{name} is on, and devices is empty: name the devices that lead out of the "
                    'node, such as devices=("eth0",)'
                )
        if not (self.ipv4 or self.ipv6):
            raise InvalidError("ipv4 and ipv6 are both off; a datapath needs one of them")

    @property
    def dual_stack(self) -> bool:
        """Whether the world has two identities, one for each family."""
        return self.ipv4 and self.ipv6
