"""Health checks: whether a backend takes a connection, and what it answers."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

from attrs import field, frozen

from pyciliumlib.errors import CheckError, InvalidError, UnitError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.types import Address, Protocol
from pyciliumlib.types.ports import PORT_MAX

#: Makes a socket of a family and a kind, in whatever network namespace: `socket.socket` does.
MakeSocket: TypeAlias = Callable[[int, int], socket.socket]
#: A check passes unless it raises or returns False. InvalidError is for one that cannot be asked.
Check: TypeAlias = "Callable[[Backend, Dialer], Awaitable[object]]"

#: Close at once and tell the other side so (SO_LINGER): ten thousand checks leave nothing behind.
_AT_ONCE: Final = struct.pack("ii", 1, 0)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?\r?\n")
_LINE_MAX: Final = 8192
_SENDABLE: Final = re.compile(r"[!-~]+")


class Dialer:
    """Connects to backends, from the namespace in which its sockets are made."""

    def __init__(self, make_socket: MakeSocket = socket.socket) -> None:
        self._make_socket = make_socket

    async def __call__(self, address: Address, port: int) -> socket.socket:
        """A TCP connection that does not block and is the caller's to close; raises OSError."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        made = self._make_socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            await asyncio.get_running_loop().sock_connect(made, (str(address), port))
        except BaseException:
            made.close()
            raise
        return made


def _check_port(_: object, __: object, port: int | None) -> None:
    if port is not None and (isinstance(port, bool) or not 1 <= port <= PORT_MAX):
        raise UnitError(f"port {port!r}: write a whole number, 1 to {PORT_MAX}")


@frozen
class TCPCheck:
    """Passes where a TCP connection is taken, at the backend's port or another one.

    A backend of another protocol needs a `port`.
    """

    port: int | None = field(default=None, validator=_check_port)

    async def __call__(self, backend: Backend, dial: Dialer) -> None:
        """Connect, and close again."""
        (await dial(backend.address, _port_of(self.port, backend))).close()


def _statuses(values: int | Iterable[int]) -> frozenset[int]:
    found = frozenset((values,) if isinstance(values, int) else values)
    wrong = [value for value in found if not isinstance(value, int) or not 100 <= value <= 599]
    if wrong or not found:
        raise InvalidError(f"statuses {wrong or values!r}: write some of 100 to 599")
    return found


def _check_sendable(_: object, attribute: object, text: str) -> None:
    name = getattr(attribute, "name", "")
    if text and not _SENDABLE.fullmatch(text):
        raise InvalidError(f"{name} {text!r}: write it without spaces, as it goes over the wire")


def _check_path(_: object, __: object, path: str) -> None:
    if not path.startswith("/"):
        raise InvalidError(f"path {path!r}: it begins with a slash")


@frozen
class HTTPCheck:
    """Passes where a GET of `path` is answered with one of `statuses`, by default 200 to 399.

    `host` is the name to ask for, by default the backend's address. With `tls`, a context such as
    `ssl.create_default_context()`, it is HTTPS.
    """

    path: str = field(default="/", validator=[_check_path, _check_sendable])
    statuses: frozenset[int] = field(default=range(200, 400), converter=_statuses)
    host: str = field(default="", validator=_check_sendable)
    port: int | None = field(default=None, validator=_check_port)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    async def __call__(self, backend: Backend, dial: Dialer) -> None:
        """Ask, and read the first line of the answer."""
        port = _port_of(self.port, backend)
        connection = await dial(backend.address, port)
        try:
            reader, writer = await asyncio.open_connection(
                sock=connection,
                limit=_LINE_MAX,
                ssl=self.tls,
                server_hostname=(self.host or str(backend.address)) if self.tls else None,
            )
        except BaseException:
            connection.close()
            raise
        try:
            writer.write(self._request(backend, port))
            line = await reader.readline()
        finally:
            writer.transport.abort()
        answer = _STATUS_LINE.fullmatch(line)
        if answer is None:
            raise CheckError(f"no HTTP answer: {line[:40]!r}" if line else "closed without answer")
        if int(answer[1]) not in self.statuses:
            raise CheckError(f"HTTP status {int(answer[1])}")

    def _request(self, backend: Backend, port: int) -> bytes:
        address = str(backend.address)
        host = self.host or f"{f'[{address}]' if ':' in address else address}:{port}"
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: pyciliumlib\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode()


def _port_of(port: int | None, backend: Backend) -> int:
    if port is None and backend.protocol is not Protocol.TCP:
        raise InvalidError(f"{backend} takes no TCP connections; give the check a port that does")
    return port or backend.port
