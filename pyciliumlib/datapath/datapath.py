"""The datapath of one node: endpoints, policy, flows and metrics over the loaded programs."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from pyciliumlib.closeable import Closeable
from pyciliumlib.conntrack import Conntrack
from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.drift import find_drift
from pyciliumlib.datapath.endpoint import Endpoint
from pyciliumlib.datapath.endpoints import Endpoints, Parts
from pyciliumlib.datapath.hooks import Hooks
from pyciliumlib.datapath.host import HostFirewall, HostParts
from pyciliumlib.datapath.node import NodeLike, ThisNode
from pyciliumlib.datapath.policy import NodePolicy, PartyLike
from pyciliumlib.datapath.programs import Programs
from pyciliumlib.datapath.services import Services
from pyciliumlib.datapath.simulate import Simulation, Simulator, summarise
from pyciliumlib.datapath.uplinks import Uplinks
from pyciliumlib.errors import NotFoundError, StateError, UnitError, nearest
from pyciliumlib.flow import Flow
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.flow.program import FlowStream
from pyciliumlib.identity import (
    AllocatorSettings,
    IdentityAllocator,
    IPCache,
    IPCacheTable,
    Labels,
    Metadata,
    ReservedIdentity,
    Scope,
    Source,
    cidr_labels,
)
from pyciliumlib.identity.ipcache import ASSIGNED
from pyciliumlib.identity.labels import LabelsLike
from pyciliumlib.kernel import Object
from pyciliumlib.kernel.pinroot import PinLayout, PinRoot
from pyciliumlib.loadbalancer import LocalNode
from pyciliumlib.policy import Party, PolicySettings, Repository
from pyciliumlib.policy.program.tries import PolicyTries
from pyciliumlib.store import MemoryStore, SQLiteStore, Store
from pyciliumlib.types import (
    Address,
    Drift,
    Network,
    NetworkLike,
    network_from_key,
    parse_address,
    parse_network,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Datapath(Closeable):
    """Cilium's datapath on one node.

        with Lab() as lab, Datapath(lab.node()) as dp:
            web = dp.add_endpoint("web", labels={"app": "frontend"})
            api = dp.add_endpoint("api", labels={"app": "backend"})
            dp.policy.apply("zero-trust.yaml")
            print(dp.policy.explain(src=web, dst=api, port="8080/TCP"))

    `node` is where the endpoints' devices are; by default the caller's network namespace. Without
    `pin_root` everything ends with `close()` or the process. With it, maps and programs go on and
    `Datapath.open(pin_root)` takes them over. Needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN (to
    enter namespaces), or root. Least kernel: 5.10.

    Raises PrivilegeError, FeatureError, VerifierError, LockedError, LayoutError, MismatchError.
    """

    def __init__(
        self,
        node: NodeLike | None = None,
        *,
        pin_root: str | os.PathLike[str] | None = None,
        config: DatapathConfig | None = None,
        policy: PolicySettings | None = None,
    ) -> None:
        self.config = config or DatapathConfig()
        self._resources = contextlib.ExitStack()
        self._closed = True
        self._changes = Changes()
        try:
            self._build(node, pin_root, policy)
        except BaseException:
            self._resources.close()
            raise
        self._closed = False

    @classmethod
    def open(
        cls,
        pin_root: str | os.PathLike[str],
        node: NodeLike | None = None,
        *,
        config: DatapathConfig | None = None,
        policy: PolicySettings | None = None,
    ) -> Datapath:
        """Take over what an earlier process left at `pin_root`; its traffic goes on meanwhile.

        Raises NotFoundError if nothing is pinned there, and what the constructor raises.
        """
        with PinRoot.existing(pin_root, _LAYOUT):
            pass
        return cls(node, pin_root=pin_root, config=config, policy=policy)

    # ------------------------------------------------------------------ building

    def _build(
        self,
        node: NodeLike | None,
        pin_root: str | os.PathLike[str] | None,
        settings: PolicySettings | None,
    ) -> None:
        keep = self._resources
        self.node = node if node is not None else _own(keep, ThisNode())
        self._pins = _own(keep, PinRoot(pin_root, _LAYOUT)) if pin_root is not None else None
        self._store: Store = _own(
            keep, SQLiteStore(self._pins.state) if self._pins else MemoryStore()
        )
        self._clock = kernel_clock()
        pinned = self._pins.maps if self._pins else None
        self._programs: Programs = _own(keep, Programs(self.config, self._clock, pinned))
        maps = self._programs.maps
        self._simulator: Simulator | None = None
        rules = settings or self._policy_settings()
        if self.config.host_firewall:
            rules = evolve(rules, host_firewall=True)

        tries = _own(
            keep,
            PolicyTries(maps, self.config.max_endpoints, self.config.policy),
        )
        self.identities = _own(keep, IdentityAllocator(self._store, self._allocator_settings()))
        self.ipcache = IPCache(self.identities, self.config.ipv4, self.config.ipv6)
        self.policy = NodePolicy(
            Repository(rules),
            tries,
            self.ipcache,
            self._party,
            self._store,
            self._changes,
            lambda names: self.endpoints.namespaces_changed(names),
            self.config.host_firewall,
        )
        self.hooks = Hooks(
            self._programs,
            self._use_programs,
            self._changes,
            self._store,
            self._pins.directory("hooks") if self._pins else None,
        )
        keep.callback(self.hooks.let_go)
        self.hooks.restore()
        self._table = IPCacheTable(maps["ipcache"], maps["ipcache_rev"], self.config.dual_stack)
        self._uplinks: Uplinks = _own(
            keep,
            Uplinks(
                self.node,
                self._store,
                self._pins.directory("host") if self._pins else None,
                self.config,
            ),
        )
        self.host = HostFirewall(
            HostParts(
                self.node,
                self.ipcache,
                self.policy,
                tries,
                self._store,
                self._uplinks,
                self._programs,
                self.config,
            ),
            self._changes,
        )
        self.endpoints = Endpoints(
            Parts(
                self.node,
                self.identities,
                self.ipcache,
                self.policy,
                tries,
                self._store,
                self._pins.links if self._pins else None,
                self.host,
                self._uplinks,
                self.config,
            ),
            self.hooks.programs,
            self._changes,
        )
        keep.callback(self.endpoints.close)
        self.conntrack = Conntrack(
            maps["flows"], maps["pending"], self._clock, maps["lb_frontends"]
        )
        self.services: Services = _own(
            keep,
            Services(
                maps,
                self.config.services,
                self._local_node(),
                self.conntrack,
                self._store if self._pins else None,
            ),
        )
        self._flows: FlowStream = _own(
            keep,
            FlowStream(
                self._programs.plain,
                self._programs.event,
                self._name_of,
                self.services.service_of,
            ),
        )
        self._start()

    def _start(self) -> None:
        """Bring model, tables and kernel together, in the order that lets no packet slip."""
        self.endpoints.announce_ports()
        self.identities.observe(self.policy.identities_changed)
        for address in self.node.addresses:
            self.ipcache.upsert(address, "node", Metadata(Source.LOCAL, identity=_HOST))
        with self._numbers_kept():
            for entry in self._store.entries(_ASSIGNED):
                said = json.loads(entry.value)
                self.ipcache.assign(said["prefix"], said["identity"], said["labels"])
            self.policy.restore()
            self.services.go_on()
            self._uplinks.restore()
            self.host.restore()
            self.endpoints.restore()
            self._uplinks.find({e.ifindex: e.name for e in self.endpoints.values()})
            if self._uplinks.wanted:
                self.host.start(self._programs.host(hooks=bool(self.hooks)))
            self._table.follow(self.ipcache)

    def _use_programs(self, programs: Object) -> None:
        """Switch all devices to the programs that call the users', or to those that do not."""
        self.endpoints.use_programs(programs)
        if self._uplinks.wanted:
            hooks = programs is not self._programs.plain
            self._uplinks.use(self._programs.host(hooks=hooks))

    @contextlib.contextmanager
    def _numbers_kept(self) -> Iterator[None]:
        """Let prefixes have the numbers that an earlier process gave them.

        The kernel's ipcache and tries use those numbers until they are brought up to date, one
        after the other; were a number another prefix's meanwhile, its traffic would be misjudged.
        """
        in_kernel = self._table.plan(()).deletes
        held = [
            self.identities.allocate(self._prefix_labels(network_from_key(*key)), previous=number)
            for key, (number, _) in in_kernel.items()
            if Scope.of(number) is Scope.LOCAL
        ]
        yield
        for identity in held:
            self.identities.release(identity)

    def _prefix_labels(self, prefix: Network) -> Labels:
        return cidr_labels(prefix, self.config.ipv4, self.config.ipv6)

    def _local_node(self) -> LocalNode:
        """The node as services see it; its addresses are where NodePorts are."""
        told = self.config.local_node
        return told if told.addresses else evolve(told, addresses=self.node.addresses)

    def _allocator_settings(self) -> AllocatorSettings:
        return AllocatorSettings(
            cluster=self.config.cluster_name, cluster_id=self.config.cluster_id
        )

    def _policy_settings(self) -> PolicySettings:
        return PolicySettings(
            cluster_name=self.config.cluster_name,
            enable_ipv4=self.config.ipv4,
            enable_ipv6=self.config.ipv6,
            extended_protocols=self.config.extended_protocols,
        )

    # ------------------------------------------------------------------ endpoints and flows

    def add_endpoint(self, name: str, labels: Any = None, **where: Any) -> Endpoint:
        """Put an endpoint under policy; see `Endpoints.add`."""
        self._changes.check()
        return self.endpoints.add(name, labels, **where)

    def remove_endpoint(self, name: str) -> None:
        """Take an endpoint out; see `Endpoints.remove`."""
        self._changes.check()
        self.endpoints.remove(name)

    def assign(
        self,
        prefix: NetworkLike,
        identity: int | None = None,
        labels: LabelsLike | None = None,
    ) -> None:
        """Say who is behind a prefix: an identity's number, or labels; see `IPCache.assign`.

        It lasts: `Datapath.open` knows it again, unlike what goes into `ipcache` directly.
        """
        network = parse_network(prefix)
        said = None if labels is None else [str(label) for label in Labels.parse(labels)]
        with self._changes:
            self.ipcache.assign(network, identity, said)
            text = json.dumps({"prefix": str(network), "identity": identity, "labels": said})
            self._store.put(f"{_ASSIGNED}{network}", text)

    def unassign(self, prefix: NetworkLike) -> bool:
        """Take back what was assigned; whether there was anything."""
        network = parse_network(prefix)
        with self._changes:
            self._store.delete(f"{_ASSIGNED}{network}")
            return self.ipcache.remove(network, ASSIGNED)

    def flows(self, timeout: float = 0.0, follow: bool = False) -> Iterator[Flow]:
        """What was observed: all that is there now, or with `follow` all that comes.

        Waits up to `timeout` seconds for the first; with `follow` and no timeout, for ever.
        Each flow is told once.
        """
        self._changes.check()
        if follow:
            return self._flows.follow(timeout or None)
        return iter(self._flows.read(timeout))

    def metrics(self) -> Metrics:
        """Packets and bytes by direction and reason since the maps were made."""
        self._changes.check()
        maps = self._programs.maps
        return Metrics.read(maps["metrics"], maps["events_lost"])

    # ------------------------------------------------------------------ asking

    def simulate(
        self, packet: bytes, at: Endpoint | str, *, from_stack: bool = False
    ) -> Simulation:
        """What would become of `packet`, an Ethernet frame that endpoint `at` sends.

        With `from_stack` it is one that the node sends to the endpoint. At one of `devices`, as
        "eth0", it leaves the node there, or with `from_stack` comes there; `host.endpoint` stands
        for the first of them. The real program runs
        on it, with copies of the users' programs in the slots and of their maps, and nothing of
        the datapath changes (but a user's program that writes to a map inside a map, or to the
        datapath's identities, endpoints or policies, really does). Raises InvalidError,
        NotFoundError.
        """
        self._changes.check()
        uplink = self._uplink(at)
        with self._changes:
            if self._simulator is None:
                self._simulator = _own(
                    self._resources,
                    Simulator(
                        self.node,
                        self._programs.plain,
                        self.config,
                        self._clock,
                        self._name_of,
                        self.services.service_of,
                    ),
                )
            hooks = self.hooks.values()
            if uplink is not None:
                ran = self._simulator.run_at_host(packet, uplink, from_stack, hooks)
            else:
                endpoint = self.endpoints[at] if isinstance(at, str) else self._known(at)
                ran = self._simulator.run(packet, endpoint, from_stack, hooks)
        retval, out, flows = ran
        texts = (self.policy.rule_text(flow.rule) for flow in flows if flow.rule)
        return summarise(retval, out, flows, tuple(dict.fromkeys(filter(None, texts))))

    def _uplink(self, at: Endpoint | str) -> int | None:
        """The number of the device that leads out of the node there; None: it is an endpoint's."""
        if not isinstance(at, str):
            return self._uplinks.ifindexes[0] if self._known(at).identity == _HOST else None
        link = self._uplinks.links.get(at) if at not in self.endpoints else None
        return link.ifindex if link else None

    def drift(self) -> Drift:
        """How the kernel differs from what is meant; false where it does not."""
        self._changes.check()
        with self._changes:
            return find_drift(
                self._programs.plain,
                self.endpoints,
                self.policy,
                self.ipcache,
                self._table,
                self.hooks,
                self.services,
                self.host,
                self._uplinks,
            )

    def _party(self, what: PartyLike) -> Party:
        """An endpoint, a name, an address, a number or labels as a party to a connection."""
        if isinstance(what, Party):
            return what
        if isinstance(what, Endpoint):
            return self._known(what).party
        if isinstance(what, str) and what in self.endpoints:
            return self.endpoints[what].party
        if isinstance(what, int):
            return self._identity(what)
        if isinstance(what, str):
            what = self._address(what)
        if isinstance(what, Address):
            return self._party_at(what)
        return Party(what)

    def _known(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint as it is now, which may be the node itself."""
        if self.host.enabled and endpoint.id == self.host.endpoint.id:
            return self.host.endpoint
        return self.endpoints[endpoint.name]

    def _identity(self, number: int) -> Party:
        if number == _HOST and self.host.enabled:
            return self.host.endpoint.party
        return self.policy.repository.identity(number)

    def _address(self, text: str) -> Address:
        try:
            return parse_address(text)
        except UnitError:
            raise NotFoundError(
                f"{text!r} is neither an endpoint{nearest(text, self.endpoints)} nor an address; "
                f"labels go in a list: [{text!r}]"
            ) from None

    def _party_at(self, address: Address) -> Party:
        owner = next((e for e in self.endpoints.values() if address in e.addresses), None)
        if owner is not None:
            return owner.party
        entry = self.ipcache.lookup(address)
        if entry is not None:
            return self._identity(entry.identity)
        if not self.config.dual_stack:
            return self.policy.repository.identity(ReservedIdentity.WORLD)
        version4 = address.version == 4
        return self.policy.repository.identity(
            ReservedIdentity.WORLD_IPV4 if version4 else ReservedIdentity.WORLD_IPV6
        )

    def _name_of(self, address: Address, identity: int) -> str | None:
        for endpoint in tuple(self.endpoints.values()):
            if address in endpoint.addresses:
                return endpoint.name
        if identity in ReservedIdentity._value2member_map_:
            return str(ReservedIdentity(identity).label.key)
        return None

    # ------------------------------------------------------------------ life

    def keep(self) -> None:
        """Close this handle and let maps and programs go on at the pin root.

        Raises StateError without a pin root: nothing would hold them.
        """
        self._changes.check()
        if self._pins is None:
            raise StateError("this datapath has no pin_root: nothing of it can outlive the process")
        self._release()

    def close(self) -> None:
        """Take every endpoint out of the datapath and remove all of it, pins too.

        To let it go on, use `keep()`. A second call does nothing.
        """
        if self._closed:
            return
        pins, self._pins = self._pins, None
        try:
            self.endpoints.clear()
            self._uplinks.clear()
            self.host.clear()
            self.hooks.close()
        finally:
            self._release()
        if pins is not None:
            pins.remove()

    def _release(self) -> None:
        self._closed = True
        self._changes.close()
        self._resources.close()

    def __enter__(self) -> Self:
        self._changes.check()
        return self

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.endpoints)} endpoints"
        return f"<Datapath {state}>"


_HOST = int(ReservedIdentity.HOST)
_ASSIGNED: Final = "assigned/"
#: Its number counts changes of what is pinned that an older or newer version cannot use.
_LAYOUT: Final = PinLayout("Datapath", "v6")


def _own(stack: contextlib.ExitStack, resource: Any) -> Any:
    """Close `resource` with the stack."""
    stack.callback(resource.close)
    return resource
