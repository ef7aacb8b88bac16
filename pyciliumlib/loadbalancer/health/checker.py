"""Checks the backends of services without end, and sets those apart that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Protocol

from attrs import define, field

from pyciliumlib.errors import ClosedError, ExhaustedError, InvalidError, NotFoundError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.health.checks import Check, Dialer, MakeSocket
from pyciliumlib.loadbalancer.health.model import Health, HealthEvent, HealthSettings
from pyciliumlib.loadbalancer.health.tasks import Tasks
from pyciliumlib.loadbalancer.service import Service, ServiceKey

#: Seconds between looks at which services there are.
_LOOK: Final = 1.0
#: Events that wait for a reader; the oldest go first.
_EVENTS_MAX: Final = 16384
#: Failures that say nothing of the backend.
_OUR_OWN: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_GONE: Final = "it is not checked any more"
_BEFORE: Final = "it was in quarantine before"


class Checked(Protocol):
    """What has services and can set their backends apart: a `LoadBalancer`, for one."""

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """The services by their keys; a service that has changed is another object."""

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        """The same, with the states of backends in quarantine."""

    def quarantine(self, *backends: Backend) -> object:
        """Give backends no new connections; NotFoundError for one that no service has."""

    def restore(self, *backends: Backend) -> object:
        """Let backends out again; NotFoundError for one that no service has."""


@define(eq=False)
class _Watch:
    """One check of one backend, again and again."""

    backend: Backend
    task: asyncio.Task[None] | None = None
    health: Health = field(factory=Health)


class HealthChecks:
    """Quarantines the backends of a balancer that fail their checks, and restores them.

        async with HealthChecks(balancer, HTTPCheck("/healthz")) as health:
            async for event in health.events():
                print(event)

    Every backend is healthy at first, but for those in quarantine: an earlier process may have left
    them there. One that has several checks, by several services, has to pass all of them. Backends
    that come and go with the services are followed within a second. At the end of the block nobody
    watches any more, so what is quarantined is restored.

    Where all backends of a service are unhealthy, all of them are quarantined, and its new
    connections are dropped.
    """

    def __init__(
        self,
        balancer: Checked,
        check: Check | Mapping[str, Check],
        settings: HealthSettings | None = None,
        *,
        make_socket: MakeSocket = socket.socket,
        seed: int | None = None,
    ) -> None:
        """`check` is for all services, or by "namespace/name[:port]" for some; others have none.

        A check is a `TCPCheck`, an `HTTPCheck` or a coroutine function of a backend and a `Dialer`;
        it fails if it raises, returns False or takes too long. Two checks that are equal are one.
        `make_socket` chooses the network namespace (see `NamespaceSockets`), `seed` makes the
        pauses repeatable.
        """
        self._balancer = balancer
        self._checks = _by_key(check)
        self._settings = settings or HealthSettings()
        self._dial = Dialer(make_socket)
        self._random = random.Random(seed)
        self._turn = asyncio.Semaphore(self._settings.concurrency)
        self._tasks = Tasks()
        self._watches: dict[bytes, dict[Check, _Watch]] = {}
        self._unhealthy: dict[bytes, tuple[Backend, str]] = {}
        self._pending: list[tuple[Backend, HealthEvent | None]] = []
        self._to_do = asyncio.Event()
        self._quarantined: dict[bytes, Backend] = {}
        self._ended = False
        self._readers: list[asyncio.Queue[HealthEvent | None]] = []

    # ------------------------------------------------------------------ questions

    @property
    def unhealthy(self) -> dict[Backend, str]:
        """The backends that are unhealthy, and what their last failure said."""
        return dict(self._unhealthy.values())

    @property
    def checked(self) -> int:
        """How many backends are checked."""
        return len(self._watches)

    def events(self) -> AsyncIterator[HealthEvent]:
        """What changes from now on, as soon as the balancer knows it; ends with the block."""
        queue: asyncio.Queue[HealthEvent | None] = asyncio.Queue(_EVENTS_MAX)
        self._readers.append(queue)
        if self._ended:
            queue.put_nowait(None)
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[HealthEvent | None]) -> AsyncIterator[HealthEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._readers.remove(queue)

    # ------------------------------------------------------------------ who is checked

    async def _follow(self) -> None:
        """Watch whoever is in the services."""
        seen: Mapping[ServiceKey, Service] = {}
        while True:
            now = self._balancer.services
            changed = [one for key, one in now.items() if seen.get(key) is not one]
            if changed or len(now) != len(seen):
                seen = dict(now)
                self._watch_all(seen.values())
                # a backend that was gone for a moment is out of quarantine
                backends = {b.key: b for one in changed for b in one.backends}
                for key in backends.keys() & self._unhealthy.keys():
                    self._do(backends[key])
            await asyncio.sleep(_LOOK)

    def _watch_all(self, services: Iterable[Service]) -> None:
        wanted: dict[bytes, dict[Check, Backend]] = {}
        for service in services:
            check = self._check_of(service.key)
            if check is not None:
                for backend in service.backends:
                    wanted.setdefault(backend.key, {})[check] = backend
        for key in self._watches.keys() - wanted.keys():
            self._unwatch(key, self._watches[key].keys())
            del self._watches[key]
        apart = self._set_apart() if wanted.keys() - self._watches.keys() else set()
        for key, checks in wanted.items():
            healthy = key not in apart or key in self._watches
            watches = self._watches.setdefault(key, {})
            self._unwatch(key, watches.keys() - checks.keys())
            for check, backend in checks.items():
                if check in watches:
                    watches[check].backend = backend  # it may have another state or weight
                    continue
                watch = watches[check] = _Watch(backend, health=Health(healthy=healthy))
                watch.task = self._tasks.start(self._watch(watch, check))
                if not healthy:
                    self._unhealthy[key] = backend, _BEFORE
                    self._quarantined[key] = backend

    def _set_apart(self) -> set[bytes]:
        """Backends in quarantine: those that are, and were not given so."""
        in_force = self._balancer.in_force
        return {
            backend.key
            for key, service in self._balancer.services.items()
            for given, backend in zip(
                service.backends, in_force[key].backends if key in in_force else (), strict=False
            )
            if given.state is not backend.state
        }

    def _unwatch(self, key: bytes, checks: Iterable[Check]) -> None:
        watches = self._watches[key]
        for check in list(checks):
            watch = watches.pop(check)
            if watch.task is not None:
                watch.task.cancel()
            self._judge(watch.backend, _GONE)

    def _check_of(self, key: ServiceKey) -> Check | None:
        return self._checks.get(key) if isinstance(self._checks, Mapping) else self._checks

    # ------------------------------------------------------------------ one check

    async def _watch(self, watch: _Watch, check: Check) -> None:
        settings = self._settings
        await asyncio.sleep(self._random.uniform(0, settings.interval))  # not all at once
        while True:
            async with self._turn:
                passed, reason = await self._ask(watch.backend, check)
            health = watch.health.after(passed, settings)
            flipped = health.healthy is not watch.health.healthy
            watch.health = health
            if flipped:
                self._judge(watch.backend, reason)
            spread = settings.jitter * settings.interval
            await asyncio.sleep(settings.interval + self._random.uniform(-spread, spread))

    async def _ask(self, backend: Backend, check: Check) -> tuple[bool, str]:
        timeout = self._settings.timeout
        try:
            question = check(backend, self._dial)
            if not inspect.isawaitable(question):
                raise InvalidError(f"check {check!r} is no coroutine function; write async def")
            answered, answer = await _within(timeout, question)
            if not answered:
                return False, f"no answer within {timeout:g} s"
        except InvalidError:
            raise  # it cannot be asked at all: that is the caller's to know, and no verdict
        except OSError as error:
            if error.errno in _OUR_OWN:
                raise ExhaustedError(
                    f"no check of {backend} is possible here, and of others neither: {error}; "
                    "raise the limit (ulimit -n), or lower the concurrency"
                ) from error
            return False, _reason(error)
        except Exception as error:  # a check of the caller's own: it did not pass
            return False, str(error) or type(error).__name__
        return (False, "the check says no") if answer is False else (True, "it answers")

    def _judge(self, backend: Backend, reason: str) -> None:
        """See whether the backend is healthy now, by all its checks."""
        watches = self._watches.get(backend.key, {})
        healthy = all(watch.health.healthy for watch in watches.values())
        if healthy is (backend.key not in self._unhealthy):
            return
        if healthy:
            del self._unhealthy[backend.key]
        else:
            self._unhealthy[backend.key] = backend, reason
        self._do(backend, HealthEvent(backend, healthy, reason))

    # ------------------------------------------------------------------ the balancer

    def _do(self, backend: Backend, event: HealthEvent | None = None) -> None:
        self._pending.append((backend, event))
        self._to_do.set()

    async def _keep(self) -> None:
        """Tell the balancer what has changed; what comes meanwhile goes together."""
        while True:
            await self._to_do.wait()
            self._to_do.clear()
            pending, self._pending = self._pending, []
            backends = {backend.key: backend for backend, _ in pending}
            out = {key: b for key, b in backends.items() if key in self._unhealthy}
            self._quarantined.update(out)
            await _tell(self._balancer.quarantine, out.values())
            back = {key: b for key, b in backends.items() if key not in out}
            await _tell(self._balancer.restore, back.values())
            for key in back:
                self._quarantined.pop(key, None)
            for _, event in pending:
                if event is not None:
                    self._publish(event)

    def _publish(self, event: HealthEvent | None) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> HealthChecks:
        await self._tasks.__aenter__()
        self._tasks.start(self._keep())
        self._tasks.start(self._follow())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._ended = True
            self._publish(None)
            with contextlib.suppress(ClosedError):  # then its quarantine has ended as well
                await _tell(self._balancer.restore, self._quarantined.values())

    def __repr__(self) -> str:
        return f"<HealthChecks of {self.checked} backends, {len(self._unhealthy)} unhealthy>"


async def _within(seconds: float, question: Awaitable[object]) -> tuple[bool, object]:
    """Whether there was an answer, and it.

    `asyncio.wait_for` loses a cancellation that comes with the answer, before Python 3.12.
    """
    task = asyncio.ensure_future(question)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
    return (True, task.result()) if done else (False, None)


def _reason(error: OSError) -> str:
    """In the kernel's words: asyncio has its own for a connection that fails."""
    if error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error)


async def _tell(verb: Callable[..., object], backends: Iterable[Backend]) -> None:
    """In a thread, since the balancer may take its time, and to the end, even if cancelled."""
    listed = list(backends)

    def tell() -> None:
        try:
            verb(*listed)
        except NotFoundError:  # one of them has gone meanwhile
            for backend in listed:
                with contextlib.suppress(NotFoundError):
                    verb(backend)

    if not listed:
        return
    work = asyncio.ensure_future(asyncio.to_thread(tell))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _by_key(check: Check | Mapping[str, Check]) -> Check | Mapping[ServiceKey, Check]:
    if isinstance(check, Mapping):
        return {ServiceKey.parse(name): one for name, one in check.items()}
    return check
