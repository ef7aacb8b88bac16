"""Pods reach services: real connections to pods, to hosts outside, to the node, and to oneself."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from attrs import frozen
from scapy.layers.dns import DNS, DNSQR, DNSRR

import pyciliumlib as pcl
from pyciliumlib.datapath import DatapathConfig
from pyciliumlib.errors import ServiceError, StateError
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Host, Lab
from pyciliumlib.lab.server import Server
from pyciliumlib.loadbalancer import (
    Backend,
    Frontend,
    LoadBalancerConfig,
    Service,
    ServiceKey,
    Why,
)
from tests.lab import scenes
from tests.lab.scenes import SILENCE, VERSIONS, Scene, at

VIP = {4: "10.96.0.10", 6: "fd96::10"}
NO_BACKEND = DropReason.NO_SERVICE_BACKEND


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Scene]:
    with scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """No services, no flows; everything is allowed."""
    shared.dp.services.apply([])
    shared.dp.conntrack.flush()
    shared.drain()
    yield shared
    shared.no_policy()


@frozen
class By:
    """A service of one family and its address, which pods ask for."""

    version: int
    protocol: str = "TCP"

    @property
    def vip(self) -> str:
        return VIP[self.version]

    @property
    def port(self) -> str:
        """The service's, which is no backend's."""
        return f"8080/{self.protocol}"

    @property
    def target(self) -> int:
        return {"TCP": 80, "UDP": 53, "SCTP": 8080}[self.protocol]

    def backends(self, *hosts: Host) -> list[Backend]:
        return [Backend(at(host, self.version), self.target, self.protocol) for host in hosts]

    def service(self, *hosts: Host, **options: object) -> Service:
        frontend = Frontend(self.vip, 8080, self.protocol, "ClusterIP")
        return Service("web", [frontend], self.backends(*hosts), **options)  # type: ignore[arg-type]

    def ask(self, client: Host, **options: float) -> str:
        """Who answers; or why nobody does."""
        result = client.connect(self.vip, self.port, **options)  # type: ignore[arg-type]
        return result.reply.decode().strip() if result.ok else result.error

    def who(self, client: Host, times: int = 24) -> Counter[str]:
        return Counter(self.ask(client) for _ in range(times))


def of_api(scene: Scene, protocol: str) -> Server:
    """The server of the pod `api` that backends of `By` are."""
    (found,) = (one for one in scene.api._servers if str(one.port) in ("80/TCP", "53/UDP")
                and str(one.port).endswith(protocol))  # fmt: skip
    return found


PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP"])


# ---------------------------------------------------------------------- who serves


@VERSIONS
@PROTOCOLS
@pytest.mark.smoke
def test_backends_on_pods(scene: Scene, version: int, protocol: str) -> None:
    """Every one of them has its share, and sees the pod that asks."""
    by = By(version, protocol)
    scene.dp.services.upsert(by.service(scene.api, scene.db))
    met = by.who(scene.web, 40)
    assert set(met) == {"api", "db"}
    assert min(met.values()) > 5
    server = of_api(scene, protocol)
    assert {request.peer for request in server.requests} >= {at(scene.web, version)}
    assert scene.dp.services.service_counts()[ServiceKey("default", "web")].packets >= 40


@VERSIONS
@PROTOCOLS
def test_backends_elsewhere(scene: Scene, version: int, protocol: str) -> None:
    """A host outside, and the node itself: over the stack, both ways."""
    by = By(version, protocol)
    for host in (scene.world, scene.node):
        scene.dp.services.apply([by.service(host)])
        assert by.who(scene.web, 6) == {host.name: 6}


@VERSIONS
@PROTOCOLS
def test_a_pod_that_meets_itself(scene: Scene, version: int, protocol: str) -> None:
    """By an address that is not its own, whatever its policy says."""
    scene.dp.policy.apply(scenes.policy("shut", {"app": "api"}, ingress=[{}], egress=[{}]))
    scene.dp.policy.apply(
        scenes.policy("shut", {"app": "api"}, ingress=[apps_from("x")], egress=[apps_to("x")])
    )
    by = By(version, protocol)
    scene.dp.services.upsert(by.service(scene.api))
    assert by.who(scene.api, 6) == {"api": 6}
    server = of_api(scene, protocol)
    loopback = "169.254.42.1" if version == 4 else "fe80::1"
    assert str(server.requests[-1].peer).split("%")[0] == loopback
    assert by.ask(scene.web, timeout=SILENCE) == "timeout"


def apps_from(name: str) -> dict[str, object]:
    return scenes.apps("from", name)


def apps_to(name: str) -> dict[str, object]:
    return scenes.apps("to", name)


@VERSIONS
def test_node_ports(scene: Scene, version: int) -> None:
    """At the node's own address."""
    anywhere = "0.0.0.0" if version == 4 else "::"
    backends = By(version).backends(scene.api)
    scene.dp.services.upsert(Service("np", [Frontend(anywhere, 30080, type="NodePort")], backends))
    assert scene.web.connect(at(scene.node, version), "30080/TCP").reply == b"api\n"
    assert (
        scene.web.connect(at(scene.node, version), "81/TCP").reply
        == f"{scene.node.name}\n".encode()
    )


