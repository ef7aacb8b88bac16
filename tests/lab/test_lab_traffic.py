"""A lab without BPF: plain routing has to work everywhere, in both families."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import attrs
import pytest

from pyciliumlib import errors
from pyciliumlib.lab import Host, Lab, Node, Outside, Pod, http_reply
from pyciliumlib.types import Address

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
HOSTS = ["web", "api", "far", "world", "cloud", "n1", "n2"]
OUTSIDE = {"world", "cloud"}
PAIRS = [(client, server) for client in HOSTS for server in HOSTS if {client, server} != OUTSIDE]


@attrs.frozen
class Scene:
    """Two nodes, three pods, and two hosts outside, each with its two servers."""

    lab: Lab
    node: Node
    web: Pod
    api: Pod
    world: Outside

    def address(self, name: str, family: int) -> Address:
        """The first address of a host in a family."""
        host = self.lab.host(name)
        return host.ip4 if family == 4 else host.ip6


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One lab for all tests here; each uses ports of its own."""
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world")
        web, api = node.pod("web"), node.pod("api")
        far = lab.node().pod("far")
        cloud = lab.outside("cloud", ip4="203.0.113.7", ip6="2001:db8:7::1")
        for host in (*lab.nodes.values(), web, api, far, world, cloud):
            host.serve("80/TCP")
            host.serve("53/UDP")
        yield Scene(lab, node, web, api, world)


@FAMILIES
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_everybody_reaches_everybody(scene: Scene, client: str, server: str, family: int) -> None:
    """TCP, UDP and echo, from each host to each, itself included; the right one answers.

    Hosts outside are strangers to one another: only nodes have to know the way to them.
    """
    source, address = scene.lab.host(client), scene.address(server, family)
    for port in ("80/TCP", "53/UDP"):
        result = source.connect(address, port)
        assert (result.ok, result.error, result.reply) == (True, "", f"{server}\n".encode()), port
        assert result.rtt is not None and 0 < result.rtt < 1
    echo = source.ping(address, payload=b"0123456789")
    assert (echo.ok, echo.reply) == (True, b"0123456789")


@FAMILIES
def test_source_address_is_kept(scene: Scene, family: int) -> None:
    """Nothing is translated on the way, also from outside and from another node."""
    server = scene.api.serve("8081/TCP")
    for name in ("web", "far", "world", "cloud"):
        scene.lab.host(name).connect(scene.address("api", family), "8081/TCP")
    expected = [scene.address(name, family) for name in ("web", "far", "world", "cloud")]
    assert [request.peer for request in server.requests] == expected
    server.close()


@FAMILIES
def test_node_speaks_to_its_pods_from_the_router_address(scene: Scene, family: int) -> None:
    """What the node itself sends to a pod starts from the pods' gateway."""
    server = scene.api.serve("8082/TCP")
    scene.node.connect(scene.address("api", family), "8082/TCP")
    router = scene.node.router4 if family == 4 else scene.node.router6
    assert [request.peer for request in server.requests] == [router]
    server.close()


@FAMILIES
@pytest.mark.parametrize("port", ["9/TCP", "9/UDP"])
@pytest.mark.parametrize("client", ["web", "far", "world"])
def test_closed_port_refuses(scene: Scene, client: str, port: str, family: int) -> None:
    """Where nobody listens the answer is a refusal, each time: ICMP errors are not rationed."""
    address = scene.address("api", family)
    results = {scene.lab.host(client).connect(address, port).error for _ in range(12)}
    assert results == {"refused"}


@FAMILIES
@pytest.mark.parametrize(
    ("route", "expected"),
    [("blackhole", "timeout"), ("unreachable", "unreachable"), ("prohibit", "unreachable")],
)
@pytest.mark.parametrize("port", ["80/TCP", "53/UDP", "echo"])
def test_failures_are_told_apart(
    scene: Scene, route: str, expected: str, port: str, family: int
) -> None:
    """Silence is a timeout; an ICMP error from the way is "unreachable", at once."""
    address = scene.address("api", family)
    # the kernel rations a router's ICMP errors to five at once for each client, machine-wide
    client = scene.lab.host("far" if route == "prohibit" else "web")
    scene.node.run(["ip", f"-{family}", "route", "del", address], check=True)
    scene.node.run(["ip", f"-{family}", "route", "add", route, address], check=True)
    try:
        if port == "echo":
            result = client.ping(address, timeout=0.1)
        else:
            result = client.connect(address, port, timeout=0.1)
    finally:
        scene.node.run(["ip", f"-{family}", "route", "del", route, address], check=True)
        router = scene.node.router4 if family == 4 else scene.node.router6
        scene.node.netlink.add_route(address, dev=scene.api.ifindex, src=router)
    assert (result.ok, result.error, result.rtt, result.reply) == (False, expected, None, b"")
    assert not result
    assert client.connect(address, "80/TCP")


def test_node_device_and_pod_agree(scene: Scene) -> None:
    """The attributes of a pod are the kernel's, seen from the node and from the pod."""
    web = scene.web
    link = scene.node.netlink.link(web.ifindex)
    assert (link.name, link.mac, link.mtu, link.up) == (web.host_ifname, web.host_mac, 1500, True)
    inside = web.run(["ip", "-o", "link", "show", "dev", web.ifname], check=True).stdout
    assert web.mac in inside
    assert web.netns.path is not None and web.netns.path.exists()


