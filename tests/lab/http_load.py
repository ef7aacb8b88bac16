"""A process that holds connections and makes new ones: `python -m tests.lab.http_load JSON`.

It connects to a server that says its name, and asks over every connection again and again until
its standard input ends. Whatever goes wrong is told with the name of the server that had been met.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen

from pyciliumlib.lab.processes import Spawner, terminate
from pyciliumlib.net import NetNS

ROOT: Final = Path(__file__).parents[2]
#: Longer than TCP takes to send a lost SYN again, twice.
_PATIENCE: Final = 8.0
#: Connections that are being made at the same time.
_AT_ONCE: Final = 100


@frozen
class Result:
    """What was asked, and what went wrong; `homes` are the servers of the held connections."""

    held: int
    exchanges: int
    new: int
    homes: dict[str, int]
    failed: list[str]


@define(eq=False)
class Load:
    """The process, seen by the test."""

    process: subprocess.Popen[str]

    def wait_until_held(self) -> None:
        """All connections are made."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> Result:
        """Let it ask over every connection once more, and end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        return Result(**json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def load(spawner: Spawner, netns: NetNS, to: tuple[str, int], hold: int = 0) -> Iterator[Load]:
    """A load on a server from a namespace: `hold` connections, and new ones beside them."""
    argv = [sys.executable, "-m", "tests.lab.http_load", json.dumps({"to": to, "hold": hold})]
    pipe = subprocess.PIPE
    process = spawner.spawn(netns, argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    try:
        yield Load(process)
    finally:
        terminate([process])
        for end in (process.stdin, process.stdout):
            end.close()


@define(eq=False)
class Client:
    """The process, as it sees itself."""

    to: tuple[str, int]
    exchanges: int = 0
    new: int = 0
    failed: list[str] = field(factory=list)
    ending: bool = False

    async def run(self, hold: int) -> Result:
        at_once = asyncio.Semaphore(_AT_ONCE)
        connections = await asyncio.gather(*(self._hold(at_once) for _ in range(hold)))
        held = [connection for connection in connections if connection]
        print("held", flush=True)
        talking = [asyncio.create_task(self._talk(held[at::50])) for at in range(min(50, hold))]
        meeting = asyncio.create_task(self._meet())
        await asyncio.to_thread(sys.stdin.read)
        self.ending = True
        await asyncio.gather(*talking, meeting)
        for connection in held:
            connection.writer.close()
        homes = Counter(connection.home for connection in held)
        return Result(len(held), self.exchanges, self.new, homes, self.failed[:20])

    async def _hold(self, at_once: asyncio.Semaphore) -> Connection | None:
        async with at_once:
            return await self._connect()

    async def _connect(self) -> Connection | None:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*self.to), _PATIENCE)
            made = Connection(reader, writer)
            made.home = await made.ask()
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self.failed.append(f"new connection: {error!r}")
            return None
        self.exchanges += 1
        return made

    async def _talk(self, connections: list[Connection]) -> None:
        """Round after round; the last one begins when all is to end."""
        while connections:
            last = self.ending
            for connection in list(connections):
                if not await self._exchange(connection):
                    connections.remove(connection)
            if last:
                return
            await asyncio.sleep(0.01)

    async def _exchange(self, connection: Connection) -> bool:
        try:
            home = await connection.ask()
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self.failed.append(f"connection of {connection.home}: {error!r}")
            return False
        self.exchanges += 1
        if home != connection.home:
            self.failed.append(f"connection of {connection.home}: {home} answered")
        return home == connection.home

    async def _meet(self) -> None:
        """One connection after the other, each for one question."""
        while not self.ending:
            connection = await self._connect()
            if connection:
                connection.writer.close()
                self.new += 1


@define(eq=False)
class Connection:
    """A connection with keep-alive, and who answered it first."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    home: str = ""

    async def ask(self) -> str:
        """Who answers now."""
        self.writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), _PATIENCE)
        assert head.startswith(b"HTTP/1.1 200 ")
        return (await asyncio.wait_for(self.reader.readline(), _PATIENCE)).decode().strip()


def main(plan: dict[str, Any]) -> None:
    host, port = plan["to"]
    result = asyncio.run(Client((host, port)).run(plan["hold"]))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
