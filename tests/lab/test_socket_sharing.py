"""One set of services for packets at a device and for sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pyciliumlib import errors
from pyciliumlib.datapath import Datapath
from pyciliumlib.lab import Host
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service, ServiceKey
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer, SocketBalancer
from pyciliumlib.loadbalancer.program.kernel_balancer import KernelBalancer
from pyciliumlib.net import Netlink
from pyciliumlib.types import parse_address
from tests import cgroups
from tests.lab import scenes, socket_scene
from tests.lab.socket_scene import (
    SIZES,
    VIP,
    Client,
    Scene,
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with socket_scene.scene() as made:
        yield made


@pytest.fixture
def both(scene: Scene) -> Iterator[tuple[LoadBalancer, SocketBalancer]]:
    """A balancer at the node's device, and one at sockets that shares its services."""
    config = LoadBalancerConfig(
        "maglev", "dsr", "ipip", acceleration="generic", table_size=251, socket_terminate=True
    )
    with scene.node.call(lambda: LoadBalancer("eth0", config=config, sizes=SIZES)) as packets:
        with scene.node.call(lambda: SocketBalancer(scene.cgroup, share=packets)) as at_sockets:
            yield packets, at_sockets


def test_shared_services(scene: Scene, both: tuple[LoadBalancer, SocketBalancer]) -> None:
    """One change serves a client outside by packets and one inside at its socket."""
    packets, at_sockets = both
    vip = "203.0.113.10"
    with contextlib.ExitStack() as stack:
        for pod in scene.backends:
            side = pod.call(lambda: DSRBackend("eth0", [vip], acceleration="generic"))
            stack.callback(side.close)
            address = [parse_address(vip)]
            server = pod.lab.servers.serve(pod.netns, pod.name, address, "8080/TCP", pod.name)
            stack.callback(server.close)
        world = stack.enter_context(scene.lab.outside("world"))
        with Netlink(world.netns) as netlink:
            netlink.add_route(vip, via=scene.node.ip4, dev="eth0")
        world.run(["ethtool", "-K", "eth0", "tx", "off"], check=True)
        backends = [f"{pod.ip4}:8080" for pod in scene.backends]
        at_sockets.upsert(Service("web", [f"{vip}:8080"], backends))
        assert packets.services == at_sockets.services
        inside = set()
        for _ in range(30):
            with Client(scene.client, "IPv4").connect(vip, 8080) as client:
                inside.add(client.ask())
        assert from_outside(world, vip) == inside == {"b1", "b2", "b3"}
        packets.drain(backends[0])
        assert len(at_sockets.where(f"{vip}:8080").candidates) == 2
        assert from_outside(world, vip) == {"b2", "b3"}
        assert sum(c.packets for c in packets.service_counts().values()) > 100
        assert sum(at_sockets.service_counts().values()) == 30


def from_outside(world: Host, address: str) -> set[str]:
    """Who answers a client whose socket is in no balancer's cgroup."""
    with cgroups.outside():
        return {world.connect(address, "8080/TCP").reply.decode().strip() for _ in range(30)}


def test_with_a_datapath(scene: Scene) -> None:
    """The datapath's services, at the sockets of its pods: policy sees the backend's packets."""
    policy = scenes.policy(
        "b1", {"app": "b1"}, ingress=[{**scenes.apps("from", "client"), **scenes.ports("8080/TCP")}]
    )
    with Datapath(scene.node) as dp:
        for pod in (scene.client, scene.other, *scene.backends):
            dp.add_endpoint(pod.name, labels={"app": pod.name}, pod=pod)
        dp.policy.apply(policy)
        with scene.node.call(lambda: SocketBalancer(scene.cgroup, share=dp.services)) as at_sockets:
            dp.services.upsert(scene.service("TCP", 1))
            with Client(scene.client, "IPv4").connect() as client:
                assert client.ask() == "b1"
                assert client.peer == (VIP[4], 80)
            with Client(scene.other, "IPv4") as client, pytest.raises(TimeoutError):
                client.sock.settimeout(0.3)
                client.connect()
            assert sum(at_sockets.service_counts().values()) == 2
            assert {count.packets for count in dp.services.service_counts().values()} == {0}
            with cgroups.outside(), Client(scene.client, "IPv4") as client:
                assert client.connect().ask() == "b1"
            assert sum(count.packets for count in dp.services.service_counts().values()) > 0


def test_both_must_be_able_to_serve(both: tuple[LoadBalancer, SocketBalancer]) -> None:
    """What one of them cannot serve is refused, whoever is asked."""
    packets, at_sockets = both
    other_port = Service("web", ["203.0.113.10:80"], ["10.244.1.3:8080"], dispatch="ipip")
    for balancer in both:
        with pytest.raises(errors.ServiceError, match="cannot change a port"):
            balancer.upsert(other_port)
    at_sockets.close()
    packets.upsert(Service("web", ["203.0.113.10:80"], ["10.244.1.3:80"]))
    assert list(map(str, packets.services)) == ["default/web"]


class Picky(KernelBalancer):
    """Can serve nothing."""

    def _refusals(self, service: Service) -> Iterator[str]:
        yield f"{service.key}: not for me"

    def service_counts(self) -> dict[ServiceKey, int]:
        return {}

    def _applied(self, applied: Applied) -> None:
        raise AssertionError("it was never asked to serve anything")


def test_who_joins_must_be_able_to_serve(both: tuple[LoadBalancer, SocketBalancer]) -> None:
    """What is there already is asked about, too; who cannot is not among the balancers."""
    packets, _ = both
    packets.upsert(Service("web", ["203.0.113.10:80"], ["10.244.1.3:80"]))
    with pytest.raises(errors.ServiceError, match="not for me"):
        Picky()._join(packets._held)
    packets.delete("default/web")


def test_the_owner_closes_last(scene: Scene, both: tuple[LoadBalancer, SocketBalancer]) -> None:
    """Afterwards the other can change nothing, and says why."""
    packets, at_sockets = both
    packets.close()
    with pytest.raises(errors.ClosedError, match="LoadBalancer at eth0"):
        at_sockets.upsert(Service("web", ["203.0.113.10:80"], []))


def test_sharing_takes_all(scene: Scene, both: tuple[LoadBalancer, SocketBalancer]) -> None:
    """Config and node belong to the services."""
    with pytest.raises(errors.InvalidError, match="shared"):
        SocketBalancer(scene.cgroup, share=both[0], config=LoadBalancerConfig())
