"""What every balancer in the kernel has: services, and the maps that programs find them in."""

from __future__ import annotations

import abc
import contextlib
import html
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from attrs import define, evolve, field

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, ServiceError, StateError
from pyciliumlib.kernel import Link, Map, TcFilter
from pyciliumlib.loadbalancer import notebook
from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.balancer import Balancer, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.plan import ServicePlan
from pyciliumlib.loadbalancer.program.kept import Kept, StoredServices
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.restore import RestoredTable
from pyciliumlib.loadbalancer.saved import Journal, Saved
from pyciliumlib.loadbalancer.service import Service, ServiceKey
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.net import NetNS
from pyciliumlib.types import Drift

T = TypeVar("T")


@define(eq=False)
class HeldServices:
    """The services of one set of maps, and the balancers whose programs read them.

    The first balancer owns the maps; the others may use them while it is open.
    """

    owner: KernelBalancer
    maps: Mapping[str, Map]
    config: LoadBalancerConfig
    node: LocalNode
    kept: StoredServices | None = None
    lock: threading.RLock = field(factory=threading.RLock)
    balancers: list[KernelBalancer] = field(factory=list)
    table: ServiceTable = field(init=False)
    model: Balancer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.table = ServiceTable(self.maps, self.config, self.node)
        self.model = Balancer((), self.config, self.node)

    def restore(self) -> None:
        """Go on with what an earlier process kept; ServiceError if that cannot be served."""
        if self.kept is not None:
            with self._made_ready(self.kept.services()):
                self.table = self.kept.restore(self._restored)
            self.model = Balancer(self.table.in_force.values(), self.config, self.node)

    def _restored(self, saved: Iterable[Saved], quarantine: Quarantine) -> ServiceTable:
        return RestoredTable(self.maps, saved, self.config, self.node, quarantine)

    def mend(self) -> None:
        """Make the maps hold what they should, whatever they hold."""
        self.table = self._restored(self.table.saved(), self.table.quarantine)

    def check(self, balancers: Iterable[KernelBalancer], services: Iterable[Service]) -> None:
        """ServiceError with all reasons why a balancer cannot serve a service."""
        wanted = list(services)
        versions = {backend.address.version for one in wanted for backend in one.backends}
        reasons = (
            reason
            for balancer in balancers
            for found in (*map(balancer._refusals, wanted), balancer._unreachable(versions))
            for reason in found
        )
        problems = list(dict.fromkeys(reasons))
        if problems:
            raise ServiceError(f"{len(problems)} problem(s); nothing was applied", problems)

    @contextlib.contextmanager
    def _made_ready(self, services: Iterable[Service]) -> Iterator[None]:
        """Every balancer can serve these; ServiceError otherwise, and nothing has changed."""
        wanted = list(services)
        self.check(self.balancers, wanted)
        with contextlib.ExitStack() as ready:
            for balancer in self.balancers:
                ready.enter_context(balancer._ready_for(wanted))
            yield

    def apply(self, plan: ServicePlan) -> None:
        """Carry out a plan if every balancer can serve what it holds, all of it or nothing."""
        with self._made_ready([service for _, service in plan.upserts.values()]):
            applied = self.table.apply(plan, self.kept or Journal())
        for key in plan.deletes:
            self.model.delete(key)
        for key in [key for key in plan.upserts if key in self.model.services]:
            self.model.delete(key)  # first all of them, since a frontend may have moved
        for _, service in plan.upserts.values():
            self.model.upsert(service)
        for balancer in self.balancers:
            balancer._applied(applied)

    def by_affinity(self, placed: Placement, met: Callable[[int, int], int]) -> Placement:
        """A placement, or the candidate that its client met before, if the service has affinity.

        `met` gives that backend's number for the service's number and timeout. The lock is held.
        """
        if placed.service is None or not placed.candidates:
            return placed
        timeout = self.table.in_force[placed.service].affinity_timeout
        number = met(self.table.service_id(placed.service), timeout) if timeout else 0
        known = self.table.backends.get(number)
        for backend in placed.candidates:
            if known is not None and backend.key == known.key:
                return evolve(placed, why=Why.AFFINITY, backend=backend)
        return placed


def _states(service: Service) -> str:
    """How many backends are in which state: "2 active, 1 quarantined"."""
    counts = Counter(backend.state for backend in service.all_backends)
    return ", ".join(f"{counts[state]} {state}" for state in sorted(counts)) or "none"


