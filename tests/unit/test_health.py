"""Health checks in virtual time: thresholds, pauses, who is watched, what the balancer is told."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyciliumlib.errors import (
    CheckError,
    ClosedError,
    ExhaustedError,
    InvalidError,
    KernelError,
    NotFoundError,
    UnitError,
)
from pyciliumlib.loadbalancer import Backend, Service, ServiceKey
from pyciliumlib.loadbalancer.health import (
    Dialer,
    Health,
    HealthChecks,
    HealthEvent,
    HealthSettings,
    HTTPCheck,
    TCPCheck,
)
from tests.unit.virtual_time import run

#: No jitter, so that the clock says how many checks there were.
EVERY_SECOND = HealthSettings(interval=1.0, timeout=0.5, rise=2, fall=3, jitter=0)
Check = Callable[[Backend, Dialer], Awaitable[object]]


class FakeBalancer:
    """Remembers what it is told, and refuses backends that no service has."""

    def __init__(self, *services: Service) -> None:
        self._services = {one.key: one for one in services}
        self.out: set[str] = set()
        self.calls: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        return dict(self._services)

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        return {
            key: one.with_backends(
                b.in_state("quarantined") if str(b) in self.out else b for b in one.backends
            )
            for key, one in self._services.items()
        }

    def set(self, *services: Service) -> None:
        self._services = {one.key: one for one in services}
        self.out &= {str(b) for one in services for b in one.backends}

    def quarantine(self, *backends: Backend) -> None:
        self._call("quarantine", backends)
        self.out |= set(map(str, backends))

    def restore(self, *backends: Backend) -> None:
        self._call("restore", backends)
        self.out -= set(map(str, backends))

    def _call(self, verb: str, backends: tuple[Backend, ...]) -> None:
        if self.error is not None:
            raise self.error
        there = {b for one in self._services.values() for b in one.backends}
        for backend in backends:
            if backend not in there:
                raise NotFoundError(f"no service has the backend {backend}")
        self.calls.append((verb, *sorted(map(str, backends))))


def web(*numbers: int, name: str = "web") -> Service:
    return Service(name, ["203.0.113.10:80"], [at(n) for n in numbers])


def at(number: int) -> str:
    return f"10.0.0.{number}:80/TCP"


def failing(down: set[str]) -> Check:
    """A check that those whose names are in `down` fail."""

    async def check(backend: Backend, _: Dialer) -> None:
        if str(backend) in down:
            raise CheckError("down")

    return check


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait; how long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not condition():
        assert loop.time() < started + seconds
        await asyncio.sleep(0.01)
    return loop.time() - started


# ---------------------------------------------------------------------- the model


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_thresholds(results: list[bool], rise: int, fall: int) -> None:
    """It flips with the `fall`-th failure or `rise`-th pass in a row, and with no other check."""
    settings, health, row = HealthSettings(rise=rise, fall=fall), Health(), [True]
    for passed in results:
        row = [*row, passed] if passed is row[-1] else [passed]
        before = health
        health = health.after(passed, settings)
        against = before.healthy is not passed and len(row) >= (fall if before.healthy else rise)
        assert health.healthy is (passed if against else before.healthy)


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: HealthSettings(interval=0), UnitError, "interval 0"),
    (lambda: HealthSettings(timeout=-1), UnitError, "timeout -1"),
    (lambda: HealthSettings(interval="5s"), UnitError, "interval '5s'"),  # type: ignore[arg-type]
    (lambda: HealthSettings(rise=0), UnitError, "rise 0"),
    (lambda: HealthSettings(fall=1.5), UnitError, r"fall 1\.5"),  # type: ignore[arg-type]
    (lambda: HealthSettings(jitter=1), UnitError, "jitter 1"),
    (lambda: HealthSettings(jitter=float("nan")), UnitError, "jitter nan"),
    (lambda: HealthSettings(concurrency=0), UnitError, "concurrency 0"),
    (lambda: TCPCheck(0), UnitError, "port 0"),
    (lambda: HTTPCheck("healthz"), InvalidError, "slash"),
    (lambda: HTTPCheck("/a b"), InvalidError, "spaces"),
    (lambda: HTTPCheck("/", host="a\r\nb"), InvalidError, "host"),
    (lambda: HTTPCheck("/", statuses=[]), InvalidError, "statuses"),
    (lambda: HTTPCheck("/", statuses=[20]), InvalidError, r"\[20\]"),
    (lambda: HTTPCheck("/", port=70000), UnitError, "port 70000"),
    (lambda: HealthChecks(FakeBalancer(), {"web": TCPCheck()}), InvalidError, "namespace/name"),
]


@pytest.mark.parametrize(("make", "error", "said"), BAD)
def test_bad_input(make: Callable[[], Any], error: type[Exception], said: str) -> None:
    """Typed, and said with the mend."""
    with pytest.raises(error, match=said):
        make()


# ---------------------------------------------------------------------- verdicts


def test_quarantined_and_restored() -> None:
    """After three failures and two passes, neither sooner nor later; and told to who follows."""

    async def main() -> None:
        balancer, down = FakeBalancer(web(1, 2)), set[str]()
        async with HealthChecks(balancer, failing(down), EVERY_SECOND) as health:
            seen = follow(health)
            await asyncio.sleep(5)
            down.add(at(1))
            assert 2 < await until(lambda: bool(balancer.out)) <= 3.02
            assert balancer.out == {at(1)}
            assert {str(b): why for b, why in health.unhealthy.items()} == {at(1): "down"}
            await asyncio.sleep(5)
            down.clear()
            assert 1 < await until(lambda: not balancer.out) <= 2.02
            assert health.unhealthy == {}
        assert balancer.calls == [("quarantine", at(1)), ("restore", at(1))]
        assert [str(event) for event in await seen] == [
            f"{at(1)} unhealthy: down",
            f"{at(1)} healthy: it answers",
        ]

    run(main())


def follow(health: HealthChecks) -> asyncio.Task[list[HealthEvent]]:
    events = health.events()

    async def gather() -> list[HealthEvent]:
        return [event async for event in events]

    return asyncio.get_running_loop().create_task(gather())


async def _raise(_: Backend, __: Dialer) -> None:
    raise ZeroDivisionError


async def _false(_: Backend, __: Dialer) -> bool:
    return False


async def _slow(_: Backend, __: Dialer) -> None:
    await asyncio.sleep(3600)


async def _refused(_: Backend, __: Dialer) -> None:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


async def _zero(_: Backend, __: Dialer) -> int:
    return 0


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (_raise, "ZeroDivisionError"),
        (_false, "the check says no"),
        (_slow, "no answer within 0.5 s"),
        (_refused, "Connection refused"),
        (_zero, ""),
    ],
)
def test_what_fails(check: Check, reason: str) -> None:
    """An error, False, and silence; anything else passes."""

    async def main() -> None:
        async with HealthChecks(FakeBalancer(web(1)), check, EVERY_SECOND) as health:
            await asyncio.sleep(10)
            assert list(health.unhealthy.values()) == ([reason] if reason else [])

    run(main())


def test_what_is_no_verdict() -> None:
    """A question that cannot be asked, or sockets that are out, end the block with that error."""

    async def no_sockets(_: Backend, __: Dialer) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def synchronous(_: Backend, __: Dialer) -> bool:
        return True

    async def ended_by(check: Any, balancer: FakeBalancer) -> None:
        async with HealthChecks(balancer, check, EVERY_SECOND):
            await asyncio.sleep(3600)

    dns = Service("dns", ["203.0.113.10:53/UDP"], ["10.0.0.1:53/UDP"])
    for check, service, error, said in (
        (no_sockets, web(1), ExhaustedError, "ulimit"),
        (synchronous, web(1), InvalidError, "async def"),
        (TCPCheck(), dns, InvalidError, "10.0.0.1:53/UDP takes no TCP"),
        (HTTPCheck(), dns, InvalidError, "give the check a port"),
    ):
        balancer = FakeBalancer(service)
        with pytest.raises(error, match=said):
            run(ended_by(check, balancer))
        assert balancer.calls == []


def test_pauses() -> None:
    """Checks of a backend are an interval apart, give or take the jitter, and start spread out."""
    times: dict[str, list[float]] = {}

    async def check(backend: Backend, _: Dialer) -> None:
        times.setdefault(str(backend), []).append(asyncio.get_running_loop().time())

    async def main() -> None:
        settings = HealthSettings(interval=10, jitter=0.2)
        async with HealthChecks(FakeBalancer(web(*range(1, 101))), check, settings, seed=1):
            await asyncio.sleep(1000)

    run(main())
    firsts = sorted(seen[0] for seen in times.values())
    assert len(firsts) == 100 and firsts[-1] < 10
    assert max(b - a for a, b in itertools.pairwise(firsts)) < 1
    pauses = [b - a for seen in times.values() for a, b in itertools.pairwise(seen)]
    assert 8 <= min(pauses) < 8.2 and 11.8 < max(pauses) <= 12
    assert 9.9 < sum(pauses) / len(pauses) < 10.1


def test_concurrency() -> None:
    """So many at a time; to wait for a turn is not to be slow."""
    running, most = 0, 0

    async def check(_: Backend, __: Dialer) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.4)
        running -= 1

    async def main() -> None:
        settings = HealthSettings(interval=1.0, timeout=0.5, jitter=0, concurrency=5)
        async with HealthChecks(FakeBalancer(web(*range(1, 51))), check, settings) as health:
            await asyncio.sleep(60)
            assert health.unhealthy == {}

    run(main())
    assert most == 5


# ---------------------------------------------------------------------- who is watched


def test_services_are_followed() -> None:
    """Backends that come are checked within a second; those that have gone are forgotten."""

    async def main() -> None:
        balancer, down = FakeBalancer(web(1)), {at(1), at(2)}
        async with HealthChecks(balancer, failing(down), EVERY_SECOND) as health:
            await until(lambda: balancer.out == {at(1)})
            balancer.set(web(1, 2))
            await until(lambda: balancer.out == {at(1), at(2)}, seconds=5)
            assert health.checked == 2
            balancer.set(web(2))
            await until(lambda: health.checked == 1, seconds=2)
            assert [str(b) for b in health.unhealthy] == [at(2)]
            balancer.set()
            await until(lambda: health.checked == 0, seconds=2)
            assert health.unhealthy == {}

    run(main())


def test_a_backend_that_was_gone_for_a_moment() -> None:
    """The balancer has forgotten its quarantine; it is told again, though nothing has flipped."""

    async def main() -> None:
        balancer = FakeBalancer(web(1, 2))
        async with HealthChecks(balancer, failing({at(1)}), EVERY_SECOND):
            await until(lambda: balancer.out == {at(1)})
            balancer.set(web(2))
            balancer.set(web(1, 2))
            assert balancer.out == set()
            assert await until(lambda: balancer.out == {at(1)}) <= 1.1

    run(main())


def test_a_backend_that_goes_as_it_is_told() -> None:
    """The others of the same call are quarantined all the same."""
    seen = FakeBalancer(web(1, 3))

    class Behind(FakeBalancer):
        """Shows a service that the balancer does not have any more."""

        def quarantine(self, *backends: Backend) -> None:
            self.calls.append(("asked", *sorted(map(str, backends))))
            seen.quarantine(*backends)

    async def all_at_once(*_: object) -> bool:
        await asyncio.sleep(10 - asyncio.get_running_loop().time())
        return False

    async def main() -> None:
        balancer = Behind(web(1, 2, 3))
        settings = HealthSettings(interval=5, timeout=20, fall=1)
        async with HealthChecks(balancer, all_at_once, settings):
            await asyncio.sleep(11)
            assert balancer.calls[0] == ("asked", at(1), at(2), at(3))
            assert seen.out == {at(1), at(3)}

    run(main())


def test_checks_by_service() -> None:
    """Each service its own; one that has none is left alone; a shared backend passes all."""

    async def main() -> None:
        shared = [web(1, 2), Service("api", ["203.0.113.11:80"], [at(2), at(3)]),
                  Service("other", ["203.0.113.12:80"], [at(4)])]  # fmt: skip
        balancer, api_down = FakeBalancer(*shared), {at(2)}
        checks = {"default/web": failing(set()), "default/api": failing(api_down)}
        async with HealthChecks(balancer, checks, EVERY_SECOND) as health:
            await until(lambda: balancer.out == {at(2)})
            assert health.checked == 3
            balancer.set(*shared[:1])
            await until(lambda: balancer.out == set(), seconds=2)
            assert health.checked == 2

    run(main())


# ---------------------------------------------------------------------- the end


def test_the_end_restores() -> None:
    """Nobody would do it later; a balancer that is closed has nothing to restore."""

    async def main(closed: bool) -> FakeBalancer:
        balancer = FakeBalancer(web(1, 2))
        async with HealthChecks(balancer, failing({at(1)}), EVERY_SECOND) as health:
            await until(lambda: bool(balancer.out))
            seen = follow(health)
            balancer.error = ClosedError("closed") if closed else None
        assert await seen == []
        assert await follow(health) == []
        return balancer

    assert run(main(closed=False)).out == set()
    assert run(main(closed=True)).out == {at(1)}


@pytest.mark.parametrize("turns", range(6))
def test_an_answer_that_comes_with_the_end(turns: int) -> None:
    """However close together, the check ends with the block."""
    asked = 0

    async def main() -> None:
        answer = asyncio.Event()

        async def check(_: Backend, __: Dialer) -> None:
            nonlocal asked
            asked += 1
            if asked > 100:
                raise InvalidError("nobody ends this")
            await answer.wait()

        async with HealthChecks(FakeBalancer(web(1)), check, EVERY_SECOND):
            await until(lambda: bool(asked))
            answer.set()
            for _ in range(turns):
                await asyncio.sleep(0)

    run(main())
    assert asked == 1


def test_what_an_earlier_process_left() -> None:
    """One in quarantine is restored when it passes, and else stays there."""

    async def main() -> None:
        balancer = FakeBalancer(web(1, 2, 3))
        balancer.out = {at(1), at(2)}
        async with HealthChecks(balancer, failing({at(2)}), EVERY_SECOND) as health:
            seen = follow(health)
            assert 1 < await until(lambda: balancer.out == {at(2)}) <= 2.02
            await asyncio.sleep(10)
            assert {str(b): why for b, why in health.unhealthy.items()} == {
                at(2): "it was in quarantine before"
            }
        assert [str(event) for event in await seen] == [f"{at(1)} healthy: it answers"]
        assert balancer.out == set()

    run(main())


def test_a_balancer_that_fails() -> None:
    """Its error ends the block at once, and is not swallowed."""

    async def main() -> None:
        balancer = FakeBalancer(web(1))
        balancer.error = KernelError(errno.EIO, "broken")
        try:
            async with HealthChecks(balancer, failing({at(1)}), EVERY_SECOND):
                await asyncio.sleep(3600)
        finally:
            assert asyncio.get_running_loop().time() < 5

    with pytest.raises(KernelError, match="broken"):
        run(main())


def test_the_body_fails() -> None:
    """Its own error is the one that is told."""

    async def main() -> None:
        async with HealthChecks(FakeBalancer(web(1)), failing(set()), EVERY_SECOND):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main())


def test_repr() -> None:
    """Short enough for a line."""
    assert repr(HealthChecks(FakeBalancer(), TCPCheck())) == (
        "<HealthChecks of 0 backends, 0 unhealthy>"
    )