def test_ports_of_sctp_stay(scene: Scene) -> None:
    """A service that would change them is refused; the kernel here has no SCTP to try others."""
    backends = By(4, "SCTP").backends(scene.api)
    with pytest.raises(ServiceError, match="port of SCTP"):
        scene.dp.services.upsert(Service("s", [Frontend(VIP[4], 9, "SCTP")], backends))
    scene.dp.services.upsert(By(4, "SCTP").service(scene.api))


# ---------------------------------------------------------------------- policy


@VERSIONS
def test_policy_knows_backends_not_services(scene: Scene, version: int) -> None:
    """A backend that is forbidden is dropped, as if it had been asked by its own address."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api, scene.db))
    scene.dp.policy.apply(
        scenes.policy(
            "web", {"app": "web"}, egress=[{**scenes.apps("to", "api"), **scenes.ports("80/TCP")}]
        )
    )
    met = Counter(by.ask(scene.web, timeout=SILENCE) for _ in range(16))
    assert set(met) == {"api", "timeout"}
    drops = [flow for flow in scene.drops() if flow.service]
    assert {flow.reason for flow in drops} == {scenes.POLICY}
    assert {flow.dst_name for flow in drops} == {"db"}
    assert {str(flow.service) for flow in drops} == {
        f"default/web {by.vip if version == 4 else f'[{by.vip}]'}:8080"
    }


@VERSIONS
def test_withdrawn_under_a_connection(scene: Scene, version: int) -> None:
    """The very next packet is dropped, and comes through when the rule is back."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as connection:
        assert connection.exchange().reply == b"api\n"
        scene.dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[apps_from("db")]))
        assert connection.exchange(timeout=SILENCE).error == "timeout"
        scene.no_policy()
        scene.dp.services.upsert(by.service(scene.api))
        assert connection.exchange(timeout=3).ok


# ---------------------------------------------------------------------- nobody serves


@VERSIONS
@PROTOCOLS
def test_no_backend(scene: Scene, version: int, protocol: str) -> None:
    """The client is told at once; at a port that no service has, nobody says anything."""
    by = By(version, protocol)
    scene.dp.services.upsert(by.service())
    assert by.ask(scene.web) == "refused"
    assert {flow.reason for flow in scene.drops() if str(flow.dst) == by.vip} == {NO_BACKEND}
    assert scene.web.connect(by.vip, f"81/{protocol}", timeout=SILENCE).error == "timeout"
    assert {flow.reason for flow in scene.drops() if str(flow.dst) == by.vip} == {NO_BACKEND}


@VERSIONS
def test_a_closed_port(scene: Scene, version: int) -> None:
    """The backend's own complaint reaches the client in the service's name."""
    for protocol in ("TCP", "UDP"):
        by = By(version, protocol)
        backend = Backend(at(scene.api, version), 9, protocol)
        scene.dp.services.apply([by.service().with_backends([backend])])
        assert by.ask(scene.web) == "refused"


@VERSIONS
def test_silence_by_choice(version: int) -> None:
    """`service-no-backend-response: drop`, and the other ways for programs to hang on devices."""
    config = DatapathConfig(
        services=LoadBalancerConfig(no_backend_response="drop"), tc="clsact", redirect_peer=False
    )
    with Lab() as lab, scenes.scene(lab, config=config) as scene:
        by = By(version)
        scene.dp.services.upsert(by.service())
        assert by.ask(scene.web, timeout=SILENCE) == "timeout"
        scene.dp.services.upsert(by.service(scene.api))
        assert by.who(scene.web, 6) == {"api": 6}
        assert by.who(scene.api, 6) == {"api": 6}


