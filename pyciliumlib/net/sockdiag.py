"""Sockets of a namespace that have a peer: listed, and ended from outside.

Over netlink's sock_diag(7). pyroute2's client of it lists, but cannot end, and tells no errors.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import Final

from attrs import field, frozen

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import FeatureError
from pyciliumlib.net._errors import kernel_error
from pyciliumlib.net.netns import NetNS
from pyciliumlib.types import Address, Protocol

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
#: States of TCP (include/net/tcp_states.h) in which there is a peer; UDP's connected are in the
#: first. Those in TIME_WAIT have no owner any more.
_CONNECTED: Final = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11))
_HEADER: Final = struct.Struct("=IHHII")
#: struct inet_diag_req_v2 and the beginning of inet_diag_msg, before their struct inet_diag_sockid.
_REQUEST: Final = struct.Struct("=BBBxI")
_MESSAGE: Final = struct.Struct("=BBBB")
_ID: Final = struct.Struct("!2s2s16s16s4s")
_ID_SIZE: Final = 48
#: INET_DIAG_NOCOOKIE
_ANY_COOKIE: Final = b"\xff" * 8
_NOWHERE: Final = ipaddress.IPv4Address(0)
_RECEIVE: Final = 1 << 18


@frozen
class ConnectedSocket:
    """A socket with a peer; `cookie` is the number by which BPF programs know it."""

    protocol: Protocol
    family: int
    cookie: int
    peer: tuple[Address, int]
    _id: bytes = field(repr=False)


class SocketDiag(Closeable):
    """A client of sock_diag in one namespace.

    Needs CAP_NET_ADMIN there to end sockets, and a kernel with CONFIG_INET_DIAG_DESTROY.
    """

    def __init__(self, netns: NetNS) -> None:
        self._socket = netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def connected(self, protocol: Protocol) -> list[ConnectedSocket]:
        """The TCP or UDP sockets that have a peer, of both families."""
        found = []
        for family in _FAMILIES:
            request = _REQUEST.pack(family, protocol, 0, _CONNECTED) + bytes(_ID_SIZE)
            found += self._ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request)
        return [_decode(protocol, message) for message in found]

    def destroy(self, found: ConnectedSocket) -> bool:
        """End a socket: its owner gets ECONNABORTED. False if it was closed meanwhile.

        Raises FeatureError if this kernel cannot, PrivilegeError.
        """
        head = _REQUEST.pack(found.family, found.protocol, 0, _CONNECTED)
        try:
            self._ask(SOCK_DESTROY, NLM_F_ACK, head + found._id)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno == errno.EOPNOTSUPP:
                raise FeatureError(
                    errno.EOPNOTSUPP,
                    "cannot end a socket: the kernel was built without CONFIG_INET_DIAG_DESTROY",
                    "sock_destroy",
                ) from error
            raise kernel_error(error.errno or 0, "ending a socket") from error
        return True

    def _ask(self, kind: int, flags: int, request: bytes) -> list[bytes]:
        """The messages of the whole answer; OSError with the kernel's errno."""
        size = _HEADER.size + len(request)
        self._socket.send(_HEADER.pack(size, kind, NLM_F_REQUEST | flags, 0, 0) + request)
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(_RECEIVE)
            while data:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[length + -length % 4 :]
                if answer == NLMSG_DONE:
                    return answers
                if answer == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message)
                    if code:
                        raise OSError(-code, "sock_diag")
                    return answers
                answers.append(message)

    def close(self) -> None:
        """Close the client; again is no error."""
        self._socket.close()


def check_can_destroy(netns: NetNS) -> None:
    """Try it on a socket made for that; FeatureError if this kernel cannot, PrivilegeError."""
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim, SocketDiag(netns) as diag:
        victim.bind(("", 0))
        port = struct.pack("!H", victim.getsockname()[1])
        number = _ID.pack(port, bytes(2), bytes(16), bytes(16), bytes(4)) + _ANY_COOKIE
        diag.destroy(ConnectedSocket(Protocol.UDP, socket.AF_INET, 0, (_NOWHERE, 0), number))


def _decode(protocol: Protocol, message: bytes) -> ConnectedSocket:
    family = _MESSAGE.unpack_from(message)[0]
    number = message[_MESSAGE.size : _MESSAGE.size + _ID_SIZE]
    _, port, _, peer, _ = _ID.unpack_from(number)
    (cookie,) = struct.unpack_from("=Q", number, _ID_SIZE - 8)
    address: Address = ipaddress.IPv4Address(peer[:4])
    if family == socket.AF_INET6:
        ipv6 = ipaddress.IPv6Address(peer)
        address = ipv6.ipv4_mapped or ipv6
    return ConnectedSocket(protocol, family, cookie, (address, int.from_bytes(port, "big")), number)