def test_pod_asks_for_its_gateway(scene: Scene) -> None:
    """ARP and ND really happen, so that a datapath that answers them can be tested."""
    pod = scene.node.pod("asks")
    assert "lladdr" not in pod.run(["ip", "neigh"], check=True).stdout
    assert pod.ping(scene.world.ip4) and pod.ping(scene.world.ip6)
    neighbours = pod.run(["ip", "neigh"], check=True).stdout
    for router in (scene.node.router4, scene.node.router6):
        assert f"{router} dev eth0 lladdr {pod.host_mac}" in neighbours
    pod.close()


def test_kept_connection(scene: Scene) -> None:
    """A dialled connection carries many exchanges, and notices that the server is gone."""
    server = scene.api.serve("8083/TCP", reply=bytes.upper)
    with scene.web.dial(scene.api.ip4, "8083/TCP", source_port=33333) as connection:
        assert connection.local == (scene.web.ip4, 33333)
        assert [connection.exchange(word).reply for word in (b"a", b"b")] == [b"A", b"B"]
        assert (server.connections, server.count) == (1, 2)
        assert server.requests[0].port == 33333
        server.close()
        assert connection.exchange(b"c").error in ("reset", "closed")
    assert scene.web.connect(scene.api.ip4, "8083/TCP").error == "refused"


def test_late_reply_is_not_taken_for_the_next(scene: Scene) -> None:
    """A reply that came after its exchange had given up is forgotten."""
    answers = iter([None, b"one", b"two"])
    with scene.api.serve("8084/UDP", reply=lambda _: next(answers)):
        with scene.web.dial(scene.api.ip4, "8084/UDP") as connection:
            assert connection.exchange(timeout=0.05).error == "timeout"
            connection._sock.send(b"a question whose answer nobody reads")
            assert select.select([connection], [], [], 5.0)[0]
            assert connection.exchange().reply == b"two"


def test_dial_failure_raises(scene: Scene) -> None:
    """`dial` has no result to put a refusal into, so it raises with the kernel's errno."""
    with pytest.raises(errors.KernelError, match="cannot connect") as caught:
        scene.web.dial(scene.api.ip4, "9/TCP")
    assert caught.value.errno == errno.ECONNREFUSED


@FAMILIES
def test_dial_notices_icmp_error(scene: Scene, family: int) -> None:
    """A connection that the way refuses is never taken for one that stands."""
    with scene.node.pod(f"dialler{family}") as pod:
        nobody = scene.node.cidr4[200] if family == 4 else scene.node.cidr6[200]
        scene.node.run(["ip", f"-{family}", "route", "add", "prohibit", nobody], check=True)
        with pytest.raises(errors.KernelError) as caught:
            pod.dial(nobody, "80/TCP", timeout=0.3)
        assert caught.value.errno in (errno.EHOSTUNREACH, errno.EACCES)


def test_silent_server(scene: Scene) -> None:
    """A server that reads and never answers is a timeout, although TCP connected."""
    with scene.api.serve("8085/TCP", reply=lambda _: None) as server:
        result = scene.web.connect(scene.api.ip4, "8085/TCP", timeout=0.1, data=b"anyone?")
        assert (result.error, result.rtt) == ("timeout", None)
        assert server.requests[0].data == b"anyone?"


def test_http_with_a_stock_client(scene: Scene) -> None:
    """`http_reply` is HTTP enough for the standard library, over a socket made in the pod."""
    import http.client

    with scene.api.serve("8086/TCP", reply=http_reply("hello")):
        client = http.client.HTTPConnection(str(scene.api.ip4), 8086)
        client.sock = scene.web.netns.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.sock.connect((str(scene.api.ip4), 8086))
        for _ in range(2):  # the connection is kept alive
            client.request("GET", "/")
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"hello")
        client.close()


def test_port_taken(scene: Scene) -> None:
    """A second server on a port is refused, and the first goes on."""
    with pytest.raises(errors.ExistsError, match="api serves 80/TCP already"):
        scene.api.serve("80/TCP")
    assert scene.web.connect(scene.api.ip6, "80/TCP").reply == b"api\n"
    with pytest.raises(errors.ExistsError, match="source port"):
        scene.api.connect(scene.web.ip4, "80/TCP", source_port=80)


@pytest.mark.parametrize("port", ["80", "1-2/TCP", "ICMP"])
def test_bad_arguments_are_errors_not_results(scene: Scene, port: str) -> None:
    """Only what the network does becomes a result."""
    for bad in (lambda: scene.web.connect("10.0.0.1", port), lambda: scene.web.serve(port)):
        with pytest.raises(errors.InvalidError):
            bad()
    with pytest.raises(errors.InvalidError):
        scene.web.connect("nowhere", "80/TCP")


def test_sctp_says_what_is_missing(scene: Scene) -> None:
    """SCTP works where the kernel has it, else the error names the feature."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).close()
    except OSError:
        with pytest.raises(errors.FeatureError, match="SCTP"):
            scene.web.connect(scene.api.ip4, "80/SCTP")
    else:
        with scene.api.serve("80/SCTP"):
            assert scene.web.connect(scene.api.ip4, "80/SCTP").reply == b"api\n"


def test_call_runs_inside(scene: Scene) -> None:
    """`call` sees the devices of the host, by the numbers that they have there."""
    names = scene.node.call(lambda: dict(socket.if_nameindex()))
    assert names[scene.web.ifindex] == scene.web.host_ifname


def test_host_lookup(scene: Scene) -> None:
    """A host is found by name wherever it is."""
    found: dict[str, type[Host]] = {name: type(scene.lab.host(name)) for name in HOSTS}
    assert found == dict(zip(HOSTS, [Pod, Pod, Pod, Outside, Outside, Node, Node], strict=True))
    with pytest.raises(KeyError):
        scene.lab.host("nobody")
