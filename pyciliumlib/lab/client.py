"""Real clients: TCP, UDP and ICMP echo from a namespace, with a result that is a value."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from typing import Literal

import attrs

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ExistsError, FeatureError, InvalidError, KernelError
from pyciliumlib.net import NetNS
from pyciliumlib.types import Address, AddressLike, PortProto, Protocol, parse_address

Failure = Literal["", "timeout", "refused", "unreachable", "reset", "closed"]

HELLO = b"hello\n"
_ECHO_REQUEST4, _ECHO_REQUEST6 = 8, 128
#: struct linger: on, 0 seconds.
_RESET_AT_ONCE = struct.pack("ii", 1, 0)
_RECEIVE_MAX = 65536
# linux/in.h and linux/in6.h; the socket module has them from Python 3.14 on
_IP_RECVERR, _IPV6_RECVERR = 11, 25

_FAILURES: dict[int, Failure] = {
    errno.ECONNREFUSED: "refused",  # TCP RST, or ICMP port unreachable
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "unreachable",  # ICMPv6: administratively prohibited
    errno.EPERM: "unreachable",  # refused on the way out of the client's own machine
    errno.ENOPROTOOPT: "unreachable",  # ICMP: protocol unreachable
    errno.EPROTO: "unreachable",  # ICMPv6: unknown next header
}


@attrs.frozen
class ConnectResult:
    """What came of one probe; true if it was answered."""

    ok: bool
    error: Failure = ""
    """Empty if ok; "refused": somebody said no; "timeout": nobody said anything."""
    rtt: float | None = None
    """Seconds to the first answer: TCP's SYN-ACK, the UDP or ICMP reply."""
    reply: bytes = b""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return f"ok in {(self.rtt or 0.0) * 1e3:.2f} ms" if self.ok else self.error


class Connection(Closeable):
    """A TCP connection, an SCTP association or a connected UDP socket, kept open.

    It shows what a change of policy does to a flow that exists.
    """

    def __init__(self, sock: socket.socket, rtt: float | None) -> None:
        """Own a connected socket; `rtt` is what the handshake took, in seconds."""
        self._sock = sock
        self.rtt = rtt

    @property
    def local(self) -> tuple[Address, int]:
        """Address and port of this end."""
        host, port = self._sock.getsockname()[:2]
        return parse_address(host), port

    def fileno(self) -> int:
        """The socket's descriptor, for select and poll."""
        return self._sock.fileno()

    def exchange(self, data: bytes = HELLO, *, timeout: float = 1.0) -> ConnectResult:
        """Send `data` and wait for a reply, `timeout` seconds at most. The connection stays open.

        A reply to an earlier exchange that came too late is read first and forgotten.
        """
        self._drain()
        start = time.monotonic()
        try:
            self._sock.settimeout(timeout)
            self._sock.sendall(data)
            reply = self._sock.recv(_RECEIVE_MAX)
        except OSError as error:
            return ConnectResult(False, _failure(error))
        if not reply and self._sock.type == socket.SOCK_STREAM:
            return ConnectResult(False, "closed")
        return ConnectResult(True, rtt=time.monotonic() - start, reply=reply)

    def close(self) -> None:
        """Close this end; again is no error."""
        self._sock.close()

    def _drain(self) -> None:
        self._sock.setblocking(False)
        # BlockingIOError: nothing is waiting; another error will come again from the exchange
        with contextlib.suppress(OSError):
            while self._sock.recv(_RECEIVE_MAX):
                pass


def connect(
    netns: NetNS,
    dst: AddressLike,
    port: str | PortProto,
    *,
    data: bytes = HELLO,
    timeout: float = 1.0,
    source_port: int = 0,
) -> ConnectResult:
    """Connect from `netns`, send `data`, wait for a reply, close; `timeout` seconds for the whole.

    What the network does is the result; bad arguments raise. A connection from a `source_port` is
    reset at the end, so that the port can be used again at once.
    """
    address, wanted = parse_address(dst), single_port(port)
    deadline = time.monotonic() + timeout
    with _client_socket(netns, address.version, wanted.protocol, source_port) as sock:
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        try:
            rtt = _handshake(sock, address, wanted, timeout)
        except OSError as error:
            return ConnectResult(False, _failure(error))
        left = max(0.001, deadline - time.monotonic())
        result = Connection(sock, rtt).exchange(data, timeout=left)
    return attrs.evolve(result, rtt=rtt) if result.ok and rtt is not None else result


