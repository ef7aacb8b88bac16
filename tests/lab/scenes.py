"""What the tests of a datapath share: a small scene, documents in few words, and what is seen."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from pyciliumlib.datapath import Datapath
from pyciliumlib.flow import DropReason, Flow, FlowType
from pyciliumlib.lab import Host, Lab, Node, Outside, Pod
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.types import Address
from tests import scale

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
#: Seconds after which a packet of the lab that is not there has been dropped.
SILENCE = scale.seconds(0.25)
#: Seconds in which an answer comes on a busy machine, and less than TCP waits to send again.
PATIENCE = scale.seconds(0.9)
OPEN = 0
AUTH_REQUIRED = int(DropReason.POLICY_AUTH_REQUIRED)
POLICY, DENY = int(DropReason.POLICY), int(DropReason.POLICY_DENY)


def at(host: Host, version: int) -> Address:
    """The host's address of that version."""
    return host.ip4 if version == 4 else host.ip6


# ---------------------------------------------------------------------- documents


def policy(
    name: str,
    subject: dict[str, str],
    *,
    namespace: str = "default",
    **sections: list[dict[str, Any]],
) -> dict[str, Any]:
    """A CiliumNetworkPolicy about the pods with the labels `subject`."""
    selector = {"matchLabels": subject} if subject else {}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"endpointSelector": selector, **sections},
    }


def cidr_group(name: str, *cidrs: str) -> dict[str, Any]:
    """A CiliumCIDRGroup of these prefixes."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name},
        "spec": {"externalCIDRs": list(cidrs)},
    }


def apps(word: str, *names: str) -> dict[str, Any]:
    """`word` is "from" or "to": the pods of these apps."""
    return {f"{word}Endpoints": [{"matchLabels": {"app": name}} for name in names]}


def ports(*texts: str) -> dict[str, Any]:
    """The ports of a rule, "80/TCP" each."""
    pairs = [text.split("/") for text in texts]
    return {"toPorts": [{"ports": [{"port": p, "protocol": proto} for p, proto in pairs]}]}


# ---------------------------------------------------------------------- the scene


@frozen
class Scene:
    """A node under a datapath with the pods web, api and db, and a host outside.

    Every pod is labelled with its name as `app`, and serves 80/TCP, 81/TCP and 53/UDP.
    """

    lab: Lab
    node: Node
    dp: Datapath
    web: Pod
    api: Pod
    db: Pod
    world: Outside

    def host(self, name: str) -> Host:
        return self.node if name == "node" else self.lab.host(name)

    def verdict(self, src: str, dst: str, port: str, version: int) -> int:
        """0 if `dst` answers `src`, else why the datapath dropped what was sent.

        `port` may be "echo". Fails where the datapath has nothing to say to a lost packet.
        """
        self.drain()
        client, address = self.host(src), at(self.host(dst), version)
        # no answer and no drop within a moment: the machine was busy, or the packet was lost
        for patience in (SILENCE, PATIENCE):
            if port == "echo":
                result = client.ping(address, timeout=patience)
            else:
                result = client.connect(address, port, timeout=patience)
            if result.ok:
                return OPEN
            assert result.error == "timeout", result
            reasons = {flow.reason for flow in self.drops()}
            if reasons:
                break
        assert len(reasons) == 1, f"{src} to {dst} {port}: dropped for {reasons}"
        return reasons.pop()

    def drain(self) -> None:
        """Forget the flows so far."""
        list(self.dp.flows())

    def drops(self) -> list[Flow]:
        """The drops since they were last asked for, without the noise of the link."""
        link = (DropReason.FORBIDDEN_ICMPV6,)
        return [
            flow
            for flow in self.dp.flows()
            if flow.type is FlowType.DROP and flow.drop_reason not in link
        ]

    def no_policy(self) -> None:
        """Delete every document and every flow, as after the start."""
        self.dp.policy.delete(*(document.key for document in self.dp.policy.documents))
        self.dp.conntrack.flush()


@contextmanager
def scene(lab: Lab, namespace: str = "default", **options: Any) -> Iterator[Scene]:
    """The scene on a new node of the lab; `options` are the datapath's."""
    node = lab.node()
    world = lab.outside("world", of=node)
    with Datapath(node, **options) as dp:
        pods = []
        for name in ("web", "api", "db"):
            pods.append(node.pod(name))
            dp.add_endpoint(name, {"app": name}, namespace=namespace, pod=pods[-1])
        for host in (*pods, world, node):
            for port in ("80/TCP", "81/TCP", "53/UDP"):
                host.serve(port)
        yield Scene(lab, node, dp, *pods, world)


