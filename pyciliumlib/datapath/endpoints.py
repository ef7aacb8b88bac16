"""The endpoints of a node: added, relabelled, removed, found."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import evolve, frozen

from pyciliumlib.datapath.attachment import (
    Place,
    add_routes,
    is_there,
    place_of,
    place_of_device,
    place_of_namespace,
    place_of_pod,
    remove_routes,
)
from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.devices import Devices
from pyciliumlib.datapath.endpoint import (
    Endpoint,
    check_name,
    device_row,
    endpoint_row,
    identity_labels,
    named_ports,
    pod_labels,
    put_row,
)
from pyciliumlib.datapath.host import HostFirewall
from pyciliumlib.datapath.node import NodeLike, PodLike, PodMaker
from pyciliumlib.datapath.policy import NodePolicy
from pyciliumlib.datapath.uplinks import Uplinks
from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, nearest
from pyciliumlib.identity import Identity, IdentityAllocator, IPCache, Labels, Metadata, Source
from pyciliumlib.identity.labels import LabelsLike
from pyciliumlib.kernel import Object
from pyciliumlib.policy.program.tries import PolicyTries
from pyciliumlib.store import Store
from pyciliumlib.types import AddressLike, PortProto, Protocol

_STORED = "endpoints/"
_log = logging.getLogger(__name__)


@frozen
class Parts:
    """What endpoints are made of; all of it is owned by the datapath."""

    node: NodeLike
    allocator: IdentityAllocator
    ipcache: IPCache
    policy: NodePolicy
    tries: PolicyTries
    store: Store
    links: Path | None
    host: HostFirewall
    uplinks: Uplinks
    config: DatapathConfig


class Endpoints(Mapping[str, Endpoint]):
    """The endpoints by name. A change is whole or not at all."""

    def __init__(self, parts: Parts, programs: Object, changes: Changes) -> None:
        self._parts = parts
        self._programs = programs
        self._changes = changes
        self._endpoints: dict[str, Endpoint] = {}
        self._devices = Devices(parts.node.netns, parts.store, parts.links, parts.config.tc)
        self._made_pods: dict[str, PodLike] = {}

    # ------------------------------------------------------------------ add

    def add(
        self,
        name: str,
        labels: LabelsLike | None = None,
        *,
        namespace: str = "default",
        pod: PodLike | None = None,
        netns: str | None = None,
        ifname: str = "eth0",
        device: str | None = None,
        mac: str | None = None,
        addresses: Iterable[AddressLike] = (),
        ports: Mapping[str, str | PortProto] | None = None,
        audit: bool = False,
    ) -> Endpoint:
        """Put an endpoint under policy.

        Its device is one of: `pod` (of a lab, or anything alike); `netns` with a veth `ifname` to
        this node; the host-side `device` with the `mac` and `addresses` behind it; or, with none
        of these, a pod that the node makes. `ports` gives names to ports: {"http": "80/TCP"}.
        `audit` is as in `Endpoints.audit`.

        Raises ExistsError (name or address taken), InvalidError, DeviceError, ExhaustedError,
        MapFullError, KernelError; then nothing has changed.
        """
        with self._changes, contextlib.ExitStack() as undo:
            if check_name(name) in self._endpoints:
                raise ExistsError(f"there is an endpoint {name!r} already; remove it first")
            wanted = pod_labels(labels)
            port_names = named_ports(ports or {})
            if pod is None and netns is None and device is None:
                pod = self._make_pod(name, undo)
            place = self._place(pod, netns, ifname, device, mac, addresses)
            self._check_addresses(place)
            if pod is None:
                add_routes(self._parts.node, place)
                undo.callback(remove_routes, self._parts.node, place)
            endpoint = self._register(name, namespace, wanted, place, port_names, audit, undo)
            endpoint = evolve(endpoint, routed=pod is None)
            self._devices.attach(endpoint.ifindex, self._programs, undo)
            self._publish(endpoint, undo)
            self._parts.store.put(f"{_STORED}{name}", endpoint.to_json())
            undo.pop_all()
            self._endpoints[name] = endpoint
            return endpoint

    def _make_pod(self, name: str, undo: contextlib.ExitStack) -> PodLike:
        node = self._parts.node
        if not isinstance(node, PodMaker):
            raise InvalidError(
                f"endpoint {name!r}: this node makes no pods; give pod=, netns= or device="
            )
        pod = node.pod(name)
        self._made_pods[name] = pod
        undo.callback(self._made_pods.pop, name)
        close = getattr(pod, "close", None)
        if close is not None:
            undo.callback(close)
        return pod

    def _place(
        self,
        pod: PodLike | None,
        netns: str | None,
        ifname: str,
        device: str | None,
        mac: str | None,
        addresses: Iterable[AddressLike],
    ) -> Place:
        if sum(given is not None for given in (pod, netns, device)) != 1:
            raise InvalidError("give one of pod=, netns= and device=")
        if pod is not None:
            return place_of_pod(pod)
        if netns is not None:
            return place_of_namespace(self._parts.node, netns, ifname)
        if device is None or mac is None:
            raise InvalidError(f"device {device!r}: give the mac= and addresses= behind it too")
        return place_of_device(self._parts.node, device, mac, addresses)

    def _check_addresses(self, place: Place) -> None:
        host = self._parts.host
        for address in set(place.addresses) & {*self._parts.node.addresses, *host.addresses}:
            raise ExistsError(f"address {address} is the node's own")
        if place.ifindex in self._parts.uplinks.ifindexes:
            raise ExistsError(f"device {place.device} leads out of the node: it is in `devices`")
        for endpoint in self._endpoints.values():
            taken = set(endpoint.addresses) & set(place.addresses)
            if taken or endpoint.ifindex == place.ifindex:
                what = f"address {min(map(str, taken))}" if taken else f"device {place.device}"
                raise ExistsError(f"{what} is endpoint {endpoint.name!r}'s already")

    def _register(
        self,
        name: str,
        namespace: str,
        labels: Labels,
        place: Place,
        ports: Mapping[str, tuple[int, Protocol]],
        audit: bool,
        undo: contextlib.ExitStack,
    ) -> Endpoint:
        """An identity, an id and a policy: nothing that a packet sees yet."""
        parts = self._parts
        all_labels = self._identity_labels(labels, namespace)
        identity = parts.allocator.allocate(all_labels)
        undo.callback(parts.allocator.release, identity)
        number = parts.tries.allocate()
        undo.callback(parts.tries.release, number)
        endpoint = Endpoint(
            id=number,
            name=name,
            namespace=namespace,
            labels=labels,
            identity_labels=all_labels,
            identity=identity.id,
            addresses=place.addresses,
            device=place.device,
            ifindex=place.ifindex,
            mac=place.mac,
            node_mac=place.node_mac,
            named_ports=ports,
            audit=audit,
        )
        parts.policy.add_endpoint(endpoint)
        undo.callback(parts.policy.remove_endpoint, endpoint)
        return endpoint

    def _identity_labels(self, labels: Labels, namespace: str) -> Labels:
        known = self._parts.policy.repository.namespaces.get(namespace)
        return identity_labels(
            labels, namespace, known.labels if known else {}, self._parts.config.cluster_name
        )

    # ------------------------------------------------------------------ what packets see

    def _publish(self, endpoint: Endpoint, undo: contextlib.ExitStack) -> None:
        """Let packets find the endpoint: its device, its addresses, its identity."""
        maps = self._programs.maps
        put_row(maps["devices"], endpoint.ifindex, device_row(endpoint))
        undo.callback(maps["devices"].delete, endpoint.ifindex)
        for address in endpoint.addresses:
            put_row(maps["endpoints"], address, endpoint_row(endpoint))
            undo.callback(maps["endpoints"].delete, address)
        self._parts.ipcache.update(
            [(a, _resource(endpoint), _metadata(endpoint)) for a in endpoint.addresses]
        )

    def _withdraw(self, endpoint: Endpoint) -> None:
        maps = self._programs.maps
        for address in endpoint.addresses:
            maps["endpoints"].delete(address)
        self._parts.ipcache.update([(a, _resource(endpoint), None) for a in endpoint.addresses])
        maps["devices"].delete(endpoint.ifindex)

    # ------------------------------------------------------------------ change and remove

    def relabel(self, name: str, labels: LabelsLike) -> Endpoint:
        """Give an endpoint other labels; its next packet is judged by them."""
        with self._changes:
            old = self[name]
            return self._relabel(old, pod_labels(labels))

    def audit(self, name: str, on: bool = True) -> Endpoint:
        """Let pass what the endpoint's policy denies, or no longer.

        Such a flow has the verdict AUDIT. Raises MapFullError, with nothing changed.
        """
        with self._changes:
            old = self[name]
            if old.audit == on:
                return old
            endpoint = evolve(old, audit=on)
            self._parts.policy.audit_endpoint(old, endpoint)
            self._parts.store.put(f"{_STORED}{name}", endpoint.to_json())
            self._endpoints[name] = endpoint
            return endpoint

    def namespaces_changed(self, names: Iterable[str]) -> None:
        """Let endpoints follow the labels of their namespaces."""
        changed = set(names)
        with self._changes:
            for endpoint in [e for e in self._endpoints.values() if e.namespace in changed]:
                self._relabel(endpoint, endpoint.labels)

    def _relabel(self, old: Endpoint, labels: Labels) -> Endpoint:
        parts = self._parts
        all_labels = self._identity_labels(labels, old.namespace)
        if all_labels == old.identity_labels and labels == old.labels:
            return old
        identity = parts.allocator.allocate(all_labels)
        endpoint = evolve(old, labels=labels, identity_labels=all_labels, identity=identity.id)
        try:
            parts.policy.relabel_endpoint(old, endpoint)
        except BaseException:
            parts.allocator.release(identity)
            raise
        maps = self._programs.maps
        for address in endpoint.addresses:
            put_row(maps["endpoints"], address, endpoint_row(endpoint))
        parts.ipcache.update(
            [(a, _resource(endpoint), _metadata(endpoint)) for a in endpoint.addresses]
        )
        parts.allocator.release(_identity(parts.allocator, old))
        parts.store.put(f"{_STORED}{endpoint.name}", endpoint.to_json())
        self._endpoints[endpoint.name] = endpoint
        return endpoint

    def remove(self, name: str) -> None:
        """Take an endpoint out. While its device is there, all that comes and goes is dropped.

        A pod that was made for it is removed too.
        """
        with self._changes:
            endpoint = self[name]
            self._withdraw(endpoint)
            if endpoint.routed:
                remove_routes(self._parts.node, place_of(endpoint))
            close = getattr(self._made_pods.pop(name, None), "close", None)
            if close is not None:
                close()
            self._devices.leave(endpoint.ifindex)
            self._parts.policy.remove_endpoint(endpoint)
            self._parts.tries.release(endpoint.id)
            self._parts.allocator.release(_identity(self._parts.allocator, endpoint))
            self._parts.store.delete(f"{_STORED}{name}")
            del self._endpoints[name]

    def clear(self) -> None:
        """Take every endpoint out and the programs off every device: nothing is held any more."""
        for name in tuple(self):
            self.remove(name)
        self._devices.clear()

    # ------------------------------------------------------------------ restart and reload

    def announce_ports(self) -> None:
        """Tell policy of the ports by name that the state file knows, before identities are."""
        for entry in self._parts.store.entries(_STORED):
            self._parts.policy.expect_ports(Endpoint.from_json(entry.value))

    def restore(self) -> None:
        """Adopt the endpoints that the state file names, while their traffic goes on."""
        for entry in self._parts.store.entries(_STORED):
            stored = Endpoint.from_json(entry.value)
            if is_there(self._parts.node, place_of(stored)):
                self._adopt(stored)
            else:
                _log.warning("device %s of endpoint %s is gone", stored.device, stored.name)
                self._parts.policy.forget_ports(stored)
                self._parts.store.delete(entry.key)
        self._drop_strays()

    def _adopt(self, stored: Endpoint) -> None:
        labels = self._identity_labels(stored.labels, stored.namespace)
        identity = self._parts.allocator.allocate(labels)
        endpoint = evolve(stored, identity_labels=labels, identity=identity.id)
        self._parts.tries.claim(endpoint.id)
        self._parts.policy.adopt_endpoint(endpoint)
        self._devices.adopt(endpoint.ifindex, self._programs)
        self._publish(endpoint, contextlib.ExitStack())
        self._endpoints[endpoint.name] = endpoint

    def _drop_strays(self) -> None:
        """Remove what a change that a crash cut short has left."""
        self._devices.adopt_left(self._programs)
        host = self._parts.host
        rows = {*host.addresses, *(a for e in self._endpoints.values() for a in e.addresses)}
        numbers = {*host.left, *(e.ifindex for e in self._endpoints.values())}
        for name, wanted in (("endpoints", rows), ("devices", numbers)):
            held = self._programs.maps[name]
            for key in [key for key in held if key not in wanted]:
                held.delete(key)
        self._parts.tries.clear_spare()

    def use_programs(self, programs: Object) -> None:
        """Switch every device to other programs that share the maps."""
        with self._changes:
            self._devices.update(programs)
            self._programs = programs

    def attached(self, name: str) -> bool:
        """Whether the endpoint's programs are on its device now."""
        return self._devices.attached(self[name].ifindex)

    def close(self) -> None:
        """Let go of the attachments; pinned ones go on."""
        self._devices.close()

    # ------------------------------------------------------------------ Mapping

    def __getitem__(self, name: str) -> Endpoint:
        try:
            return self._endpoints[name]
        except KeyError:
            raise NotFoundError(
                f"there is no endpoint {name!r}{nearest(str(name), self._endpoints)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._endpoints))

    def __len__(self) -> int:
        return len(self._endpoints)

    def __repr__(self) -> str:
        return f"<Endpoints {', '.join(self._endpoints) or 'none'}>"


def _resource(endpoint: Endpoint) -> str:
    return f"endpoint/{endpoint.name}"


def _metadata(endpoint: Endpoint) -> Metadata:
    return Metadata(Source.LOCAL, identity=endpoint.identity)


def _identity(allocator: IdentityAllocator, endpoint: Endpoint) -> Identity:
    identity = allocator.get(endpoint.identity)
    if identity is None:
        raise NotFoundError(f"identity {endpoint.identity} of {endpoint} is not allocated")
    return identity