def test_what_does_not_fit(scene: Scene) -> None:
    """A service that is refused leaves everything as it is."""
    by = By(4)
    scene.dp.services.upsert(by.service(scene.api))
    delegated = Service(
        "d", ["10.96.0.99:80"], ["10.0.0.1:80"], proxy_delegation="delegate-if-local"
    )
    with pytest.raises(ServiceError, match="delegation"):
        scene.dp.services.upsert(delegated)
    impossible = Service("i", ["10.96.0.99:80"], ["10.0.0.1:81"], forwarding="dsr", dispatch="ipip")
    with pytest.raises(pcl.InvalidError, match="cannot change a port"):
        scene.dp.services.upsert(impossible)
    with pytest.raises(pcl.ExistsError):
        scene.dp.services.upsert(Service("twin", [by.service().frontends[0]]))
    with pytest.raises(StateError, match="datapath"):
        scene.dp.services.keep()
    assert list(scene.dp.services.services) == [ServiceKey("default", "web")]
    assert by.ask(scene.web) == "api"
    assert not scene.dp.drift()


# ---------------------------------------------------------------------- what is sent


@VERSIONS
@pytest.mark.parametrize("offload", ["on", "off"])
def test_much_data(scene: Scene, version: int, offload: str) -> None:
    """Large segments and whole checksums, or small ones and sums that the receiver makes."""
    by = By(version)
    data = bytes(range(256)) * 16384
    for host in (scene.api, scene.world):
        scene.dp.services.apply(
            [by.service(host).with_backends([Backend(at(host, version), 8100)])]
        )
        for pod in (scene.web, scene.api):
            pod.run(["ethtool", "-K", pod.ifname, "tx", offload], check=True)
        try:
            with Echo(host, version, 8100):
                assert exchange(scene.web, by.vip, version, data) == data
        finally:
            for pod in (scene.web, scene.api):
                pod.run(["ethtool", "-K", pod.ifname, "tx", "on"], check=True)


