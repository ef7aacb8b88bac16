"""A datapath outlives its process: killed under traffic, it is adopted by the next."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.datapath import Datapath, DatapathConfig
from pyciliumlib.kernel import Map, Program
from pyciliumlib.lab import Lab, Node, Outside, Pod
from tests.lab import scenes
from tests.lab.controller import controlled
from tests.lab.scenes import SILENCE, VERSIONS, BareNode, apps, arrives, at, ports
from tests.scale import seconds

_serial = itertools.count()
#: Two prefixes in an order in which a new process would number them the other way round.
DOCUMENTS = [
    scenes.policy("zz-first", {"app": "web"}, egress=[
        {"toCIDR": ["203.0.113.7/32", "2001:db8:7::1/128"], **ports("80/TCP", "8000/TCP")},
        {"toCIDR": ["192.0.2.0/24", "2001:db8::/64"], **ports("81/TCP")},
        apps("to", "api"),
    ]),
    scenes.policy("aa-second", {"app": "web"}, egress=[
        {"toCIDR": ["10.99.0.0/16", "fd99::/64"]},
    ]),
    scenes.policy("api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports("8000/TCP")}]),
]  # fmt: skip


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A root of this test alone, gone afterwards."""
    path = Path(f"/sys/fs/bpf/pcl-restart-{os.getpid()}-{next(_serial)}")
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def place(lab: Lab) -> Iterator[tuple[Node, Pod, Pod, Outside]]:
    """A node with two pods, and a host outside at 203.0.113.7."""
    with lab.node() as node:
        with lab.outside("cloud", of=node, ip4="203.0.113.7", ip6="2001:db8:7::1") as cloud:
            yield node, node.pod("web"), node.pod("api"), cloud


