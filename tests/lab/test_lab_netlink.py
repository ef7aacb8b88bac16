"""The rtnetlink client against the kernel: two namespaces and a veth pair."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from pyciliumlib import errors
from pyciliumlib.net import (
    Link,
    Neighbour,
    Netlink,
    NetNS,
    NextHop,
    add_host_route,
    add_permanent_neighbour,
    ifindex_in,
    mac_of,
    remove_host_route,
    veth_peer,
)

PREFIX = f"pcle-nl-{os.getpid()}"
MAC, POD_MAC = "0e:58:0a:00:00:02", "0a:58:0a:00:00:02"


@attrs.frozen
class Pair:
    """A node's namespace with `lxc-pod`, a pod's with `eth0`, a client in each."""

    node: Netlink
    pod: Netlink
    node_ns: NetNS
    pod_ns: NetNS
    link: Link


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A veth pair between two new namespaces."""
    node_ns, pod_ns = NetNS.create(f"{PREFIX}-a"), NetNS.create(f"{PREFIX}-b")
    try:
        with Netlink(node_ns) as node, Netlink(pod_ns) as pod:
            # take number 2 in the node first: the ends of a pair must not be told by their number
            node.add_bridge("br0")
            link = node.add_veth(
                "lxc-pod", "eth0", peer_netns=pod_ns, mac=MAC, peer_mac=POD_MAC, mtu=1400
            )
            yield Pair(node, pod, node_ns, pod_ns, link)
    finally:
        node_ns.delete()
        pod_ns.delete()


def test_veth_ends(pair: Pair) -> None:
    """Each end is where and what was asked for, and knows the other."""
    eth0 = pair.pod.link("eth0")
    assert (eth0.name, eth0.mac, eth0.mtu, eth0.up, eth0.kind) == (
        "eth0",
        POD_MAC,
        1400,
        False,
        "veth",
    )
    assert (pair.link.mac, pair.link.mtu) == (MAC, 1400)
    assert (pair.link.peer_ifindex, eth0.peer_ifindex) == (eth0.ifindex, pair.link.ifindex)
    assert pair.link.ifindex != eth0.ifindex


def test_set_link(pair: Pair) -> None:
    """State, MAC, MTU and master change in one call; a part not named stays."""
    pair.node.set_link("lxc-pod", up=True, mac="0e:58:0a:00:00:03", mtu=1300, master="br0")
    link = pair.node.link("lxc-pod")
    bridge = pair.node.link("br0").ifindex
    assert (link.up, link.mac, link.mtu, link.master) == (True, "0e:58:0a:00:00:03", 1300, bridge)
    pair.node.set_link(link.ifindex, up=False)
    assert pair.node.link("lxc-pod") == attrs.evolve(link, up=False)


def test_wait_until_a_device_can_send(pair: Pair) -> None:
    """One end alone has no carrier, which is an error in time; with both ends up it can send."""
    pair.node.set_link("lxc-pod", up=True)
    with pytest.raises(errors.DeviceError, match="is its other end up"):
        pair.node.wait_operational("lxc-pod", timeout=0.05)
    pair.pod.set_link("eth0", up=True)
    assert pair.node.wait_operational("lxc-pod").operational


def test_delete_link_takes_the_peer(pair: Pair) -> None:
    """Deleting one end of a veth removes both at once."""
    pair.node.delete_link("lxc-pod")
    assert [link.name for link in pair.node.links()] == ["lo", "br0"]
    assert [link.name for link in pair.pod.links()] == ["lo"]


@pytest.mark.parametrize("address", ["10.0.0.2/24", "fd00::2/64"])
def test_address(pair: Pair, address: str) -> None:
    """An address is there, usable at once (no DAD), until it is removed."""
    wanted = ipaddress.ip_interface(address)
    pair.pod.set_link("eth0", up=True)
    pair.node.set_link("lxc-pod", up=True)
    pair.pod.add_address("eth0", wanted)
    assert wanted in pair.pod.addresses("eth0")
    shown = _ip(pair.pod_ns, "addr", "show", "dev", "eth0")
    assert address in shown
    assert "tentative" not in "".join(line for line in shown.splitlines() if address in line)
    with pytest.raises(errors.ExistsError):
        pair.pod.add_address("eth0", wanted)
    pair.pod.delete_address("eth0", address)
    assert wanted not in pair.pod.addresses("eth0")
    with pytest.raises(errors.NotFoundError):
        pair.pod.delete_address("eth0", address)


def test_wait_until_an_address_is_usable(pair: Pair) -> None:
    """After the wait the local route is there; an address that the device lacks is an error."""
    pair.node.set_link("lxc-pod", up=True)
    pair.pod.set_link("eth0", up=True)
    pair.pod.add_address("eth0", "fd00::2/128")
    pair.pod.wait_usable("eth0", "fd00::2")
    assert "local fd00::2 dev eth0" in _ip(pair.pod_ns, "-6", "route", "show", "table", "local")
    with pytest.raises(errors.DeviceError, match="not usable"):
        pair.pod.wait_usable("eth0", "fd00::3", timeout=0.05)


