"""How large a datapath's maps are and what its programs do."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen, validators

from pyciliumlib.errors import InvalidError


def _size(default: int, low: int, high: int) -> Any:
    """An attribute that holds a whole number from `low` to `high`."""

    def check(_: object, attribute: Attribute[int], value: int) -> None:
        if not isinstance(value, int) or not low <= value <= high:
            raise InvalidError(f"{attribute.name} is {value!r}; it must be {low} to {high}")

    return field(default=default, validator=check)


def _is_power_of_two(_: object, attribute: Attribute[int], value: int) -> None:
    if value < 4096 or value & (value - 1):
        raise InvalidError(
            f"{attribute.name} is {value!r}; it must be a power of two, 4096 or more"
        )


@frozen
class DatapathConfig:
    """Sizes, timeouts and switches of a datapath; the defaults suit a lab of some hundred pods.

    Sizes are entries of the map of that name, timeouts are seconds. `redirect_peer` None means: if
    the kernel has it. `cluster_name`, `cluster_id` are what Cilium calls so. Of a kernel map only
    what is used takes memory, except `flows`, `pending` and `fragments`, which are preallocated.
    """

    max_endpoints: int = _size(256, 2, 65535)
    flows: int = _size(16384, 64, 1 << 24)
    pending: int = _size(4096, 64, 1 << 24)
    fragments: int = _size(1024, 64, 1 << 20)
    ipcache: int = _size(65536, 64, 1 << 24)
    ipcache_cells: int = _size(1024, 2, 1 << 20)
    policy: int = _size(16384, 16, 1 << 24)
    event_bytes: int = field(default=1 << 18, validator=_is_power_of_two)
    timeout_tcp: int = _size(8000, 1, 1 << 21)
    timeout_tcp_syn: int = _size(60, 1, 1 << 21)
    timeout_tcp_fin: int = _size(10, 1, 1 << 21)
    timeout_any: int = _size(60, 1, 1 << 21)
    ipv4: bool = field(default=True, validator=validators.instance_of(bool))
    ipv6: bool = field(default=True, validator=validators.instance_of(bool))
    redirect_peer: bool | None = None
    trace_every_packet: bool = field(default=False, validator=validators.instance_of(bool))
    cluster_name: str = field(default="default", validator=validators.min_len(1))
    cluster_id: int = _size(0, 0, 511)

    @property
    def dual_stack(self) -> bool:
        """Whether the world has two identities, one for each family."""
        return self.ipv4 and self.ipv6
