"""Clients outside reach services whose backends are pods of the node, with their own address."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from pyciliumlib.datapath import Datapath, DatapathConfig, Simulation
from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, StateError
from pyciliumlib.flow import DropReason, FlowType, TracePoint
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.lab import Host, Lab, Outside
from pyciliumlib.loadbalancer import Backend, Frontend, LocalNode, Service, ServiceKey, Why
from pyciliumlib.resources import include_dir
from tests.bpf.compiled import compile_bpf
from tests.lab import scenes
from tests.lab.scenes import SILENCE, VERSIONS, Scene, apps, at, policy, ports
from tests.lab.test_datapath_hooks import SOURCE
from tests.lab.test_datapath_services import Echo, exchange, of_api
from tests.lab.test_host_policy import attached, node_policy

CONFIG = DatapathConfig(node_port=True, devices=("eth0",), local_node=LocalNode("n1"))
NODE_PORT = 30080
#: An address that is none of the node's; clients have a route to it.
VIP = {4: "198.51.100.10", 6: "2001:db8:51::10"}
ANYWHERE = {4: "0.0.0.0", 6: "::"}
PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
KEY = ServiceKey("default", "web")
_ports = itertools.count(43000)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Scene]:
    with scenes.scene(lab, config=CONFIG) as made:
        lead(made, made.world)
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """No services, no flows; everything is allowed."""
    shared.dp.services.apply([])
    shared.dp.conntrack.flush()
    shared.drain()
    yield shared
    shared.no_policy()


def lead(scene: Scene, client: Outside) -> None:
    """Give a host outside the way to the services' addresses."""
    for version, vip in VIP.items():
        client.run(["ip", "route", "add", vip, "via", at(scene.node, version)], check=True)


@frozen
class Published:
    """A service of one family at a NodePort and at a LoadBalancer's address."""

    scene: Scene
    version: int
    protocol: str = "TCP"

    @property
    def target(self) -> int:
        return {"TCP": 80, "UDP": 53}[self.protocol]

    def backends(self, *hosts: Host, **options: str) -> list[Backend]:
        return [Backend(at(h, self.version), self.target, self.protocol, **options) for h in hosts]

    def service(self, *hosts: Host, **options: object) -> Service:
        frontends = [
            Frontend(ANYWHERE[self.version], NODE_PORT, self.protocol, "NodePort"),
            Frontend(VIP[self.version], 8080, self.protocol, "LoadBalancer"),
        ]
        return Service("web", frontends, self.backends(*hosts), **options)  # type: ignore[arg-type]

    @property
    def by_node(self) -> tuple[str, int]:
        return str(at(self.scene.node, self.version)), NODE_PORT

    @property
    def by_vip(self) -> tuple[str, int]:
        return VIP[self.version], 8080

    def ask(self, client: Host, way: tuple[str, int] | None = None, **options: Any) -> str:
        """Who answers; or why nobody does."""
        address, port = way or self.by_node
        result = client.connect(address, f"{port}/{self.protocol}", **options)
        return result.reply.decode().strip() if result.ok else result.error

    def who(self, client: Host, times: int, way: tuple[str, int] | None = None) -> Counter[str]:
        return Counter(self.ask(client, way) for _ in range(times))

    def reasons(self, client: Host, way: tuple[str, int] | None = None) -> set[int]:
        """Why the datapath drops what a client says in a new connection."""
        self.scene.drain()
        port = next(_ports)
        assert self.ask(client, way, timeout=SILENCE, source_port=port) == "timeout"
        return {flow.reason for flow in self.scene.drops() if flow.sport == port}


def arriving(scene: Scene, frame: bytes) -> Simulation:
    """What would become of a frame that comes in by the node's device, for its MAC address."""
    mac = scene.node.netlink.link("eth0").mac
    framed = bytes.fromhex(mac.replace(":", "")) + frame[6:]
    return scene.dp.simulate(framed, at="eth0", from_stack=True)


# ---------------------------------------------------------------------- who serves