class Stream:
    """A thread that sends without end, and one that notes the longest silence at the other end."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self._ends = sender, receiver
        self._stop = threading.Event()
        self.bytes = 0
        self.silence = 0.0
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]

    def _send(self) -> None:
        block = bytes(16384)
        self._ends[0].settimeout(10)
        while not self._stop.is_set():
            self._ends[0].sendall(block)
            time.sleep(0.001)
        self._ends[0].shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        self._ends[1].settimeout(10)
        last = time.monotonic()
        while data := self._ends[1].recv(1 << 20):
            now = time.monotonic()
            self.silence, last = max(self.silence, now - last), now
            self.bytes += len(data)

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        assert scenes.eventually(lambda: self.bytes > 0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@VERSIONS
@pytest.mark.smoke
def test_killed_under_a_transfer(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path, version: int
) -> None:
    """Traffic goes on while nobody is there and while the next process adopts; that one knows
    endpoints, identities, policy and flows, and its changes bite on the same connections."""
    node, web, api, cloud = place
    with controlled(pin_root, node, [web, api], DOCUMENTS) as controller:
        with (
            scenes.tcp_pair(web, api, version) as (near, far),
            scenes.tcp_pair(web, cloud, version) as (out, outer),
        ):
            with Stream(near, far) as to_pod, Stream(outer, out) as from_world:
                with pytest.raises(errors.LockedError):
                    Datapath.open(pin_root, node)
                controller.kill()
                alone = to_pod.bytes
                assert web.connect(at(cloud, version), "82/TCP", timeout=SILENCE).error == "timeout"
                assert scenes.eventually(lambda: to_pod.bytes > alone)
                dp = Datapath.open(pin_root, node)
                adopted = to_pod.bytes, from_world.bytes
                assert scenes.eventually(
                    lambda: to_pod.bytes > adopted[0] and from_world.bytes > adopted[1]
                )
            try:
                check_adopted(dp, web, api, cloud, version)
                numbers = {str(entry.prefix): entry.identity for entry in dp.ipcache}
                assert numbers == controller.identities
                assert max(to_pod.silence, from_world.silence) < seconds(1.0)
                assert not [flow for flow in dp.flows() if flow.dropped and flow.dport == 8000]
            finally:
                dp.close()
        with Datapath(node) as fresh:
            assert not fresh.endpoints


def check_adopted(dp: Datapath, web: Pod, api: Pod, cloud: Outside, version: int) -> None:
    assert not dp.drift(), str(dp.drift())
    assert {name: set(e.addresses) for name, e in dp.endpoints.items()} == {
        "web": set(web.addresses),
        "api": set(api.addresses),
    }
    assert {document.key.name for document in dp.policy.documents} == {
        "zz-first", "aa-second", "api",
    }  # fmt: skip
    seen = {(flow.src_identity, flow.dst_identity) for flow in dp.conntrack if flow.replied}
    ids = {name: endpoint.identity for name, endpoint in dp.endpoints.items()}
    outside = dp.ipcache.lookup(at(cloud, version))
    assert outside is not None
    assert seen == {(ids["web"], ids["api"]), (ids["web"], outside.identity)}


@VERSIONS
def test_the_next_process_changes_policy(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path, version: int
) -> None:
    """After the takeover a withdrawn rule bites, documents can be deleted, endpoints removed."""
    node, web, api, _ = place
    with controlled(pin_root, node, [web, api], DOCUMENTS) as controller:
        with scenes.tcp_pair(web, api, version) as (near, far):
            assert arrives(near, far)
            controller.kill()
            with Datapath.open(pin_root, node) as dp:
                identities = {name: e.identity for name, e in dp.endpoints.items()}
                dp.policy.apply(
                    scenes.policy("api", {"app": "api"}, ingress=[apps("from", "nobody")])
                )
                assert not arrives(far, near) and not arrives(near, far)
                dp.policy.apply(DOCUMENTS[2])
                assert scenes.comes(near, 3.0)
                dp.keep()
            with Datapath.open(pin_root, node) as dp:
                assert {name: e.identity for name, e in dp.endpoints.items()} == identities
                assert arrives(near, far)
                dp.policy.delete(*(document.key for document in dp.policy.documents))
                dp.remove_endpoint("api")
                assert not arrives(near, far)
                dp.keep()
            with Datapath.open(pin_root, node) as dp:  # still closed, and known to be
                assert list(dp.endpoints) == ["web"]
                assert not arrives(near, far) and not arrives(far, near)
                assert not dp.drift()
                dp.add_endpoint("api", {"app": "api"}, pod=api)
                assert scenes.comes(far, 3.0)


def test_a_pod_that_went_meanwhile(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint whose device is gone is dropped with a warning; the others are adopted."""
    node, web, api, _ = place
    with controlled(pin_root, node, [web, api], DOCUMENTS) as controller:
        controller.kill()
        node.netlink.delete_link(api.ifindex)
        with Datapath.open(pin_root, node) as dp:
            assert list(dp.endpoints) == ["web"]
            assert "api" in caplog.text
            assert not dp.drift()
            assert dp._pins is not None
            assert {pin.name.split("_")[0] for pin in dp._pins.links.iterdir()} == {
                str(web.ifindex)
            }


def test_a_change_cut_short(place: tuple[Node, Pod, Pod, Outside], pin_root: Path) -> None:
    """What a process that died in the middle of adding an endpoint has left is removed."""
    node, web, api, _ = place
    with Datapath(node, pin_root=pin_root) as dp:
        dp.add_endpoint("web", {"app": "web"}, pod=web)
        half = dp.add_endpoint("api", {"app": "api"}, pod=api)
        dp._store.delete("endpoints/api")
        dp.keep()
    with Datapath.open(pin_root, node) as dp:
        assert list(dp.endpoints) == ["web"]
        assert not dp.drift()
        assert not len(dp.policy._tries.read(half.id))
        again = dp.add_endpoint("api", {"app": "api"}, pod=api)
        assert again.addresses == half.addresses
        assert not dp.drift()


# ---------------------------------------------------------------------- what cannot be opened


@pytest.fixture
def node(lab: Lab) -> Iterator[BareNode]:
    with lab.node() as made:
        yield BareNode(made.netns, made.addresses)


