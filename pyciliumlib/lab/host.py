"""What nodes, pods and hosts outside have in common: a namespace, addresses, programs, probes."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, LabError
from pyciliumlib.lab import client
from pyciliumlib.lab.client import HELLO, Connection, ConnectResult
from pyciliumlib.lab.processes import kill_all_in, terminate
from pyciliumlib.lab.server import Reply, Server
from pyciliumlib.net import NetNS, delete_netns
from pyciliumlib.types import Address, AddressLike, PortProto

if TYPE_CHECKING:
    from pyciliumlib.lab.lab import Lab

T = TypeVar("T")


class Host(Closeable):
    """A network namespace of a lab that real programs and sockets live in."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        netns: NetNS,
        ip4: ipaddress.IPv4Address,
        ip6: ipaddress.IPv6Address,
    ) -> None:
        """Made by a `Lab` or a `Node`, which own it."""
        self.lab = lab
        self.name = name
        self.netns = netns
        self.ip4 = ip4
        self.ip6 = ip6
        self._processes: list[subprocess.Popen[Any]] = []
        self._servers: list[Server] = []
        self._closed = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses that servers of this host listen on."""
        return (self.ip4, self.ip6)

    # -- programs ----------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[object],
        *,
        timeout: float = 30.0,
        check: bool = False,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end, and return its output as text.

        `LabError` if it cannot be started, takes longer than `timeout` seconds (it is killed
        then), or, with `check`, fails.
        """
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        process = self.popen(argv, stdin=stdin, stdout=pipe, stderr=pipe, text=True)
        try:
            out, err = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{_line(argv)} on {self.name} did not end within {timeout:g} s and was killed"
            ) from None
        finally:
            terminate([process])
            self._processes.remove(process)
        if check and process.returncode != 0:
            said = err.strip() or out.strip() or "it said nothing"
            raise LabError(
                f"{_line(argv)} on {self.name} failed with status {process.returncode}: {said}"
            )
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def popen(self, argv: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        """Start a program here; it is ended with the host. `options` are `subprocess.Popen`'s."""
        self._check_open()
        process = self.lab.spawner.spawn(self.netns, argv, **options)
        self._processes.append(process)
        return process

    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn()` in this namespace, in a thread of its own; see `NetNS.call`."""
        self._check_open()
        return self.netns.call(fn)

    # -- sockets -----------------------------------------------------------------------------

    def serve(self, port: str | PortProto, reply: Reply | None = None) -> Server:
        """Listen on `port` ("8080/TCP", "53/UDP") of all addresses and answer each request.

        The default answer is the name of the host. `ExistsError` if the port is taken.
        """
        self._check_open()
        answer = f"{self.name}\n" if reply is None else reply
        server = self.lab.servers.serve(self.netns, self.name, self.addresses, port, answer)
        self._servers.append(server)
        return server

    def connect(
        self,
        dst: AddressLike,
        port: str | PortProto,
        *,
        data: bytes = HELLO,
        timeout: float = 1.0,
        source_port: int = 0,
    ) -> ConnectResult:
        """Connect to `dst`, send `data`, wait for the reply, close; at most `timeout` seconds.

        What the network does to it is the result and never an exception.
        """
        self._check_open()
        return client.connect(
            self.netns, dst, port, data=data, timeout=timeout, source_port=source_port
        )

    def dial(
        self,
        dst: AddressLike,
        port: str | PortProto,
        *,
        timeout: float = 1.0,
        source_port: int = 0,
    ) -> Connection:
        """Connect to `dst` and keep the connection open; the caller closes it.

        `KernelError` if it does not come about within `timeout` seconds.
        """
        self._check_open()
        return client.dial(self.netns, dst, port, timeout=timeout, source_port=source_port)

    def ping(
        self, dst: AddressLike, *, timeout: float = 1.0, payload: bytes = bytes(56)
    ) -> ConnectResult:
        """Send one ICMP or ICMPv6 echo request and wait `timeout` seconds for the reply."""
        self._check_open()
        return client.ping(self.netns, dst, timeout=timeout, payload=payload)

    # -- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the host from the lab; again is no error."""
        if not self._closed:
            self._detach()
            kill_all_in({self.netns.inode})
            self.release()
            delete_netns(str(self.netns.name))

    def release(self) -> None:
        """End servers and programs and close what is open here; the namespace stays.

        The lab removes all its namespaces together, which is much faster than one by one.
        """
        if self.lab.servers.running:
            for server in self._servers:
                server.close()
        self._servers.clear()
        terminate(self._processes)
        self._processes.clear()
        self.netns.close()
        self._closed = True

    def _detach(self) -> None:
        """Remove at once what others hold of this host: devices, routes, its addresses."""

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} is closed")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.ip4} {self.ip6}>"


def _line(argv: Sequence[object]) -> str:
    return " ".join(map(str, argv))