@pytest.mark.parametrize(
    ("family", "ip", "router", "default"),
    [("-4", "10.0.0.2", "10.0.0.1", "default4"), ("-6", "fd00::2", "fd00::1", "default6")],
)
def test_routes_and_neighbours(pair: Pair, family: str, ip: str, router: str, default: str) -> None:
    """A pod's two routes and the node's host route and neighbour, as iproute2 shows them."""
    length = ipaddress.ip_address(ip).max_prefixlen
    for netlink, device in ((pair.pod, "eth0"), (pair.node, "lxc-pod"), (pair.node, "lo")):
        netlink.set_link(device, up=True)
    pair.pod.add_address("eth0", f"{ip}/{length}")
    pair.node.add_address("lo", f"{router}/{length}")
    pair.pod.add_route(router, dev="eth0")
    pair.pod.add_route(default, via=router, dev="eth0")
    add_host_route(pair.node, ip, dev="lxc-pod", src=router)
    add_host_route(pair.node, ip, dev="lxc-pod", src=router)
    add_permanent_neighbour(pair.node, ip, MAC, dev="lxc-pod")
    add_permanent_neighbour(pair.node, ip, POD_MAC, dev="lxc-pod")

    assert f"default via {router} dev eth0" in _ip(pair.pod_ns, family, "route")
    routes = [line for line in _ip(pair.node_ns, family, "route").splitlines() if ip in line]
    assert len(routes) == 1
    assert "dev lxc-pod" in routes[0] and f"src {router}" in routes[0]
    assert f"{ip} dev lxc-pod lladdr {POD_MAC} PERMANENT" in _ip(pair.node_ns, family, "neigh")

    assert remove_host_route(pair.node, ip, dev="lxc-pod") is True
    assert remove_host_route(pair.node, ip, dev="lxc-pod") is False
    assert ip not in _ip(pair.node_ns, family, "route") + _ip(pair.node_ns, family, "neigh")
    index = pair.link.ifindex
    pair.node.delete_link(index)
    assert remove_host_route(pair.node, ip, dev="lxc-pod") is False
    assert remove_host_route(pair.node, ip, dev=index) is False


def up(pair: Pair) -> None:
    """Both ends of the pair can send."""
    for client, device in ((pair.node, "lxc-pod"), (pair.pod, "eth0")):
        client.set_link(device, up=True)
    pair.node.add_address("lxc-pod", "192.0.2.1/24")
    pair.node.wait_operational("lxc-pod")


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_a_route_by_several_gateways(pair: Pair, version: int) -> None:
    """They share its flows by weight; replaced by one of them, it is a plain route."""
    family = f"-{version}"
    dst = "203.0.113.0/24" if version == 4 else "2001:db8:9::/64"
    first, second = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fd00::1", "fd00::2")
    hops = [NextHop(first, "lxc-pod"), NextHop(second, "lxc-pod", weight=3)]
    up(pair)
    pair.node.add_route(dst, hops=hops)
    text = _ip(pair.node_ns, family, "route", "show", dst)
    assert f"nexthop via {first} dev lxc-pod weight 1 onlink" in text
    assert f"nexthop via {second} dev lxc-pod weight 3 onlink" in text
    pair.node.add_route(dst, hops=hops[1:], replace=True)
    text = _ip(pair.node_ns, family, "route", "show", dst)
    assert f"{dst} via {second} dev lxc-pod" in text and first not in text


@pytest.mark.parametrize("ip", ["10.0.0.9", "fd00::9"])
def test_a_neighbour_that_the_kernel_manages(pair: Pair, ip: str) -> None:
    """The kernel asks for it by itself; it carries a mark, and can be made like any other again."""
    up(pair)
    length, own = (64, "fd00::1") if ":" in ip else (24, "10.0.0.1")
    pair.node.add_address("lxc-pod", f"{own}/{length}")
    pair.node.manage_neighbour("lxc-pod", ip, protocol=77)
    found = known(pair, ip)
    assert (found.managed, found.protocol, found.permanent) == (True, 77, False)
    assert found.ifindex == pair.link.ifindex
    pair.node.release_neighbour("lxc-pod", ip)  # its MAC was never known
    assert not any(str(neighbour.address) == ip for neighbour in pair.node.neighbours())
    pair.pod.add_address("eth0", f"{ip}/{length}")
    pair.pod.wait_usable("eth0", ip)
    pair.node.manage_neighbour("lxc-pod", ip, protocol=77)
    deadline = time.monotonic() + 10
    while known(pair, ip).mac != POD_MAC:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pair.node.release_neighbour("lxc-pod", ip)
    found = known(pair, ip)
    assert (found.managed, found.permanent, found.mac) == (False, False, POD_MAC)


def known(pair: Pair, ip: str) -> Neighbour:
    (found,) = [n for n in pair.node.neighbours() if str(n.address) == ip]
    return found


