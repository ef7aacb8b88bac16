"""CiliumLocalRedirectPolicies with real traffic: of pods by their packets, and of sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from pyciliumlib.datapath import Datapath, DatapathConfig
from pyciliumlib.errors import ServiceError
from pyciliumlib.lab import Host, Lab, Pod
from pyciliumlib.loadbalancer import LocalNode, Placement, Service, Why, read_services
from pyciliumlib.loadbalancer.program import SocketBalancer
from tests import cgroups
from tests.lab.scenes import at
from tests.lab.socket_scene import at as written

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
#: Where there really is somebody, outside; and a service's own address.
METADATA = {4: "169.254.169.254", 6: "fd00:ec2::254"}
VIP = {4: "10.96.0.53", 6: "fd00:96::53"}
HERE = LocalNode("n1")
#: Of those outside and of services; of the pods that stand before them.
PORT, OWN = 53, 5353


@frozen
class Place:
    """A node with a client, two caches that may be redirected to, and a server of a service."""

    balancer: Any
    client: Pod
    caches: tuple[Pod, Pod]
    server: Pod

    def apply(self, *documents: dict[str, Any], ready: tuple[bool, bool] = (True, False)) -> None:
        """These, beside the pods as they are now."""
        pods = [pod(cache, one) for cache, one in zip(self.caches, ready, strict=True)]
        self.balancer.apply(read_services([*documents, *pods], node=HERE).services)

    def who(self, address: str, protocol: str, client: Host | None = None) -> set[str]:
        """Who answers the client; or why nobody does."""
        found = set()
        for _ in range(16):
            result = (client or self.client).connect(address, f"{PORT}/{protocol}")
            found.add(result.reply.decode().strip() if result.ok else result.error)
        return found

    def where(self, version: int, address: str) -> Placement:
        if isinstance(self.balancer, SocketBalancer):
            found: Placement = self.balancer.where(written(address, PORT, "TCP"))
            return found
        client = written(at(self.client, version), 40000, "TCP").partition("/")[0]
        placed: Placement = self.balancer.where(client, written(address, PORT, "TCP"))
        return placed


def pod(host: Pod, ready: bool) -> dict[str, Any]:
    ports = [{"name": p.lower(), "containerPort": OWN, "protocol": p} for p in ("TCP", "UDP")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": host.name, "labels": {"app": "cache"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "cache", "ports": ports}]},
        "status": {
            "podIPs": [{"ip": str(host.ip4)}, {"ip": str(host.ip6)}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def redirect(frontend: dict[str, Any], name: str = "cache", **fields: Any) -> dict[str, Any]:
    named = [{"name": p.lower(), "port": str(OWN), "protocol": p} for p in ("TCP", "UDP")]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name},
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": "cache"}}, "toPorts": named,
            },
            **fields,
        },
    }  # fmt: skip


def of_address(version: int, **fields: Any) -> dict[str, Any]:
    ports = [{"name": p.lower(), "port": str(PORT), "protocol": p} for p in ("TCP", "UDP")]
    matcher = {"addressMatcher": {"ip": METADATA[version], "toPorts": ports}}
    return redirect(matcher, f"cache-{version}", **fields)


def dns(server: Pod) -> list[dict[str, Any]]:
    """A Service of both families that the pod `server` serves."""
    made: list[dict[str, Any]] = [{
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"},
        "spec": {
            "clusterIPs": list(VIP.values()),
            "ports": [
                {"name": p.lower(), "port": PORT, "targetPort": OWN, "protocol": p}
                for p in ("TCP", "UDP")
            ],
        },
    }]  # fmt: skip
    for family, address in (("IPv4", server.ip4), ("IPv6", server.ip6)):
        labels = {"kubernetes.io/service-name": "dns"}
        made.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": f"dns-{family.lower()}", "labels": labels},
            "addressType": family, "endpoints": [{"addresses": [str(address)]}],
            "ports": [
                {"name": p.lower(), "port": OWN, "protocol": p} for p in ("TCP", "UDP")
            ],
        })  # fmt: skip
    return made


OF_SERVICE = {"serviceMatcher": {"serviceName": "dns", "namespace": "default"}}


@contextmanager
def pods(lab: Lab) -> Iterator[tuple[Pod, ...]]:
    """A client, two caches and a server; outside, who has the address itself."""
    node = lab.node()
    cloud = lab.outside("cloud", ip4=METADATA[4], ip6=METADATA[6])
    made = tuple(node.pod(name) for name in ("client", "near", "second", "server"))
    for protocol in ("TCP", "UDP"):
        cloud.serve(f"{PORT}/{protocol}")
        for one in made[1:]:
            one.serve(f"{OWN}/{protocol}")
    yield made


@contextmanager
def datapath() -> Iterator[Place]:
    with Lab() as lab, pods(lab) as (client, near, second, server):
        with Datapath(lab.nodes["n1"], config=DatapathConfig(local_node=HERE)) as dp:
            for one in (client, near, second, server):
                dp.add_endpoint(one.name, labels={"app": one.name}, pod=one)
            yield Place(dp.services, client, (near, second), server)


@contextmanager
def sockets() -> Iterator[Place]:
    with Lab() as lab, cgroups.cgroup() as group, cgroups.inside(group):
        with pods(lab) as (client, near, second, server):
            node = lab.nodes["n1"]
            with node.call(lambda: SocketBalancer(group, node=HERE)) as balancer:
                yield Place(balancer, client, (near, second), server)


@pytest.mark.parametrize("ready", [True, False])
def test_the_next_process(ready: bool) -> None:
    """Redirects outlive their process, and are the next one's to change.

    Here, before there is a `SocketBalancer` for the process of the tests.
    """
    root = Path(f"/sys/fs/bpf/pcl-redirect-{os.getpid()}")
    with Lab() as lab, pods(lab) as (client, near, second, server):
        del second, server
        node = lab.nodes["n1"]
        config = DatapathConfig(local_node=HERE)
        services = read_services([of_address(4), pod(near, True)], node=HERE).services
        first = Datapath(node, config=config, pin_root=root)
        try:
            for one in (client, near):
                first.add_endpoint(one.name, labels={"app": one.name}, pod=one)
            first.services.apply(services)
            if not ready:
                first.services.quarantine(written(near.ip4, OWN, "TCP"))
        finally:
            first.keep()
        with Datapath.open(root, node, config=config) as dp:
            expected = "near" if ready else "cloud"
            assert client.connect(METADATA[4], f"{PORT}/TCP").reply == f"{expected}\n".encode()
            assert not dp.drift()
            dp.services.restore(written(near.ip4, OWN, "TCP"))
            assert client.connect(METADATA[4], f"{PORT}/TCP").reply == b"near\n"
            dp.services.apply(list[Service]())
            assert client.connect(METADATA[4], f"{PORT}/TCP").reply == b"cloud\n"


@pytest.fixture(scope="module", params=[datapath, sockets], ids=["packets", "sockets"])
def shared(request: pytest.FixtureRequest) -> Iterator[Place]:
    with request.param() as made:
        yield made


@pytest.fixture
def place(shared: Place) -> Place:
    shared.balancer.apply([])
    return shared


@VERSIONS
@PROTOCOLS
@pytest.mark.smoke
def test_an_address(place: Place, version: int, protocol: str) -> None:
    """The ready pods on the node answer; when there is none any more, the address itself does."""
    to = METADATA[version]
    assert place.who(to, protocol) == {"cloud"}
    place.apply(of_address(version))
    assert place.who(to, protocol) == {"near"}
    assert place.where(version, to).redirect == f"default/cache-{version}"
    place.apply(of_address(version), ready=(True, True))
    assert place.who(to, protocol) == {"near", "second"}
    place.apply(of_address(version), ready=(False, False))
    assert place.who(to, protocol) == {"cloud"}
    assert place.where(version, to).why is Why.NO_SERVICE


@VERSIONS
@PROTOCOLS
def test_a_service(place: Place, version: int, protocol: str) -> None:
    """Its ClusterIP is served on the node, and by its own backends where nobody there is ready."""
    documents = dns(place.server)
    place.apply(*documents)
    assert place.who(VIP[version], protocol) == {"server"}
    place.apply(*documents, redirect(OF_SERVICE))
    assert place.who(VIP[version], protocol) == {"near"}
    place.apply(*documents, redirect(OF_SERVICE), ready=(False, False))
    assert place.who(VIP[version], protocol) == {"server"}


@VERSIONS
def test_other_ports_of_the_address(place: Place, version: int) -> None:
    """They are nobody's business: the address is no service's."""
    place.apply(of_address(version))
    result = place.client.connect(METADATA[version], "54/TCP")
    assert result.error == "refused"  # by the host outside, where nobody listens


@VERSIONS
def test_quarantine(place: Place, version: int) -> None:
    """A pod that is quarantined takes nothing; the last one leaves the address to itself."""
    place.apply(of_address(version), ready=(True, True))
    near, second = (written(at(cache, version), OWN, "TCP") for cache in place.caches)
    place.balancer.quarantine(near)
    assert place.who(METADATA[version], "TCP") == {"second"}
    place.balancer.quarantine(second)
    assert place.who(METADATA[version], "TCP") == {"cloud"}
    place.balancer.restore(near, second)
    assert place.who(METADATA[version], "TCP") == {"near", "second"}


@VERSIONS
def test_connections_stay(place: Place, version: int) -> None:
    """One to the service's own backend goes on when the redirect comes; new ones are redirected."""
    documents = dns(place.server)
    place.apply(*documents)
    with place.client.dial(VIP[version], f"{PORT}/TCP") as connection:
        assert connection.exchange().reply == b"server\n"
        place.apply(*documents, redirect(OF_SERVICE))
        assert place.who(VIP[version], "TCP") == {"near"}
        assert connection.exchange().reply == b"server\n"


def test_exceptions_are_refused(place: Place) -> None:
    """skipRedirectFromBackend is not there yet: an error, and what was there stays."""
    place.apply(of_address(4))
    with pytest.raises(ServiceError, match="skipRedirectFromBackend"):
        place.apply(of_address(4, skipRedirectFromBackend=True))
    assert place.who(METADATA[4], "TCP") == {"near"}
