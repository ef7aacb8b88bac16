"""The health check node ports of services with externalTrafficPolicy Local.

A load balancer in front of the nodes asks there whether this node has endpoints of the service, and
sends it no connections where it has none. Answers are those of kube-proxy (KEP-3458 and
https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Protocol

from attrs import define, field, frozen

from pyciliumlib.errors import ExistsError
from pyciliumlib.loadbalancer.backend import BackendState
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.health.checks import MakeSocket
from pyciliumlib.loadbalancer.health.tasks import Tasks
from pyciliumlib.loadbalancer.kinds import TrafficPolicy
from pyciliumlib.loadbalancer.service import Service, ServiceKey
from pyciliumlib.types import Address

#: Seconds between looks at which services there are.
_LOOK: Final = 1.0
#: Seconds in which a request has to come, and how long it may be.
_PATIENCE: Final = 5.0
_REQUEST_MAX: Final = 16384
_BACKLOG: Final = 128
_WILDCARDS: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))


class Serving(Protocol):
    """What has services in force: a `LoadBalancer`, for one."""

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        """The services by their keys, with their backends' states."""


@frozen
class LocalEndpoints:
    """How many endpoints of a service are on this node."""

    namespace: str
    name: str
    count: int

    def response(self) -> bytes:
        """The HTTP response; 200 if there are any, else 503."""
        about = {
            "service": {"namespace": self.namespace, "name": self.name},
            "localEndpoints": self.count,
            "serviceProxyHealthy": True,
        }
        body = json.dumps(about, indent="\t")
        return (
            f"HTTP/1.1 {'200 OK' if self.count else '503 Service Unavailable'}\r\n"
            "Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
            f"X-Load-Balancing-Endpoint-Weight: {self.count}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        ).encode()


def local_endpoints(services: Iterable[Service], node: LocalNode) -> dict[int, LocalEndpoints]:
    """What each health check node port says on this node.

    Endpoints are addresses, each counted once, whatever the ports. Raises ExistsError where two
    services have one port.
    """
    addresses: dict[tuple[int, str, str], set[Address]] = {}
    for service in services:
        if service.health_port and service.external_policy is TrafficPolicy.LOCAL:
            found = addresses.setdefault(
                (service.health_port, service.namespace, service.name), set()
            )
            found.update(
                backend.address
                for backend in service.backends
                if backend.node == node.name and backend.state is BackendState.ACTIVE
            )
    ports: dict[int, LocalEndpoints] = {}
    for (port, namespace, name), found in addresses.items():
        there = ports.setdefault(port, LocalEndpoints(namespace, name, len(found)))
        if (there.namespace, there.name) != (namespace, name):
            raise ExistsError(
                f"health check node port {port} of {namespace}/{name} is "
                f"{there.namespace}/{there.name}'s already"
            )
    return ports


@define(eq=False)
class _Port:
    """A port that answers, or why it does not."""

    endpoints: LocalEndpoints
    servers: list[asyncio.Server] = field(factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whatever is asked, say how many there are."""
        with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError,
                                 asyncio.LimitOverrunError):  # fmt: skip
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
            writer.write(self.endpoints.response())
            await asyncio.wait_for(writer.drain(), _PATIENCE)
        writer.close()

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.servers.clear()


class HealthNodePorts:
    """Serves the health check node ports of a balancer's services.

        async with HealthNodePorts(balancer, balancer.node):
            ...

    A port that somebody else has is tried again each second; `failed` says so.
    """

    def __init__(
        self, balancer: Serving, node: LocalNode, *, make_socket: MakeSocket = socket.socket
    ) -> None:
        """Answer on all addresses of the network namespace in which `make_socket` makes sockets."""
        self._balancer, self._node = balancer, node
        self._make_socket = make_socket
        self._tasks = Tasks()
        self._ports: dict[int, _Port] = {}
        self._failed: dict[int, OSError] = {}

    @property
    def answers(self) -> dict[int, LocalEndpoints]:
        """What the ports say that are open."""
        return {port: found.endpoints for port, found in self._ports.items()}

    @property
    def failed(self) -> dict[int, OSError]:
        """Ports that could not be opened, and why."""
        return dict(self._failed)

    async def _follow(self) -> None:
        while True:
            wanted = local_endpoints(self._balancer.in_force.values(), self._node)
            for number in self._ports.keys() - wanted.keys():
                self._ports.pop(number).close()
            self._failed.clear()
            for number, endpoints in wanted.items():
                if number in self._ports:
                    self._ports[number].endpoints = endpoints
                    continue
                port = _Port(endpoints)
                try:
                    await self._open(port, number)
                except OSError as error:
                    port.close()
                    self._failed[number] = error
                else:
                    self._ports[number] = port
            await asyncio.sleep(_LOOK)

    async def _open(self, port: _Port, number: int) -> None:
        for family, address in _WILDCARDS:
            try:
                made = self._make_socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
                    continue
                raise
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind((address, number))
                server = await asyncio.start_server(
                    port.answer, sock=made, limit=_REQUEST_MAX, backlog=_BACKLOG
                )
            except BaseException:
                made.close()
                raise
            port.servers.append(server)

    async def __aenter__(self) -> HealthNodePorts:
        await self._tasks.__aenter__()
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
            for port in self._ports.values():
                port.close()
            self._ports.clear()

    def __repr__(self) -> str:
        return f"<HealthNodePorts {', '.join(map(str, self._ports)) or 'none'}>"