def refuse_exceptions(service: Service) -> Iterator[str]:
    """Programs that serve clients inside redirect all of them or none."""
    if service.redirect is not None and service.redirect.skip_from_backends:
        policy = service.redirect.policy
        yield f"{service.key}: skipRedirectFromBackend ({policy}) is not implemented in programs"


class KernelBalancer(Closeable):
    """A balancer whose services are in maps of the kernel, its own or another balancer's."""

    _held: HeldServices
    _netns: NetNS

    def __init__(self, kept: Kept | None = None) -> None:
        """With `kept` it goes on where an earlier process ended, and outlives this one."""
        self._resources = contextlib.ExitStack()
        self._closed = False
        self._kept = kept
        self._is_new = kept is None or not kept.settings
        self._links: dict[str, Link | TcFilter] = {}

    def _attach(
        self,
        name: str,
        attach: Callable[[], Link | TcFilter],
        adopt: Callable[[Path], Link | TcFilter | None],
    ) -> None:
        """Have a program at its hook: by the link that an earlier process kept, or by a new one."""
        pin = self._kept.link(name) if self._kept else None
        link = None if pin is None or self._is_new else adopt(pin)
        if link is None:
            link = attach()
        self._links[name] = link
        self._resources.callback(self._netns.call, link.close)
        if pin is not None:
            link.keep(pin)

    def _give_up(self) -> None:
        """It could not be made: of a new one nothing stays, of an earlier one everything."""
        if self._is_new:
            self._end()
        else:
            self._leave()

    def _leave(self) -> None:
        """Close all handles; what is kept goes on."""
        self._resources.close()
        if self._kept is not None:
            self._kept.close()

    def _end(self) -> None:
        """Take all of it away."""
        try:
            for link in reversed(self._links.values()):
                self._netns.call(link.detach)
        finally:
            self._resources.close()  # a thread of it may be waiting for the lock
            if self._kept is not None:
                self._kept.remove()

    def _join(self, held: HeldServices) -> None:
        """Have these services; ServiceError if one that is there cannot be served."""
        self._held = held
        with held.lock:
            held.check([self], self.services.values())
            held.balancers.append(self)
        self._resources.callback(self._part)

    def _part(self) -> None:
        with self._held.lock:
            self._held.balancers.remove(self)

    # ------------------------------------------------------------------ of each kind

    @abc.abstractmethod
    def _refusals(self, service: Service) -> Iterator[str]:
        """Why this balancer's programs cannot serve a service that the model knows."""

    def _unreachable(self, versions: Iterable[int]) -> Iterator[str]:
        """Why no backend of some of these families can be reached; by default each can."""
        return iter(())

    def _ready_for(self, services: Iterable[Service]) -> AbstractContextManager[None]:
        """What must hold before they are served; undone if the change inside fails."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def _applied(self, applied: Applied) -> None:
        """The maps have changed; the lock is held."""

    # ------------------------------------------------------------------ services

    @property
    def config(self) -> LoadBalancerConfig:
        """How it balances."""
        return self._held.config

    @property
    def node(self) -> LocalNode:
        """The node that it is on."""
        return self._held.node

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """The services by their keys, as they were given."""
        return dict(self._held.table.services)

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        """The services as they are served: with the states of backends in quarantine."""
        return dict(self._held.table.in_force)

    def upsert(self, *services: Service) -> ServicePlan:
        """Add services, or put them in the place of those of their keys; what was done.

        All of them or none: raises ServiceError for one that cannot be served, ExistsError where
        a frontend is another service's, MapFullError, KernelError.
        """
        with self._held.lock:
            return self._apply(self._held.table.plan(services, whole=False))

    def delete(self, *names: str | ServiceKey) -> ServicePlan:
        """Remove services by key or "namespace/name[:port]"; NotFoundError for one not there."""
        keys = list(map(ServiceKey.parse, names))
        with self._held.lock:
            return self._apply(self._held.table.plan_deletion(keys))

    def plan(self, services: Iterable[Service]) -> ServicePlan:
        """What `apply` would do."""
        with self._held.lock:
            return self._held.table.plan(services)

    def apply(self, services: Iterable[Service]) -> ServicePlan:
        """Hold exactly `services`; what was done. Errors are those of `upsert`."""
        with self._held.lock:
            return self._apply(self._held.table.plan(services))

    def drain(self, backend: str | Backend) -> ServicePlan:
        """Give a backend no new connections, in all services; those that it has stay.

        It is then terminating, so it is asked still where no other is left. NotFoundError if no
        service has it, InvalidError if it is in maintenance.
        """
        wanted = Backend.parse(backend)
        with self._held.lock:
            changed = [
                service.with_each(
                    lambda one: (
                        one.in_state(BackendState.TERMINATING) if one.key == wanted.key else one
                    )
                )
                for service in self._held.table.serves(wanted)
            ]
            return self._apply(self._held.table.plan(changed, whole=False))

    def quarantine(self, *backends: str | Backend) -> ServicePlan:
        """Give backends no new connections until `restore`, in all services, also if given anew.

        Connections that they have stay. Where all backends of a service are quarantined, its new
        connections are dropped. NotFoundError for a backend that no service has.
        """
        return self._quarantine(backends, out=False)

    def restore(self, *backends: str | Backend) -> ServicePlan:
        """Let backends out of quarantine; NotFoundError for one that no service has."""
        return self._quarantine(backends, out=True)

    def _quarantine(self, backends: Iterable[str | Backend], *, out: bool) -> ServicePlan:
        parsed = list(map(Backend.parse, backends))
        with self._held.lock:
            return self._apply(self._held.table.plan_quarantine(parsed, out=out))

    def _apply(self, plan: ServicePlan) -> ServicePlan:
        self._check_open()
        self._held.apply(plan)
        return plan

    # ------------------------------------------------------------------ what is served

    @abc.abstractmethod
    def service_counts(self) -> Mapping[ServiceKey, object]:
        """What this balancer's programs counted for each service."""

    def _repr_html_(self) -> str:
        """The services, for notebooks: their frontends, their backends' states and counts."""
        if self._closed:
            return f"<p>{html.escape(repr(self))}, closed</p>"
        counts = self.service_counts()
        rows = [
            (str(key), ", ".join(map(str, one.frontends)), _states(one), str(counts.get(key, "")))
            for key, one in self.in_force.items()
        ]
        return notebook.table(repr(self), ("service", "frontends", "backends", "counted"), rows)

    # ------------------------------------------------------------------ by number

    def _by_service(self, values: list[T]) -> dict[ServiceKey, T]:
        """What maps hold under the services' numbers."""
        return {key: values[self._held.table.service_id(key)] for key in self.services}

    def _by_backend(self, values: list[T]) -> dict[Backend, T]:
        """What maps hold under the backends' numbers."""
        return {backend: values[number] for number, backend in self._backends_now().items()}

    def _backends_now(self) -> dict[int, Backend]:
        with self._held.lock:
            return dict(self._held.table.backends)

    # ------------------------------------------------------------------ what the kernel holds

    def drift(self) -> Drift:
        """How the kernel differs from what is meant; false where it does not."""
        self._check_open()
        with self._held.lock:
            off = [name for name, link in self._links.items() if not self._is_at_hook(link)]
            return Drift(
                (
                    *(f"hook {name}: the program is not there" for name in off),
                    *self._held.table.differences(),
                )
            )

    def _is_at_hook(self, link: Link | TcFilter) -> bool:
        return self._netns.call(lambda: link.attached)

    def mend(self) -> Drift:
        """Make the maps hold what they should, and return what was not as it should be.

        Connections keep their backends where these are still meant to have them. What is not at
        its hook any more comes back with the next balancer.
        """
        with self._held.lock:
            found = self.drift()
            if found:
                self._held.mend()
        return found

    # ------------------------------------------------------------------ life

    def keep(self) -> None:
        """Close this handle and let programs, maps and services go on at the pin root.

        Raises StateError without a pin root: nothing would hold them.
        """
        self._check_open()
        if self._kept is None:
            raise StateError("this balancer has no pin_root: nothing of it can outlive the process")
        with self._held.lock:
            self._closed = True
        self._leave()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this load balancer is closed; make another one")
        if self._held.owner._closed:
            raise ClosedError(f"{self._held.owner!r}, whose services these are, is closed")

    def close(self) -> None:
        """Take the programs off their hooks and free what is held, pins too.

        To let it go on, use `keep()`. A second call does nothing.
        """
        if self._closed:
            return
        with self._held.lock:
            self._closed = True
        self._end()
