"""What is in the kernel against what should be there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyciliumlib.datapath.endpoint import Endpoint, device_row, endpoint_row
from pyciliumlib.datapath.endpoints import Endpoints
from pyciliumlib.datapath.hooks import Hooks
from pyciliumlib.datapath.host import HostFirewall
from pyciliumlib.datapath.policy import NodePolicy
from pyciliumlib.datapath.services import Services
from pyciliumlib.datapath.uplinks import Uplinks
from pyciliumlib.types import Drift

if TYPE_CHECKING:
    from pyciliumlib.identity import IPCache, IPCacheTable
    from pyciliumlib.kernel import Map, Object


def find_drift(
    programs: Object,
    endpoints: Endpoints,
    policy: NodePolicy,
    ipcache: IPCache,
    table: IPCacheTable,
    hooks: Hooks,
    services: Services,
    host: HostFirewall,
    uplinks: Uplinks,
) -> Drift:
    """Compare maps, attachments and slots with what is meant to be there."""
    return Drift(
        (
            *_attachments(endpoints, uplinks),
            *_rows(programs, endpoints, host),
            *_policies(_governed(endpoints, host), policy),
            *_prefixes(ipcache, table),
            *hooks.drift(),
            *services.drift().differences,
        )
    )


def _governed(endpoints: Endpoints, host: HostFirewall) -> list[Endpoint]:
    """Whoever has a policy map."""
    return [*endpoints.values(), *([host.endpoint] if host.enabled else [])]


def _attachments(endpoints: Endpoints, uplinks: Uplinks) -> Iterator[str]:
    for name, endpoint in endpoints.items():
        if not endpoints.attached(name):
            yield f"endpoint {name}: its programs are not on device {endpoint.device}"
    for device in uplinks.unattached():
        yield f"the node: its programs (services, host firewall) are not on device {device}"


def _rows(programs: Object, endpoints: Endpoints, host: HostFirewall) -> Iterator[str]:
    governed = _governed(endpoints, host)
    addresses = {a: endpoint_row(e) for e in governed for a in e.addresses}
    devices = {e.ifindex: device_row(e) for e in endpoints.values()} | host.device_rows()
    yield from _compare(programs.maps["endpoints"], addresses)
    yield from _compare(programs.maps["devices"], devices)


def _compare(held: Map, wanted: Mapping[Any, dict[str, object]]) -> Iterator[str]:
    there = {key: value._asdict() for key, value in held.items()}
    for key in there.keys() - wanted.keys():
        yield f"map {held.name}: {key} should not be there"
    for key, row in wanted.items():
        if key not in there:
            yield f"map {held.name}: {key} is missing"
            continue
        for field, value in row.items():
            if there[key][field] != value:
                yield f"map {held.name}: {key} has {field} {there[key][field]!r}, not {value!r}"


def _policies(governed: Iterable[Endpoint], policy: NodePolicy) -> Iterator[str]:
    for endpoint in governed:
        if policy.misplaced(endpoint.id):
            yield f"endpoint {endpoint.name}: the programs do not find its policy map"
        plan = policy.drift(endpoint.id)
        if plan:
            yield f"endpoint {endpoint.name}: its policy map needs {plan}"


def _prefixes(ipcache: IPCache, table: IPCacheTable) -> Iterator[str]:
    plan = table.drift(ipcache.entries())
    if plan:
        yield from (f"ipcache: {line}" for line in str(plan).splitlines())