@VERSIONS
@PROTOCOLS
@pytest.mark.smoke
def test_both_frontends(scene: Scene, version: int, protocol: str) -> None:
    """Every backend has its share, and sees the client's own address."""
    by = Published(scene, version, protocol)
    scene.dp.services.upsert(by.service(scene.api, scene.db))
    for way in (by.by_node, by.by_vip):
        met = by.who(scene.world, 40, way)
        assert set(met) == {"api", "db"}
        assert min(met.values()) > 5
    assert of_api(scene, protocol).requests[-1].peer == at(scene.world, version)
    assert scene.dp.services.service_counts()[KEY].packets >= 80
    assert {flow.src_identity for flow in scene.dp.flows() if flow.is_new} == {7 + version // 2}


@VERSIONS
def test_pods_and_the_node_are_as_before(scene: Scene, version: int) -> None:
    """Pods use the same NodePort; what is for no service passes."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.api))
    assert by.who(scene.web, 4) == {"api": 4}
    assert by.who(scene.api, 4) == {"api": 4}
    for src, dst in (("world", "node"), ("node", "world"), ("world", "web"), ("web", "world")):
        for port in ("80/TCP", "53/UDP", "echo"):
            assert scene.verdict(src, dst, port, version) == scenes.OPEN, (src, dst, port)


@VERSIONS
def test_one_port_to_the_service_and_to_its_backend(scene: Scene, version: int) -> None:
    """The pod is answered to as whatever was used last."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.api))
    for _ in range(2):
        for way in (by.by_node, by.by_vip, (str(at(scene.api, version)), 80)):
            result = scene.world.connect(way[0], f"{way[1]}/TCP", source_port=41000)
            assert result.reply == b"api\n", way


# ---------------------------------------------------------------------- policy


@VERSIONS
@PROTOCOLS
def test_policy_sees_the_client(scene: Scene, version: int, protocol: str) -> None:
    """The world, and by prefixes the very client; not the node, and not the NodePort."""
    by = Published(scene, version, protocol)
    scene.dp.services.upsert(by.service(scene.api))
    client = f"{at(scene.world, version)}/{32 if version == 4 else 128}"
    inside = ports(f"{by.target}/{protocol}")
    for rule, allowed in (
        ({"fromEntities": ["world"], **inside}, True),
        ({"fromEntities": ["host", "remote-node", "cluster"], **inside}, False),
        ({"fromEntities": ["world"], **ports(f"{NODE_PORT}/{protocol}", "8080/TCP")}, False),
        ({"fromCIDR": [client], **inside}, True),
        ({"fromCIDR": ["203.0.113.0/24", "2001:db8:9::/64"], **inside}, False),
    ):
        scene.dp.policy.apply(policy("api", {"app": "api"}, ingress=[rule]))
        for way in (by.by_node, by.by_vip):
            if allowed:
                assert by.ask(scene.world, way) == "api", rule
            else:
                assert by.reasons(scene.world, way) == {scenes.POLICY}, rule


@VERSIONS
@pytest.mark.smoke
def test_withdrawn_under_a_connection(scene: Scene, version: int) -> None:
    """The very next packet is dropped in either direction, and comes through with the rule."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.world.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        assert connection.exchange().reply == b"api\n"
        scene.dp.policy.apply(policy("api", {"app": "api"}, ingress=[apps("from", "db")]))
        scene.drain()
        assert connection.exchange(timeout=SILENCE).error == "timeout"
        dropped = scene.drops()
        assert {flow.reason for flow in dropped} == {scenes.POLICY}
        assert {str(flow.service) for flow in dropped} >= {f"default/web {shown(by.by_node)}"}
        scene.dp.policy.delete(*(document.key for document in scene.dp.policy.documents))
        assert connection.exchange(timeout=3).ok


def shown(way: tuple[str, int]) -> str:
    return f"[{way[0]}]:{way[1]}" if ":" in way[0] else f"{way[0]}:{way[1]}"


# ---------------------------------------------------------------------- who may, and where it goes


@VERSIONS
@PROTOCOLS
def test_cluster_ip_and_other_ports(scene: Scene, version: int, protocol: str) -> None:
    """Neither is for clients outside; pods may use the former."""
    by = Published(scene, version, protocol)
    hidden = Frontend(VIP[version], 8080, protocol, "ClusterIP")
    scene.dp.services.upsert(evolve(by.service(scene.api), frontends=(hidden,)))
    assert by.reasons(scene.world, by.by_vip) == {DropReason.IS_CLUSTER_IP}
    assert by.reasons(scene.world, (VIP[version], 8081)) == {DropReason.NO_SERVICE_BACKEND}
    assert by.ask(scene.web, by.by_vip) == "api"
    assert scene.dp.services.where(
        shown((str(at(scene.world, version)), 40000)),
        Frontend(VIP[version], 8080, protocol, "ClusterIP"),
        outside=True,
    ).why is Why.CLUSTER_IP  # fmt: skip


@VERSIONS
def test_source_ranges(scene: Scene, version: int) -> None:
    """Of a LoadBalancer's address; a change counts for connections that are there."""
    by = Published(scene, version)
    mine = f"{at(scene.world, version)}/{32 if version == 4 else 128}"
    other = ["203.0.113.0/24", "2001:db8:9::/64"]
    service = by.service(scene.api)
    scene.dp.services.upsert(evolve(service, source_ranges=(mine, *other)))
    with scene.world.dial(VIP[version], "8080/TCP") as connection:
        assert connection.exchange().reply == b"api\n"
        scene.dp.services.upsert(evolve(service, source_ranges=tuple(other)))
        assert connection.exchange(timeout=SILENCE).error == "timeout"
        assert by.reasons(scene.world, by.by_vip) >= {DropReason.LB_SOURCE_RANGE}
        assert by.ask(scene.world, by.by_node) == "api"
        assert by.ask(scene.web, by.by_vip) == "api"
        scene.dp.services.upsert(
            evolve(service, source_ranges=tuple(other), source_ranges_policy="deny")
        )
        assert by.ask(scene.world, by.by_vip) == "api"


@VERSIONS
@PROTOCOLS
def test_backends_of_this_node(scene: Scene, version: int, protocol: str) -> None:
    """With the external policy Local there are no others; else those elsewhere are refused."""
    by = Published(scene, version, protocol)
    here, there = by.backends(scene.api, node="n1"), by.backends(scene.world, node="n2")
    service = by.service().with_backends([*here, *there])
    scene.dp.services.upsert(evolve(service, external_policy="Local"))
    assert by.who(scene.world, 12) == {"api": 12}
    assert set(by.who(scene.web, 30)) == {"api", "world"}
    scene.dp.services.upsert(evolve(service, external_policy="Local").with_backends(there))
    assert by.ask(scene.world) == "refused"
    assert by.ask(scene.web) == "world"
    scene.dp.services.upsert(service.with_backends(there))
    assert by.reasons(scene.world) == {DropReason.UNKNOWN_TARGET}
    assert by.ask(scene.web) == "world"
    scene.dp.services.upsert(service.with_backends(by.backends(scene.node)))
    assert by.reasons(scene.world) == {DropReason.UNKNOWN_TARGET}


@VERSIONS
@PROTOCOLS
def test_no_backend(scene: Scene, version: int, protocol: str) -> None:
    """The client is told at once."""
    by = Published(scene, version, protocol)
    scene.dp.services.upsert(by.service())
    for way in (by.by_node, by.by_vip):
        scene.drain()
        assert by.ask(scene.world, way) == "refused"
        assert {flow.reason for flow in scene.drops()} == {DropReason.NO_SERVICE_BACKEND}


@VERSIONS
def test_affinity_and_maglev(lab: Lab, scene: Scene, version: int) -> None:
    """Each client meets one backend; and the one that the model says."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.web, scene.api, scene.db, affinity_timeout=60))
    assert len(by.who(scene.world, 20)) == 1
    scene.dp.services.apply([])
    scene.dp.services.upsert(by.service(scene.web, scene.api, scene.db, algorithm="maglev"))
    client, met = at(scene.world, version), set()
    for port in range(42000, 42012):
        placed = scene.dp.services.where(
            shown((str(client), port)), shown(by.by_node), outside=True
        )
        result = scene.world.connect(by.by_node[0], f"{NODE_PORT}/TCP", source_port=port)
        assert placed.backend is not None
        name = next(e.name for e in scene.dp.endpoints.values()
                    if placed.backend.address in e.addresses)  # fmt: skip
        assert result.reply.decode().strip() == name
        met.add(name)
    assert len(met) > 1


# ---------------------------------------------------------------------- changes


@VERSIONS
def test_a_backend_that_is_removed(scene: Scene, version: int) -> None:
    """Its connections are over, new ones go elsewhere, and those of others go on."""
    by = Published(scene, version)
    address, port = by.by_node[0], f"{NODE_PORT}/TCP"
    scene.dp.services.upsert(by.service(scene.api))
    with scene.world.dial(address, port) as lost:
        assert lost.exchange().reply == b"api\n"
        scene.dp.services.upsert(by.service(scene.db))
        with scene.world.dial(address, port) as kept:
            assert kept.exchange().reply == b"db\n"
            assert lost.exchange(timeout=2).error == "reset"
            assert by.who(scene.world, 10) == {"db": 10}
            scene.dp.services.delete(KEY)
            # the node answers for its own port again, and knows no such connection
            assert kept.exchange(timeout=2).error == "reset"
    assert by.ask(scene.world) == "refused"


@VERSIONS
def test_what_the_removed_backend_says(scene: Scene, version: int) -> None:
    """Nothing of it reaches the client, neither as the service nor as itself."""
    by = Published(scene, version)
    server = scene.api.serve("8081/TCP", lambda _: None)
    scene.dp.services.upsert(by.service().with_backends([Backend(at(scene.api, version), 8081)]))
    with scene.world.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        assert connection.exchange(timeout=SILENCE).error == "timeout"
        scene.dp.services.upsert(by.service())
        scene.drain()
        (transport,) = server._transports
        scene.lab.servers._loop.call_soon_threadsafe(transport.write, b"late")
        assert connection.exchange(timeout=SILENCE).error in ("timeout", "refused")
        assert {flow.drop_reason for flow in scene.drops()} == {DropReason.NO_SERVICE_BACKEND}
    server.close()


@VERSIONS
def test_draining(scene: Scene, version: int) -> None:
    """The connection stays as long as it likes; no other comes."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.world.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        scene.dp.services.upsert(by.service(scene.api, scene.db))
        scene.dp.services.drain(by.backends(scene.api)[0])
        assert by.who(scene.world, 20) == {"db": 20}
        for _ in range(5):
            assert connection.exchange().reply == b"api\n"


# ---------------------------------------------------------------------- what is sent


@VERSIONS
@pytest.mark.parametrize("offload", ["on", "off"])
def test_much_data(scene: Scene, version: int, offload: str) -> None:
    """Large segments and whole checksums, or small ones and sums that the receiver makes."""
    by = Published(scene, version)
    data = bytes(range(256)) * 16384
    scene.dp.services.apply([by.service().with_backends([Backend(at(scene.api, version), 8100)])])
    scene.world.run(["ethtool", "-K", "eth0", "tx", offload], check=True)
    scene.api.run(["ethtool", "-K", scene.api.ifname, "tx", offload], check=True)
    try:
        with Echo(scene.api, version, 8100):
            assert exchange(scene.world, VIP[version], version, data) == data
    finally:
        scene.world.run(["ethtool", "-K", "eth0", "tx", "on"], check=True)
        scene.api.run(["ethtool", "-K", scene.api.ifname, "tx", "on"], check=True)


@VERSIONS
def test_large_datagrams(scene: Scene, version: int) -> None:
    """Fragments of both directions."""
    by = Published(scene, version, "UDP")
    payload = bytes(range(256)) * 20
    server = scene.api.serve(f"{8200 + version}/UDP", lambda data: data)
    backend = Backend(at(scene.api, version), 8200 + version, "UDP")
    scene.dp.services.apply([by.service().with_backends([backend])])
    for address, port in (by.by_node, by.by_vip):
        result = scene.world.connect(address, f"{port}/UDP", data=payload)
        assert result.reply == payload, result
    server.close()


@VERSIONS
@PROTOCOLS
def test_a_closed_port(scene: Scene, version: int, protocol: str) -> None:
    """The backend's own complaint reaches the client in the service's name."""
    by = Published(scene, version, protocol)
    backend = Backend(at(scene.api, version), 9, protocol)
    scene.dp.services.apply([by.service().with_backends([backend])])
    for way in (by.by_node, by.by_vip):
        assert by.ask(scene.world, way) == "refused"


# ---------------------------------------------------------------------- the host firewall


@VERSIONS
def test_beside_the_host_firewall(version: int) -> None:
    """What is for a service is none of the node's, and its policy none of the service's."""
    config = evolve(CONFIG, host_firewall=True)
    with Lab() as lab, scenes.scene(lab, config=config) as scene:
        lead(scene, scene.world)
        scene.dp.policy.apply(node_policy("shut", ingress=[{}], egress=[{}]))
        for protocol in ("TCP", "UDP"):
            by = Published(scene, version, protocol)
            scene.dp.services.apply([by.service(scene.api)])
            for way in (by.by_node, by.by_vip):
                assert by.who(scene.world, 3, way) == {"api": 3}
            scene.dp.services.upsert(by.service())
            assert by.ask(scene.world) == "refused"
        by = Published(scene, version)
        assert by.reasons(scene.world, (by.by_node[0], 80)) == {scenes.POLICY}
        assert scene.verdict("world", "web", "80/TCP", version) == scenes.OPEN
        scene.dp.policy.apply(policy("api", {"app": "api"}, ingress=[{"fromEntities": ["host"]}]))
        scene.dp.services.apply([by.service(scene.api)])
        assert by.reasons(scene.world) == {scenes.POLICY}
        assert not scene.dp.drift()


# ---------------------------------------------------------------------- what is told


@VERSIONS
def test_what_is_told(scene: Scene, version: int) -> None:
    """Events, the flow table and a simulation name client, backend and service."""
    from tests.bpf.packets import V4, V6

    by, family = Published(scene, version), {4: V4, 6: V6}[version]
    scene.dp.services.upsert(by.service(scene.api))
    address = by.by_node[0]
    with scene.world.dial(address, f"{NODE_PORT}/TCP") as connection:
        connection.exchange()
        told = [flow for flow in scene.dp.flows() if flow.service]
        assert {str(flow.service) for flow in told} == {f"default/web {shown(by.by_node)}"}
        points = [flow.point for flow in told if flow.type is FlowType.TRACE]
        assert points[:2] == [TracePoint.TO_ENDPOINT, TracePoint.TO_NETWORK]
        (entry,) = (one for one in scene.dp.conntrack if one.service)
        assert (entry.src, entry.dst, entry.dport) == (
            at(scene.world, version), at(scene.api, version), 80,
        )  # fmt: skip
        assert entry.service is not None and str(entry.service[0]) == address
        client = shown((str(at(scene.world, version)), connection.local[1]))
        placed = scene.dp.services.where(client, shown(by.by_node), outside=True)
        assert placed.why is Why.CONNECTION
    frame = family.tcp(str(at(scene.world, version)), address, NODE_PORT)
    seen = arriving(scene, frame)
    assert (seen.outcome.value, seen.dst_identity) == (
        "to-endpoint", scene.dp.endpoints["api"].identity,
    )  # fmt: skip
    assert seen.service is not None and seen.service.name == "web"
    scene.dp.policy.apply(policy("api", {"app": "api"}, ingress=[apps("from", "db")]))
    seen = arriving(scene, frame)
    assert (seen.allowed, seen.reason) == (False, scenes.POLICY)
    assert not scene.dp.drift()


def test_drift_tells_of_the_device(scene: Scene) -> None:
    """That somebody took the programs off."""
    (attachment,) = scene.dp._uplinks._attachments.values()
    attachment.detach()
    assert "not on device eth0" in str(scene.dp.drift())
    attachment.attach(scene.dp._programs.host(hooks=False))
    assert not scene.dp.drift()


@VERSIONS
def test_programs_of_the_user(scene: Scene, version: int, tmp_path: Path) -> None:
    """They see what is for services, by its frontend and by its backend, and may drop it."""
    by = Published(scene, version)
    scene.dp.services.upsert(by.service(scene.api))
    path = compile_bpf(SOURCE, tmp_path, include_dir())
    with scene.world.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        for slot, port in (("before-policy", NODE_PORT), ("after-policy", 80)):
            spec = ObjectSpec.open(path)
            spec.config["closed_port"] = port
            with scene.dp.hooks.attach(slot, spec, "drops"):
                assert connection.exchange(timeout=SILENCE).error == "timeout"
                assert by.reasons(scene.world) == {DropReason.HOOK}
                assert not scene.dp.drift()
            assert connection.exchange(timeout=3).ok
            assert by.ask(scene.world) == "api"


# ---------------------------------------------------------------------- forgeries


@VERSIONS
def test_a_client_that_claims_to_be_a_pod(scene: Scene, version: int) -> None:
    """Neither as the backend itself, nor in a pod's own connection."""
    from tests.bpf.packets import V4, V6

    by, family = Published(scene, version), {4: V4, 6: V6}[version]
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        connection.exchange()
        for claimed, port in (
            (scene.api, 40000), (scene.db, 40000), (scene.web, connection.local[1]),
        ):  # fmt: skip
            for flags in ("S", "A", "R"):
                frame = family.tcp(
                    str(at(claimed, version)), by.by_node[0], NODE_PORT, flags, sport=port
                )
                seen = arriving(scene, frame)
                assert seen.reason is DropReason.INVALID_SOURCE, (claimed, flags)


@VERSIONS
def test_a_pod_that_claims_to_be_the_client(scene: Scene, version: int) -> None:
    """It cannot speak in the client's connection, nor answer for the backend."""
    from tests.bpf.packets import V4, V6

    by, family = Published(scene, version), {4: V4, 6: V6}[version]
    scene.dp.services.upsert(by.service(scene.api))
    client, backend = (str(at(host, version)) for host in (scene.world, scene.api))
    with scene.world.dial(by.by_node[0], f"{NODE_PORT}/TCP") as connection:
        connection.exchange()
        port = connection.local[1]
        for frame in (
            family.tcp(client, by.by_node[0], NODE_PORT, "A", sport=port),
            family.tcp(client, backend, 80, "A", sport=port),
            family.tcp(backend, client, port, "A", sport=80),
        ):
            seen = scene.dp.simulate(frame, at="db")
            assert seen.reason is DropReason.INVALID_SOURCE
        assert connection.exchange().ok


# ---------------------------------------------------------------------- other ways, other firewalls


@VERSIONS
def test_clsact_and_masquerading(version: int) -> None:
    """Without tcx and redirect_peer; what the node masquerades are not services' answers."""
    config = evolve(CONFIG, tc="clsact", redirect_peer=False)
    with Lab() as lab, scenes.scene(lab, config=config) as scene:
        scene.node.run(["nft", "-f", "-"], check=True, input=(
            "table inet nat { chain out { type nat hook postrouting priority 100;"
            "\noifname eth0 masquerade\n}\n}\n"
        ))  # fmt: skip
        for protocol in ("TCP", "UDP"):
            by = Published(scene, version, protocol)
            scene.dp.services.apply([by.service(scene.api)])
            assert by.who(scene.world, 5) == {"api": 5}
            assert of_api(scene, protocol).requests[-1].peer == at(scene.world, version)
        assert scene.verdict("web", "world", "80/TCP", version) == scenes.OPEN


# ---------------------------------------------------------------------- life


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/pcl-nodeport-{os.getpid()}-{next(_ports)}")
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


@pytest.mark.parametrize("tc", ["auto", "clsact"])
def test_it_goes_on_without_a_process(root: Path, tc: str) -> None:
    """Connections live on; the next process adds the host firewall, takes both off, and back on."""
    config = evolve(CONFIG, tc=tc)
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world", of=node)
        api = node.pod("api")
        for host in (node, api):
            host.serve("80/TCP")
        dp = Datapath(node, pin_root=root, config=config)
        dp.add_endpoint("api", {"app": "api"}, pod=api)
        backends = [Backend(api.ip4, 80), Backend(api.ip6, 80)]
        frontends = [Frontend(address, NODE_PORT, type="NodePort") for address in ("0.0.0.0", "::")]
        dp.services.upsert(Service("web", frontends, backends))

        def served() -> set[str]:
            asked = [world.connect(ip, f"{NODE_PORT}/TCP") for ip in node.addresses[:2]]
            return {found.reply.decode().strip() if found.ok else found.error for found in asked}

        with world.dial(node.ip4, f"{NODE_PORT}/TCP") as connection:
            assert connection.exchange().reply == b"api\n"
            dp.keep()
            assert connection.exchange().reply == b"api\n"
            assert served() == {"api"}
            with Datapath.open(root, node, config=evolve(config, host_firewall=True)) as dp:
                assert not dp.drift()
                dp.policy.apply(node_policy("shut", ingress=[{}]))
                assert connection.exchange().reply == b"api\n"
                assert served() == {"api"}
                assert not world.connect(node.ip4, "80/TCP", timeout=SILENCE).ok
                dp.policy.delete(*(document.key for document in dp.policy.documents))
                dp.keep()
            with Datapath.open(root, node, config=config) as dp:
                assert not dp.drift()
                assert attached(node) == 2
                assert connection.exchange().reply == b"api\n"
                assert world.connect(node.ip4, "80/TCP").ok
                dp.keep()
            with Datapath.open(root, node, config=evolve(config, node_port=False)) as dp:
                assert not dp.drift()
                assert attached(node) == 0
                assert served() == {"refused"}
                dp.keep()
        with Datapath.open(root, node, config=config) as dp:
            assert not dp.drift()
            assert served() == {"api"}
        assert attached(node) == 0


def test_what_is_refused() -> None:
    """Without a device; an endpoint at the device of the services."""
    with pytest.raises(InvalidError, match=r'node_port is on.*devices=\("eth0",\)'):
        DatapathConfig(node_port=True)
    with Lab() as lab:
        node = lab.node()
        with Datapath(node, config=CONFIG) as dp:
            assert attached(node) == 2
            with pytest.raises(StateError, match="host_firewall"):
                _ = dp.host.endpoint
            with pytest.raises(ExistsError, match="devices"):
                dp.add_endpoint("x", device="eth0", mac="02:00:00:00:00:01", addresses=["10.9.9.9"])
            with pytest.raises(NotFoundError, match="eth9"):
                dp.simulate(bytes(60), at="eth9")
        assert attached(node) == 0


def test_the_nodes_flows_are_no_services() -> None:
    """What the endpoints' programs did last on a CPU says nothing of the node's own packets."""
    config = evolve(CONFIG, host_firewall=True)
    with Lab() as lab, scenes.scene(lab, config=config) as scene:
        by = Published(scene, 4)
        scene.dp.services.upsert(by.service(scene.api))
        for _ in range(8):
            assert by.ask(scene.web) == "api"
            assert scene.node.connect(scene.world.ip4, "80/TCP").ok
            assert by.ask(scene.world) == "api"
            assert scene.world.connect(scene.node.ip4, "80/TCP").ok
        ends = {scene.node.ip4, scene.world.ip4}
        found = [entry for entry in scene.dp.conntrack if {entry.src, entry.dst} == ends]
        assert len(found) == 16
        assert {entry.service for entry in found} == {None}