def dial(
    netns: NetNS,
    dst: AddressLike,
    port: str | PortProto,
    *,
    timeout: float = 1.0,
    source_port: int = 0,
) -> Connection:
    """Connect from `netns` and keep the connection; `KernelError` if it does not come about.

    Dialling UDP always succeeds, since no packet is sent.
    """
    address, wanted = parse_address(dst), single_port(port)
    sock = _client_socket(netns, address.version, wanted.protocol, source_port)
    try:
        return Connection(sock, _handshake(sock, address, wanted, timeout))
    except OSError as error:
        sock.close()
        code = error.errno or errno.ETIMEDOUT
        raise KernelError(code, f"{netns.name} cannot connect to {address} {wanted}") from error
    except BaseException:
        sock.close()
        raise


def ping(
    netns: NetNS, dst: AddressLike, *, timeout: float = 1.0, payload: bytes = bytes(56)
) -> ConnectResult:
    """One ICMP echo request from `netns`; `timeout` in seconds."""
    address = parse_address(dst)
    protocol = Protocol.ICMP if address.version == 4 else Protocol.ICMPv6
    kind = _ECHO_REQUEST4 if address.version == 4 else _ECHO_REQUEST6
    # RFC 792: type, code, checksum, identifier, sequence; the kernel fills checksum and identifier
    request = struct.pack("!BBHHH", kind, 0, 0, 0, 1) + payload
    with open_socket(netns, address.version, protocol) as sock:
        _report_icmp_errors(sock, address.version, True)
        sock.settimeout(timeout)
        start = time.monotonic()
        try:
            sock.connect((str(address), 0))
            sock.send(request)
            reply = sock.recv(_RECEIVE_MAX)
        except OSError as error:
            return ConnectResult(False, _failure(error))
        return ConnectResult(True, rtt=time.monotonic() - start, reply=reply[8:])


def single_port(port: str | PortProto) -> PortProto:
    """One port of one transport protocol, or `InvalidError`.

    >>> single_port("8080/tcp").first
    8080
    """
    wanted = PortProto.parse(port)
    if wanted.first != wanted.last or wanted.protocol not in _SOCKET_KINDS:
        known = ", ".join(protocol.name for protocol in _SOCKET_KINDS)
        raise InvalidError(f"{port!s} is not one port of one of {known}; write 8080/TCP")
    return wanted


_SOCKET_KINDS = {
    Protocol.TCP: socket.SOCK_STREAM,
    Protocol.UDP: socket.SOCK_DGRAM,
    Protocol.SCTP: socket.SOCK_STREAM,
}


def open_socket(netns: NetNS, version: int, protocol: Protocol) -> socket.socket:
    """A socket of that protocol and IP version in `netns`; `FeatureError` if there are none."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        return netns.socket(family, _SOCKET_KINDS.get(protocol, socket.SOCK_DGRAM), protocol)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            name = f"{protocol} sockets"
            raise FeatureError(error.errno, f"this kernel has no {name}", name) from error
        raise KernelError(error.errno or 0, f"cannot open a {protocol} socket") from error


def _client_socket(
    netns: NetNS, version: int, protocol: Protocol, source_port: int
) -> socket.socket:
    sock = open_socket(netns, version, protocol)
    try:
        _report_icmp_errors(sock, version, True)
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0" if version == 4 else "::", source_port))
    except OSError as error:
        sock.close()
        raise ExistsError(f"source port {source_port} cannot be taken: {error.strerror}") from error
    return sock


def _handshake(
    sock: socket.socket, address: Address, port: PortProto, timeout: float
) -> float | None:
    """Connect; returns the seconds it took, or None where no packet is exchanged (UDP)."""
    start = time.monotonic()
    sock.setblocking(False)
    code = sock.connect_ex((str(address), port.first))
    if sock.type == socket.SOCK_DGRAM and code == 0:
        return None
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while code in (0, errno.EINPROGRESS):
        left = start + timeout - time.monotonic()
        if left <= 0 or not poll.poll(left * 1e3):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            _report_icmp_errors(sock, address.version, False)
            return time.monotonic() - start
    raise OSError(code, os.strerror(code))


def _report_icmp_errors(sock: socket.socket, version: int, on: bool) -> None:
    """Have a socket report every ICMP error at once, not only those that are final.

    It also wakes who waits for TCP's handshake when the error came while connect() still held the
    socket, which else nobody hears of (Linux tcp_v6_err, sk_err_soft).
    """
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, on)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, on)


def _failure(error: OSError) -> Failure:
    if isinstance(error, TimeoutError):
        return "timeout"
    failure = _FAILURES.get(error.errno or 0)
    if failure is None:
        raise KernelError(error.errno or 0, "a probe failed in a way that no network causes")
    return failure