# ---------------------------------------------------------------------- kept connections


@contextmanager
def tcp_pair(
    client: Host, server: Host, version: int, port: int = 8000
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one TCP connection between two hosts."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        server.netns.socket(family, socket.SOCK_STREAM) as listener,
        client.netns.socket(family, socket.SOCK_STREAM) as near,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(at(server, version)), port))
        listener.listen()
        listener.settimeout(2)
        near.settimeout(2)
        near.connect((str(at(server, version)), port))
        far, _ = listener.accept()
        with far:
            # an abort at the end, so that no FIN of this pair is dropped in the next test
            for sock in (near, far):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            yield near, far


def arrives(sender: socket.socket, receiver: socket.socket, timeout: float = SILENCE) -> bool:
    """Whether a byte that `sender` sends now comes out at `receiver` within `timeout` seconds."""
    sender.sendall(b"x")
    return comes(receiver, timeout)


def comes(receiver: socket.socket, timeout: float) -> bool:
    """Whether something that was sent before comes within `timeout` seconds."""
    receiver.settimeout(timeout)
    try:
        return bool(receiver.recv(65536))
    except TimeoutError:
        return False


def frames(pod: Pod) -> socket.socket:
    """A socket that puts whole Ethernet frames on the pod's device."""
    sock = pod.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((pod.ifname, 0))
    return sock


# ---------------------------------------------------------------------- traces


#: Maps whose contents are no state of the datapath but of its traffic, or only count.
_TRAFFIC = {"flows", "pending", "fragments", "metrics", "events", "events_lost", "work"}
_COUNTERS = {"hook_args", "policy_rev", "ipcache_rev", "policy_generation", "endpoint_links"}


def traces(dp: Datapath, node: Node) -> dict[str, Any]:
    """Everything that a change of endpoints or policy may leave behind, to be compared."""
    maps = dp._programs.maps
    with Netlink(node.netns) as netlink:
        links = sorted(link.name for link in netlink.links())
    return {
        "maps": {
            name: sorted(map(str, table.items()))
            for name, table in maps.items()
            if name[:1] != "." and name not in _TRAFFIC | _COUNTERS | {"policies", "hooks"}
        },
        "documents": [document.key for document in dp.policy.documents],
        "endpoints": dict(dp.endpoints),
        "policies": set(dp.policy.repository.policies()),
        "identities": _identities_in_use(dp),
        "ipcache": sorted(map(str, dp.ipcache)),
        "stored": [
            entry.key for entry in dp._store.entries("") if not entry.key.startswith("cilium/")
        ],
        "links": links,
        "routes": node.run(["ip", "route"]).stdout + node.run(["ip", "-6", "route"]).stdout,
        "neighbours": sorted(node.run(["ip", "neigh", "show", "nud", "permanent"]).stdout.split()),
        "namespaces": sorted(p.name for p in Path("/run/netns").glob(f"pcl-{node.lab.id}-*")),
        "drift": str(dp.drift()),
    }


def _identities_in_use(dp: Datapath) -> list[str]:
    """Those that something holds: a number that nobody uses stays its labels' for a while."""
    entries = {entry.identity for entry in dp.ipcache}
    return sorted(str(i) for i in dp.identities.identities() if i.id in entries)


def descriptors() -> Counter[str]:
    """This process's file descriptors, by what they are of."""
    found: Counter[str] = Counter()
    for path in tuple(Path("/proc/self/fd").iterdir()):
        try:
            target = str(path.readlink())
        except FileNotFoundError:  # that of this very listing
            continue
        found[target if "bpf" in target else target.split(":")[0]] += 1
    return found


def eventually(condition: Any, timeout: float = 5.0) -> bool:
    """Whether the condition holds before `timeout` seconds are over."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@frozen
class BareNode:
    """A node of which only the namespace and the addresses are known: no pods can be made."""

    netns: NetNS
    addresses: tuple[Address, ...]
