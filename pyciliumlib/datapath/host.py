"""The node itself as an endpoint: policy for nodes, enforced (Cilium's host firewall)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterable
from typing import Final

from attrs import evolve, frozen

from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.endpoint import Endpoint, endpoint_row, mac_bytes, pod_labels, put_row
from pyciliumlib.datapath.node import NodeLike
from pyciliumlib.datapath.policy import NodePolicy
from pyciliumlib.datapath.programs import Programs
from pyciliumlib.datapath.uplinks import Uplinks
from pyciliumlib.errors import StateError
from pyciliumlib.identity import IPCache, Labels, Metadata, ReservedIdentity, Source
from pyciliumlib.identity.labels import LabelsLike
from pyciliumlib.kernel import Object
from pyciliumlib.policy.program.tries import PolicyTries
from pyciliumlib.store import Store
from pyciliumlib.types import Address

_STORED: Final = "host"
_NO_MAC: Final = "00:00:00:00:00:00"
_LOOPBACK: Final = ipaddress.IPv6Address("::1")


@frozen
class HostParts:
    """What the node's own policy is enforced with; all of it is owned by the datapath."""

    node: NodeLike
    ipcache: IPCache
    policy: NodePolicy
    tries: PolicyTries
    store: Store
    uplinks: Uplinks
    programs: Programs
    config: DatapathConfig


