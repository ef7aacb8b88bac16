"""EndpointSlice objects: who serves, in which state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer.annotations import read_weight
from pyciliumlib.loadbalancer.backend import Backend, BackendState, transport
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.types import Protocol

_SERVICE_LABEL: Final = "kubernetes.io/service-name"
_HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
_FAMILIES: Final = {"IPv4": 4, "IPv6": 6}
_FIELDS: Final = ("apiVersion", "kind", "metadata", "addressType", "endpoints", "ports")
_ENDPOINT: Final = (
    "addresses", "conditions", "hostname", "nodeName", "targetRef", "zone", "hints",
    "deprecatedTopology",
)  # fmt: skip
_HINTS: Final = ("forZones", "forNodes")


@frozen
class Serving:
    """A backend of a slice, and the zones and nodes that its hints give it to."""

    backend: Backend
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def hinted(serving: list[Serving], node: str, zone: str) -> list[Serving]:
    """Those that the hints give to the node, else to its zone; all where the hints are incomplete.

    As kube-proxy does: hints count only if every active backend has some.
    """
    active = [one for one in serving if one.backend.state is BackendState.ACTIVE]
    if all(one.nodes for one in active) and any(node in one.nodes for one in active):
        return [one for one in serving if node in one.nodes]
    if all(one.zones for one in active) and any(zone in one.zones for one in active):
        return [one for one in serving if zone in one.zones]
    return serving


@frozen
class Slice:
    """The backends of one service that a slice lists, under its ports' names."""

    namespace: str
    service: str
    ports: Mapping[tuple[str, Protocol], tuple[Serving, ...]]


def read_slice(data: Mapping[str, Any], reader: Reader) -> Iterator[Slice]:
    """The slice of an object; none if it is nobody's or its faults went to `reader`."""
    reader.check_fields(data, _FIELDS, "")
    metadata = reader.get(data, "metadata", dict, "")
    name = reader.get(metadata, "name", str, "metadata")
    reader.document += f" (EndpointSlice {name})" if name else ""
    labels = reader.text_map(metadata, "labels", "metadata")
    service = labels.get(_SERVICE_LABEL, "")
    if _HEADLESS_LABEL in labels:
        return
    if not service:
        reader.problem("metadata.labels", f"{_SERVICE_LABEL} is missing; it names the service")
        return
    family = _FAMILIES.get(reader.get(data, "addressType", str, ""))
    if family is None:
        reader.problem("addressType", f"{data.get('addressType')!r}: write IPv4 or IPv6")
        return
    annotations = reader.text_map(metadata, "annotations", "metadata")
    weight = read_weight(annotations, "metadata.annotations", reader)
    ports: dict[tuple[str, Protocol], tuple[Serving, ...]] = {}
    for port, path in reader.objects(data, "ports", ""):
        if port.get("port") is None:  # all ports of an address: no service is served so
            continue
        with reader.catching(path):
            protocol = transport(reader.get(port, "protocol", str, path) or "TCP")
            number = reader.port(port, "port", path)
            found = _endpoints(data, number, protocol, weight, family, reader) if number else ()
            ports[reader.get(port, "name", str, path), protocol] = tuple(found)
    yield Slice(reader.get(metadata, "namespace", str, "metadata") or "default", service, ports)


def _endpoints(
    data: Mapping[str, Any], port: int, protocol: Protocol, weight: int, family: int, reader: Reader
) -> Iterator[Serving]:
    for endpoint, path in reader.objects(data, "endpoints", ""):
        reader.check_fields(endpoint, _ENDPOINT, path)
        state = _state(reader.get(endpoint, "conditions", dict, path))
        if weight == 0 and state is BackendState.ACTIVE:
            state = BackendState.MAINTENANCE
        hints = reader.get(endpoint, "hints", dict, path)
        reader.check_fields(hints, _HINTS, f"{path}.hints")
        zones, nodes = (
            tuple(reader.get(one, "name", str, where)
                  for one, where in reader.objects(hints, name, f"{path}.hints"))
            for name in _HINTS
        )  # fmt: skip
        node = reader.get(endpoint, "nodeName", str, path)
        for address, where in reader.texts(endpoint, "addresses", path):
            with reader.catching(where):
                backend = Backend(address, port, protocol, weight, state=state, node=node)
                if backend.address.version != family:
                    raise InvalidError(f"{address} is not of the slice's family, IPv{family}")
                yield Serving(backend, zones, nodes)


def _state(conditions: Mapping[str, Any]) -> BackendState:
    """As Cilium has it; what is not said counts as good, and whether it serves as being ready.

    One that is not ready and does not end keeps its connections: it may be ready again soon.
    """
    ready = conditions.get("ready") is not False
    if ready:
        return BackendState.ACTIVE
    if conditions.get("terminating") is not True:
        return BackendState.MAINTENANCE
    if conditions.get("serving") is True:
        return BackendState.TERMINATING
    return BackendState.TERMINATING_NOT_SERVING