def test_nothing_is_pinned(node: BareNode, pin_root: Path) -> None:
    """`open` makes nothing: neither a directory nor a datapath."""
    with pytest.raises(errors.NotFoundError, match=pin_root.name):
        Datapath.open(pin_root, node)


def test_not_on_a_bpf_file_system(node: BareNode, tmp_path: Path) -> None:
    """A pin root elsewhere is refused before anything is loaded or made."""
    with pytest.raises(errors.InvalidError, match="BPF file system"):
        Datapath(node, pin_root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_rows_that_are_right_stay_where_they_are(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that looks for a row while it is written over may miss it, equal or not."""
    node, pod, _, _ = place
    written: list[tuple[str, object]] = []
    write = Map.__setitem__

    def watched(table: Map, key: object, value: object) -> None:
        written.append((table.name, key))
        write(table, key, value)

    with Datapath(node, pin_root=pin_root) as dp:
        address = dp.add_endpoint("web", {"app": "web"}, pod=pod).addresses[0]
        row = dict(dp._programs.maps["endpoints"][address]._asdict(), mac=bytes(6))
        dp._programs.maps["endpoints"][address] = row
        dp.keep()
    monkeypatch.setattr(Map, "__setitem__", watched)
    with Datapath.open(pin_root, node) as dp:
        rows = [key for name, key in written if name in ("endpoints", "devices")]
        assert rows == [address] and not dp.drift()


def test_locked(node: BareNode, pin_root: Path) -> None:
    """One owner at a time, also within a process; the second leaves the first as it is."""
    with Datapath(node, pin_root=pin_root) as dp:
        for _ in range(2):
            with pytest.raises(errors.LockedError, match=pin_root.name):
                Datapath.open(pin_root, node)
            with pytest.raises(errors.LockedError):
                Datapath(node, pin_root=pin_root)
        assert not dp.drift()


def test_another_layout(node: BareNode, pin_root: Path) -> None:
    """Pins of a version with another layout are refused as they are, and the lock is given back."""
    foreign = pin_root / "v99"
    foreign.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(errors.LayoutError, match="layout v99"):
            Datapath.open(pin_root, node)
    assert [path.name for path in pin_root.iterdir()] == ["v99"]
    foreign.rmdir()
    pin_root.rmdir()


def test_other_sizes(node: BareNode, pin_root: Path) -> None:
    """Pinned maps of another size are refused with every difference; nothing is changed."""
    with Datapath(node, pin_root=pin_root) as dp:
        dp.keep()
    pinned = sorted(pin_root.rglob("*"))
    with pytest.raises(errors.MismatchError) as caught:
        Datapath.open(pin_root, node, config=DatapathConfig(flows=4096, ipcache=1024))
    text = "\n".join(caught.value.differences)
    assert "flows" in text and "4096" in text and "ipcache" in text and "1024" in text
    assert sorted(pin_root.rglob("*")) == pinned
    Datapath.open(pin_root, node).close()


def test_every_size_is_the_next_ones_too(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path
) -> None:
    """Maps of sizes of one's own are adopted as they are, the endpoints' policies among them."""
    node, web, *_ = place
    config = DatapathConfig(
        max_endpoints=16, flows=1024, pending=512, fragments=128, ipcache=1024,
        ipcache_cells=64, policy=512, event_bytes=1 << 14,
    )  # fmt: skip
    with Datapath(node, pin_root=pin_root, config=config) as dp:
        dp.add_endpoint("web", {"app": "web"}, pod=web)
        dp.policy.apply(DOCUMENTS)
        dp.keep()
    with Datapath.open(pin_root, node, config=config) as dp:
        assert list(dp.endpoints) == ["web"] and not dp.drift()


def test_pins_removed_by_hand(place: tuple[Node, Pod, Pod, Outside], pin_root: Path) -> None:
    """Without its maps the rest of the state means nothing: the next one starts from nothing."""
    node, web, api, _ = place
    with Datapath(node, pin_root=pin_root) as dp:
        for pod in (web, api):
            dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
        dp.policy.apply(DOCUMENTS)
        dp.keep()
    shutil.rmtree(pin_root)
    with Datapath(node, pin_root=pin_root) as dp:
        assert not dp.endpoints and not dp.policy.documents
        dp.add_endpoint("web", {"app": "web"}, pod=web)


def test_close_leaves_no_pin(node: BareNode, pin_root: Path) -> None:
    """`close` ends it all: pins, state and lock; the next one starts from nothing."""
    state: Any = None
    for _ in range(3):
        with Datapath(node, pin_root=pin_root) as dp:
            assert dp._pins is not None
            state = dp._pins.state.parent
            assert not dp.policy.documents
            dp.policy.apply(DOCUMENTS)
        assert not pin_root.exists() and not state.exists()


def test_many_lives_leak_nothing(place: tuple[Node, Pod, Pod, Outside], pin_root: Path) -> None:
    """Made, kept, taken over and closed again and again: no descriptor, no pin, and nothing that
    the kernel still holds of the last one."""
    node, web, api, _ = place
    small = DatapathConfig(flows=64, pending=64, event_bytes=4096, ipcache=64, tc="clsact")

    def life() -> list[tuple[type[Map] | type[Program], int]]:
        dp = Datapath(node, pin_root=pin_root, config=small)
        for pod in (web, api):
            dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
        dp.policy.apply(DOCUMENTS)
        dp.keep()
        with Datapath.open(pin_root, node, config=small) as dp:
            assert len(dp.endpoints) == 2
            made = dp._programs
            tries = [Map.from_id(number) for number in made.maps["policies"].values()]
            held = [(Map, found.info.id) for found in (*made.maps.values(), *tries)]
            for trie in tries:
                trie.close()
            return [*held, *((Program, program.id) for program in made.plain.programs.values())]

    life()
    gc.collect()
    before = scenes.descriptors(), threading.active_count()
    for _ in range(5):
        left = life()
        assert not pin_root.exists()
    gc.collect()
    assert (scenes.descriptors(), threading.active_count()) == before
    assert len(left) > 20

    def is_gone(kind: type[Map] | type[Program], number: int) -> bool:
        try:
            kind.from_id(number).close()
        except errors.NotFoundError:
            return True
        return False

    assert scenes.eventually(lambda: all(is_gone(*each) for each in left))


def test_assigned_prefixes_are_known_again(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path
) -> None:
    """What was assigned stands after a restart, and what was taken back does not."""
    node, *_ = place
    dp = Datapath(node, pin_root=pin_root)
    dp.assign("198.51.100.0/24", labels=["reserved:kube-apiserver"])
    dp.assign("203.0.113.1", identity=7)
    dp.assign("203.0.113.2", identity=7)
    assert dp.unassign("203.0.113.2")
    dp.keep()
    with Datapath.open(pin_root, node) as again:
        entry = again.ipcache.lookup("198.51.100.9")
        assert entry is not None
        labels = again.policy.repository.identity(entry.identity).labels
        assert "reserved:kube-apiserver" in map(str, labels)
        found = again.ipcache.lookup("203.0.113.1")
        assert found is not None
        assert found.identity == 7
        assert again.ipcache.lookup("203.0.113.2") is None
        assert not again.drift(), str(again.drift())
        assert not again.unassign("203.0.113.2")


def test_a_deleted_document_stays_deleted(
    place: tuple[Node, Pod, Pod, Outside], pin_root: Path
) -> None:
    """Also one that was written without its namespace, which is then `default`."""
    node, *_ = place
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "brief"},
        "spec": {"endpointSelector": {}, "ingress": [{}]},
    }
    dp = Datapath(node, pin_root=pin_root)
    dp.policy.apply(document)
    dp.policy.apply({**document, "metadata": {"name": "brief", "namespace": "default"}})
    (only,) = dp.policy.documents
    dp.policy.delete(only.key)
    dp.keep()
    with Datapath.open(pin_root, node) as again:
        assert not again.policy.documents