class HostFirewall:
    """The node as an endpoint of its own, governed by policies with a `nodeSelector`.

    Its devices are those that lead out of the node; between the node and its pods the endpoint
    programs ask its policy. Where no policy selects the node everything is open.
    """

    def __init__(self, parts: HostParts, changes: Changes) -> None:
        """Made by a `Datapath`."""
        self._parts = parts
        self._changes = changes
        self._endpoint: Endpoint | None = None
        self._left: list[int] = []

    @property
    def enabled(self) -> bool:
        """Whether policies for nodes are enforced here."""
        return self._endpoint is not None

    @property
    def endpoint(self) -> Endpoint:
        """The node as an endpoint; StateError where `host_firewall` is off."""
        if self._endpoint is None:
            raise StateError(
                "policies for nodes are not enforced: make the datapath with "
                'DatapathConfig(host_firewall=True, devices=("eth0",))'
            )
        return self._endpoint

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices at which it is enforced."""
        return tuple(self._parts.uplinks.links) if self.enabled else ()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses that are the node's; empty where `host_firewall` is off."""
        return self._endpoint.addresses if self._endpoint else ()

    @property
    def left(self) -> tuple[int, ...]:
        """The numbers of the devices at which an earlier process enforced it."""
        return tuple(self._left)

    # ------------------------------------------------------------------ changes

    def audit(self, on: bool = True) -> Endpoint:
        """Let pass what the node's policy denies, or no longer, as `Endpoints.audit` does.

        So a policy can be tried before it can lock anybody out. Raises MapFullError, with nothing
        changed; StateError where `host_firewall` is off.
        """
        with self._changes:
            old = self.endpoint
            new = evolve(old, audit=on)
            if new != old:
                self._parts.policy.audit_endpoint(old, new)
                self._remember(new)
            return new

    def relabel(self, labels: LabelsLike) -> Endpoint:
        """Give the node other labels; its next packet is judged by the policies that select them.

        They last as long as the process: the next one takes those of `DatapathConfig.local_node`.
        Raises LabelError, PolicyError, MapFullError, with nothing changed; StateError where
        `host_firewall` is off.
        """
        with self._changes:
            old = self.endpoint
            given = pod_labels(labels)
            new = evolve(old, labels=given, identity_labels=_identity_labels(given))
            if new != old:
                self._parts.policy.relabel_endpoint(old, new)
                self._remember(new)
            return new

    def refresh(self) -> Endpoint:
        """Follow the addresses of the node's devices, which are read once, at the start.

        Raises DeviceError, MapFullError; StateError where `host_firewall` is off.
        """
        with self._changes:
            old = self.endpoint
            new = evolve(old, addresses=self._own_addresses())
            gone = [address for address in old.addresses if address not in new.addresses]
            self._parts.ipcache.update(
                [(address, _STORED, _METADATA) for address in new.addresses]
                + [(address, _STORED, None) for address in gone]
            )
            table = self._parts.programs.maps["endpoints"]
            for address in new.addresses:
                put_row(table, address, endpoint_row(new))
            for address in gone:
                table.delete(address)
            self._parts.tries.bump([new.id])
            self._remember(new)
            return new

    # ------------------------------------------------------------------ life

    def restore(self) -> None:
        """Know what an earlier process left, before endpoints are; undo what is off now."""
        entry = self._parts.store.get(_STORED)
        if entry is None:
            return
        found = json.loads(entry.value)
        endpoint = Endpoint.from_json(found["endpoint"])
        self._parts.tries.claim(endpoint.id)
        if self._parts.config.host_firewall:
            self._endpoint, self._left = endpoint, found["ifindexes"]
            return
        self._forget(endpoint, found["ifindexes"])

    def start(self, programs: Object) -> None:
        """Enforce, if the configuration says so; what an earlier process left is taken over.

        `programs` are those for the node's devices, which have more to do than this. Raises
        DeviceError, ExistsError, MapFullError, KernelError; then nothing is enforced that was not,
        and all that was.
        """
        uplinks = self._parts.uplinks
        if not self._parts.config.host_firewall:
            uplinks.start(programs)
            return
        with contextlib.ExitStack() as undo:
            if self._endpoint is None:
                self._begin(undo)
            else:
                self._take_over(self._endpoint)
            uplinks.start(programs)
            undo.pop_all()
        for ifindex in set(self._left) - set(uplinks.ifindexes):
            self._parts.programs.maps["devices"].delete(ifindex)

    def _begin(self, undo: contextlib.ExitStack) -> None:
        parts = self._parts
        number = parts.tries.allocate()
        undo.callback(parts.tries.release, number)
        endpoint = self._make(number)
        parts.policy.add_endpoint(endpoint)
        undo.callback(parts.policy.remove_endpoint, endpoint)
        undo.callback(self._forget_rows, endpoint, parts.uplinks.ifindexes)
        self._publish(endpoint)

    def _take_over(self, stored: Endpoint) -> None:
        """Go on with what is there; whatever fails, the kernel enforces what it did."""
        endpoint = self._make(stored.id, audit=stored.audit)
        self._parts.policy.adopt_endpoint(endpoint)
        self._publish(endpoint)
        for address in set(stored.addresses) - set(endpoint.addresses):
            self._parts.programs.maps["endpoints"].delete(address)

    def _make(self, number: int, audit: bool = False) -> Endpoint:
        labels = pod_labels(self._parts.config.local_node.labels)
        return Endpoint(
            id=number,
            name=_STORED,
            namespace="",
            labels=labels,
            identity_labels=_identity_labels(labels),
            identity=_HOST,
            addresses=self._own_addresses(),
            device="",
            ifindex=0,
            mac=_NO_MAC,
            node_mac=_NO_MAC,
            audit=audit,
        )

    def _publish(self, endpoint: Endpoint) -> None:
        """Let packets find the node; flows that are there are decided again."""
        self._remember(endpoint)
        maps = self._parts.programs.maps
        for address in endpoint.addresses:
            self._parts.ipcache.upsert(address, _STORED, _METADATA)
            put_row(maps["endpoints"], address, endpoint_row(endpoint))
        for ifindex, row in self.device_rows().items():
            put_row(maps["devices"], ifindex, row)
        self._parts.tries.bump([endpoint.id])

    def _remember(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        ifindexes = self._parts.uplinks.ifindexes
        text = json.dumps({"endpoint": endpoint.to_json(), "ifindexes": ifindexes})
        self._parts.store.put(_STORED, text)

    def clear(self) -> None:
        """Take the node out of the maps; the programs are off its devices by then."""
        if self._endpoint is None:
            return
        self._parts.policy.remove_endpoint(self._endpoint)
        self._forget(self._endpoint, self._parts.uplinks.ifindexes)

    def _forget(self, endpoint: Endpoint, ifindexes: Iterable[int]) -> None:
        self._forget_rows(endpoint, ifindexes)
        self._parts.tries.release(endpoint.id)

    def _forget_rows(self, endpoint: Endpoint, ifindexes: Iterable[int]) -> None:
        maps = self._parts.programs.maps
        for address in endpoint.addresses:
            maps["endpoints"].delete(address)
        for ifindex in ifindexes:
            maps["devices"].delete(ifindex)
        self._parts.store.delete(_STORED)
        self._endpoint = None

    # ------------------------------------------------------------------ what there is

    def _own_addresses(self) -> tuple[Address, ...]:
        """Those that the node says, and whatever else its devices have, link-local ones too.

        The loopback stands for whatever else the kernel takes for the node itself.
        """
        node, uplinks = self._parts.node.addresses, self._parts.uplinks.addresses
        return tuple(dict.fromkeys([*node, *uplinks, _LOOPBACK]))

    def device_rows(self) -> dict[int, dict[str, object]]:
        """The rows of the map `devices` that are the node's."""
        if self._endpoint is None:
            return {}
        return {
            link.ifindex: {"endpoint": self._endpoint.id, "node_mac": mac_bytes(link.mac)}
            for link in self._parts.uplinks.links.values()
        }

    def __repr__(self) -> str:
        where = ", ".join(self.devices) if self.enabled else "off"
        return f"<HostFirewall {where}>"


_HOST: Final = int(ReservedIdentity.HOST)
_METADATA: Final = Metadata(Source.LOCAL, identity=_HOST)


def _identity_labels(labels: Labels) -> Labels:
    return labels.merge(ReservedIdentity.HOST.labels)
