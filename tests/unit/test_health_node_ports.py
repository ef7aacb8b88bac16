"""What a health check node port says: the endpoints of this node, each counted once."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import ExistsError
from pyciliumlib.loadbalancer import Backend, LocalNode, Service
from pyciliumlib.loadbalancer.health import LocalEndpoints
from pyciliumlib.loadbalancer.health.node_ports import local_endpoints

NODE = LocalNode("n1")


def service(port_name: str = "", port: int = 80, **options: Any) -> Service:
    states = {1: ("n1", "active"), 2: ("n2", "active"), 3: ("n1", "quarantined"),
              4: ("n1", "terminating"), 5: ("n1", "active")}  # fmt: skip
    backends = [
        Backend(f"10.0.0.{n}", 8000 + port, node=node, state=state)
        for n, (node, state) in states.items()
    ]
    fields = {"external_policy": "Local", "health_port": 32100, **options}
    return Service("web", [f"203.0.113.10:{port}"], backends, port_name=port_name, **fields)


def test_local_endpoints() -> None:
    """Those on this node that take connections, over all ports of the service."""
    both = [service("http", 80), service("https", 443)]
    assert local_endpoints(both, NODE) == {32100: LocalEndpoints("default", "web", 2)}
    assert local_endpoints(both, LocalNode("n3")) == {32100: LocalEndpoints("default", "web", 0)}


def test_only_where_the_policy_is_local() -> None:
    """Else every node serves it, and nobody asks."""
    assert local_endpoints([service(external_policy="Cluster")], NODE) == {}
    assert local_endpoints([service(health_port=0)], NODE) == {}


def test_two_services_of_one_port() -> None:
    """Both are named."""
    other = Service("b", ["203.0.113.11:80"], health_port=32100, external_policy="Local")
    with pytest.raises(ExistsError, match="32100 of default/b is default/web's"):
        local_endpoints([service(), other], NODE)


@pytest.mark.parametrize(("count", "status"), [(0, b"503 Service Unavailable"), (2, b"200 OK")])
def test_responses(count: int, status: bytes) -> None:
    """The form that kube-proxy's has."""
    head, _, body = LocalEndpoints("ns", "web", count).response().partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 " + status
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.decode() == (
        '{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "web"\n\t},\n'
        f'\t"localEndpoints": {count},\n\t"serviceProxyHealthy": true\n}}'
    )
