"""Real servers in namespaces: one thread of our process serves all of a lab.

The sockets are made inside the namespaces; the event loop that reads them is somewhere else, which
makes no difference to a socket.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

import attrs

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, ExistsError, KernelError, NotFoundError
from pyciliumlib.lab.client import open_socket, single_port
from pyciliumlib.net import NetNS
from pyciliumlib.types import Address, PortProto, Protocol, parse_address

T = TypeVar("T")
#: What a server answers: always the same, or a function of what it received (None: nothing).
Reply = bytes | str | Callable[[bytes], bytes | None]
#: How many requests a server remembers.
REMEMBERED = 1000


@attrs.frozen
class Request:
    """One thing that a server received."""

    peer: Address
    port: int
    data: bytes


class Server(Closeable):
    """A listener on one port of one host, until `close()` or the end of the lab."""

    def __init__(self, loop: ServerLoop, host: str, port: PortProto, reply: Reply) -> None:
        """Made by `ServerLoop.serve`."""
        self.host = host
        self.port = port
        self.count = 0
        """Requests so far: TCP segments read, UDP datagrams."""
        self.connections = 0
        """TCP connections accepted so far."""
        self._recent: collections.deque[Request] = collections.deque(maxlen=REMEMBERED)
        self._reply = _reply_function(reply)
        self._loop = loop
        self._listeners: list[asyncio.Server | asyncio.DatagramTransport] = []
        self._transports: set[asyncio.Transport] = set()

    @property
    def requests(self) -> tuple[Request, ...]:
        """The last requests, oldest first."""
        return tuple(self._recent)

    def close(self) -> None:
        """Stop listening and cut the connections; again is no error."""
        self._loop.run(self._close())

    def __repr__(self) -> str:
        return f"<Server {self.port} on {self.host}, {self.count} requests>"

    async def _listen(self, sockets: Iterable[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if sock.type == socket.SOCK_STREAM:
                server = await loop.create_server(lambda: _Stream(self), sock=sock, backlog=128)
                self._listeners.append(server)
            else:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagram(self), sock=sock
                )
                self._listeners.append(transport)

    async def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for transport in tuple(self._transports):
            transport.abort()
        await asyncio.sleep(0)  # transports close their sockets in the loop's next turn

    def _answer(self, peer: tuple[str, int], data: bytes) -> bytes | None:
        self.count += 1
        self._recent.append(Request(parse_address(peer[0]), peer[1], data))
        return self._reply(data)


class _Stream(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections += 1
        self._server._transports.add(self._transport)

    def data_received(self, data: bytes) -> None:
        peer = self._transport.get_extra_info("peername")
        reply = self._server._answer(peer[:2], data)
        if reply is not None:
            self._transport.write(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._transports.discard(self._transport)


class _Datagram(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        reply = self._server._answer(addr[:2], data)
        if reply is not None:
            self._transport.sendto(reply, addr)


class ServerLoop:
    """The thread and event loop that run the servers of one lab; started by the first of them."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._servers: list[Server] = []

    def serve(
        self,
        netns: NetNS,
        host: str,
        addresses: Iterable[Address],
        port: str | PortProto,
        reply: Reply,
    ) -> Server:
        """Listen on `port` of each of `addresses`, and answer.

        One socket an address, so that a UDP reply leaves from the address that was asked.
        """
        wanted = single_port(port)
        server = Server(self, host, wanted, reply)
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                sockets.append(open_socket(netns, address.version, wanted.protocol))
                _bind(sockets[-1], address, wanted, host)
            self._start()
            self.run(server._listen(sockets))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._servers.append(server)
        return server

    @property
    def running(self) -> bool:
        """Whether there is anything to close."""
        return self._loop is not None and self._pid == os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for it."""
        if self._loop is None or self._pid != os.getpid():
            coroutine.close()
            raise ClosedError("the servers of this lab are closed, or belong to a parent process")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Close every server and end the thread; again is no error."""
        with self._lock:
            if self._loop is None or self._thread is None or self._pid != os.getpid():
                return
            for server in self._servers:
                server.close()
            self._servers.clear()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _start(self) -> None:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="pyciliumlib-lab-servers", daemon=True
                )
                self._thread.start()


def http_reply(body: str, *, status: str = "200 OK") -> bytes:
    """An HTTP/1.1 answer with `body`, for `serve(reply=...)`.

    >>> http_reply("hi").splitlines()[0]
    b'HTTP/1.1 200 OK'
    """
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _reply_function(reply: Reply) -> Callable[[bytes], bytes | None]:
    if callable(reply):
        return reply
    content = reply.encode() if isinstance(reply, str) else reply
    return lambda _: content


def _bind(sock: socket.socket, address: Address, port: PortProto, host: str) -> None:
    sock.setblocking(False)
    if port.protocol is Protocol.TCP:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((str(address), port.first))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ExistsError(f"{host} serves {port} already: close that server first") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise NotFoundError(f"{host} has no address {address} any more") from error
        raise KernelError(error.errno or 0, f"{host} cannot listen on {address} {port}") from error