def test_veth_peer(pair: Pair) -> None:
    """The host side is found from the pod's device, in the namespace that was named."""
    assert veth_peer(pair.pod_ns, "eth0", into=pair.node_ns) == pair.node.link("lxc-pod")
    assert veth_peer(pair.node_ns, "lxc-pod", into=pair.pod_ns) == pair.pod.link("eth0")


def test_veth_peer_elsewhere(pair: Pair) -> None:
    """A device of the same number in another namespace is not taken for the peer."""
    other = NetNS.create(f"{PREFIX}-c")
    try:
        with Netlink(other) as nl:
            nl.add_bridge("br0")
            nl.add_veth("v0", "v1")
            wrong = {link.ifindex for link in nl.links()}
            assert pair.link.ifindex in wrong
        for into in (other, pair.pod_ns):
            with pytest.raises(errors.DeviceError, match="is not in"):
                veth_peer(pair.pod_ns, "eth0", into=into)
    finally:
        other.delete()


def test_veth_peer_within_one_namespace(pair: Pair) -> None:
    """A pair with both ends in one namespace is found there and only there."""
    pair.node.add_veth("v0", "v1")
    assert veth_peer(pair.node_ns, "v0", into=pair.node_ns).name == "v1"
    with pytest.raises(errors.DeviceError, match="is not in"):
        veth_peer(pair.node_ns, "v0", into=pair.pod_ns)


def test_veth_peer_of_another_kind(pair: Pair) -> None:
    """A bridge has no other end."""
    with pytest.raises(errors.DeviceError, match="no veth but bridge"):
        veth_peer(pair.node_ns, "br0", into=pair.node_ns)


def test_short_questions(pair: Pair) -> None:
    """Number and MAC of a device of a namespace."""
    assert ifindex_in(pair.node_ns, "lxc-pod") == pair.link.ifindex
    assert mac_of(pair.pod_ns, "eth0") == POD_MAC


@pytest.mark.parametrize(
    ("operation", "expected", "words"),
    [
        (lambda nl: nl.link("nope"), errors.DeviceError, "'nope'"),
        (lambda nl: nl.link(4242), errors.DeviceError, "4242"),
        (lambda nl: nl.set_link("nope", up=True), errors.DeviceError, "'nope'"),
        (lambda nl: nl.set_link("lxc-pod", mtu=3), errors.InvalidError, "lxc-pod"),
        (lambda nl: nl.set_link("lxc-pod", mac="zz"), errors.InvalidError, "MAC"),
        (lambda nl: nl.add_veth("lxc-pod", "x"), errors.ExistsError, "lxc-pod-x"),
        (lambda nl: nl.add_veth("a" * 16, "x"), errors.InvalidError, "15 bytes"),
        (lambda nl: nl.add_veth("x", "a/b"), errors.InvalidError, "15 bytes"),
        (lambda nl: nl.add_address("lo", "10.0.0.1/33"), errors.InvalidError, "10.0.0.1/33"),
        (lambda nl: nl.add_address("nope", "10.0.0.1/32"), errors.DeviceError, "nope"),
        (lambda nl: nl.add_route("10.0.0.0/8"), errors.InvalidError, "dev="),
        (lambda nl: nl.add_route("ten", dev="lo"), errors.InvalidError, "ten"),
        (lambda nl: nl.add_route("10.0.0.0/8", via="fd00::1"), errors.InvalidError, "family"),
        (lambda nl: nl.add_route("10.0.0.0/8", via="9.9.9.9"), errors.KernelError, "gateway"),
        (
            lambda nl: nl.add_route("10.0.0.0/8", hops=[NextHop("fd00::1")]),
            errors.InvalidError,
            "fa",
        ),
        (
            lambda nl: nl.add_route("10.0.0.0/8", dev="lo", hops=[NextHop("10.0.0.1")]),
            errors.InvalidError,
            "hops=",
        ),
        (lambda nl: NextHop("10.0.0.1", weight=0), errors.InvalidError, "weight"),
        (lambda nl: nl.delete_route("1.2.3.4", dev="lo"), errors.NotFoundError, "1.2.3.4"),
        (lambda nl: nl.delete_neighbour("lo", "1.2.3.4"), errors.NotFoundError, "1.2.3.4"),
        (lambda nl: nl.add_neighbour("lo", "1.2.3.4", "x"), errors.InvalidError, "MAC"),
    ],
)
def test_refusals(
    pair: Pair, operation: Callable[[Netlink], object], expected: type[Exception], words: str
) -> None:
    """Each wrong request raises its type, names its object, and changes no device."""
    before = pair.node.links()
    with pytest.raises(expected, match=words):
        operation(pair.node)
    assert pair.node.links() == before


def test_closed_client(pair: Pair) -> None:
    """A closed client says so."""
    client = Netlink(pair.node_ns)
    client.close()
    client.close()
    with pytest.raises(errors.ClosedError):
        client.links()


def _ip(netns: NetNS, *args: str) -> str:
    argv = ["ip", "-n", str(netns.name), *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