class Echo:
    """Sends back what one connection says."""

    def __init__(self, host: Host, version: int, port: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._listener = host.netns.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((str(at(host, version)), port))
        self._listener.listen()
        self._listener.settimeout(5)
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._listener.close()


def exchange(client: Host, vip: str, version: int, data: bytes) -> bytes:
    """Send it all to the service, and read as much."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    received = bytearray()
    with client.netns.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(10)
        tcp.connect((vip, 8080))
        sender = threading.Thread(target=tcp.sendall, args=(data,))
        sender.start()
        while len(received) < len(data):
            received += tcp.recv(1 << 16)
        sender.join()
    return bytes(received)


@VERSIONS
def test_large_datagrams(scene: Scene, version: int) -> None:
    """Fragments of both directions, to a pod and to a host outside."""
    by = By(version, "UDP")
    payload = bytes(range(256)) * 20
    for host in (scene.api, scene.world):
        server = host.serve(f"{8200 + version}/UDP", lambda data: data)
        backend = Backend(at(host, version), 8200 + version, "UDP")
        scene.dp.services.apply([by.service().with_backends([backend])])
        result = scene.web.connect(by.vip, by.port, data=payload)
        assert result.reply == payload, result
        server.close()


@VERSIONS
def test_a_narrow_way(scene: Scene, version: int) -> None:
    """A router says what fits, about a packet that the client knows."""
    by = By(version)
    scene.dp.services.upsert(by.service().with_backends([Backend(at(scene.world, version), 8100)]))
    data = bytes(range(256)) * 400
    way = [str(at(scene.world, version)), "dev", scene.node.native]
    scene.node.run(["ip", "route", "add", *way, "mtu", 1300], check=True)
    try:
        with Echo(scene.world, version, 8100):
            assert exchange(scene.web, by.vip, version, data) == data
        said = scene.web.run(["ip", "route", "get", by.vip], check=True).stdout
        assert "mtu 1300" in said
    finally:
        scene.node.run(["ip", "route", "del", *way], check=True)


def test_names_by_dns(scene: Scene) -> None:
    """Two servers of names behind one ClusterIP, from documents as a cluster has them."""
    documents = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd96::10"]
  ports: [{{name: dns, port: 53, protocol: UDP, targetPort: 5353}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-4
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{{name: dns, port: 5353, protocol: UDP}}]
endpoints: [{{addresses: ["{scene.api.ip4}"]}}, {{addresses: ["{scene.db.ip4}"]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-6
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv6
ports: [{{name: dns, port: 5353, protocol: UDP}}]
endpoints: [{{addresses: ["{scene.api.ip6}"]}}, {{addresses: ["{scene.db.ip6}"]}}]
"""

    def answer(query: bytes) -> bytes:
        asked = DNS(query)
        record = DNSRR(rrname=asked.qd[0].qname, type="A", rdata="192.0.2.80", ttl=5)
        return bytes(DNS(id=asked.id, qr=1, aa=1, qd=asked.qd, an=[record]))

    servers = [pod.serve("5353/UDP", answer) for pod in (scene.api, scene.db)]
    read = pcl.read_services(
        documents, config=scene.dp.services.config, node=scene.dp.services.node
    )
    scene.dp.services.apply(read.services)
    for version in (4, 6):
        for number in range(10):
            query = DNS(id=number, rd=1, qd=DNSQR(qname=f"n{number}.example.", qtype="A"))
            result = scene.web.connect(VIP[version], "53/UDP", data=bytes(query))
            reply = DNS(result.reply)
            assert (reply.id, reply.an[0].rdata) == (number, "192.0.2.80")
    assert all(server.count > 2 for server in servers)
    for server in servers:
        server.close()


# ---------------------------------------------------------------------- what is told


@VERSIONS
def test_what_is_told(scene: Scene, version: int) -> None:
    """Events and the flow table name client, backend and service; a simulation does, too."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as connection:
        for _ in range(3):
            connection.exchange()
        host = by.vip if version == 4 else f"[{by.vip}]"
        told = [flow for flow in scene.dp.flows() if flow.service]
        assert {str(flow.service) for flow in told} == {f"default/web {host}:8080"}
        assert {(f.src_name, f.dst_name) for f in told} == {("web", "api"), ("api", "web")}
        assert f" by default/web {host}:8080 " in str(told[0])
        (entry,) = [one for one in scene.dp.conntrack if one.service]
        assert (entry.src, entry.dst, entry.dport) == (
            at(scene.web, version), at(scene.api, version), 80,
        )  # fmt: skip
        assert entry.service is not None and str(entry.service[0]) == by.vip
        assert min(entry.packets) >= 4 and entry.replied
        for key in (entry.key, entry.service_key):
            assert key is not None
            found = scene.dp.conntrack.get(key)
            assert found is not None and found.service == entry.service
        client = f"{connection.local[0]}:{connection.local[1]}"
        if version == 6:
            client = f"[{connection.local[0]}]:{connection.local[1]}"
        placed = scene.dp.services.where(client, f"{host}:8080")
        assert (placed.why, str(placed.backend.address)) == (  # type: ignore[union-attr]
            Why.CONNECTION, str(at(scene.api, version)),
        )  # fmt: skip


@VERSIONS
def test_simulation(scene: Scene, version: int) -> None:
    """Where a packet would go, translated, and what would be answered."""
    from tests.bpf.packets import V4, V6

    by, family = By(version), {4: V4, 6: V6}[version]
    frame = family.tcp(str(at(scene.web, version)), by.vip, 8080)
    scene.dp.services.upsert(by.service(scene.api))
    seen = scene.dp.simulate(frame, at="web")
    assert seen.allowed and "by default/web" in str(seen)
    assert seen.service is not None and seen.service.name == "web"
    assert seen.flows[-1].dst == at(scene.api, version)
    scene.dp.services.upsert(by.service())
    seen = scene.dp.simulate(frame, at="web")
    assert (str(seen.outcome.value), seen.reason, seen.allowed) == ("answered", NO_BACKEND, False)
    assert not [entry for entry in scene.dp.conntrack if entry.service]
    assert scene.dp.services.service_counts()[ServiceKey("default", "web")].packets == 0


def test_drift_and_mending(scene: Scene) -> None:
    """What somebody else has written into the maps is seen, and put right."""
    by = By(4)
    scene.dp.services.upsert(by.service(scene.api))
    maps = scene.dp._programs.maps
    (number,) = scene.dp.services._held.table.backends
    row = maps["lb_backends"].lookup(number)._asdict()
    maps["lb_backends"][number] = {**row, "addr": "10.9.9.9"}
    maps["lb_services"].clear()
    drift = scene.dp.drift()
    assert any("lb" in line or "backends" in line for line in drift.differences)
    assert len(drift.differences) >= 3
    scene.dp.services.mend()
    assert not scene.dp.drift()
    assert by.ask(scene.web) == "api"
