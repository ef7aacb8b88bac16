"""Endpoints come and go: whole or not at all, with nothing left behind, and nothing let through."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from pyciliumlib import errors
from pyciliumlib.datapath import Datapath, DatapathConfig, Endpoints
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab, Node
from pyciliumlib.policy import PolicySettings
from tests.lab import scenes
from tests.lab.scenes import OPEN, SILENCE, VERSIONS, Scene, at


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """The scene without any policy."""
    yield shared
    shared.no_policy()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """A node of this test alone."""
    with lab.node() as made:
        yield made


# ---------------------------------------------------------------------- removed, and added again


@VERSIONS
@pytest.mark.smoke
def test_nothing_passes_to_or_from_a_removed_endpoint(scene: Scene, version: int) -> None:
    """Its device is still there, and is closed: for new connections, for old ones, both ways."""
    web, db = at(scene.web, version), scene.db
    with (
        scenes.tcp_pair(scene.web, scene.api, version, 8001) as (near, far),
        scenes.tcp_pair(scene.world, scene.web, version, 8002) as (outer, inner),
    ):
        assert scenes.arrives(near, far) and scenes.arrives(outer, inner)
        scene.dp.remove_endpoint("web")
        try:
            for sender, receiver in ((near, far), (far, near), (outer, inner), (inner, outer)):
                assert not scenes.arrives(sender, receiver)
            for client in (scene.api, db, scene.world, scene.node):
                assert client.connect(web, "80/TCP", timeout=SILENCE).error == "timeout"
            for server in (scene.api, scene.world, scene.node):
                result = scene.web.connect(at(server, version), "53/UDP", timeout=SILENCE)
                assert result.error == "timeout"
            assert not scene.dp.drift()
        finally:
            scene.dp.add_endpoint("web", {"app": "web"}, pod=scene.web)
        assert scenes.comes(far, 3.0)
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN
    assert scene.verdict("world", "web", "80/TCP", version) == OPEN


def test_adding_and_removing_leaves_no_trace(scene: Scene) -> None:
    """A pod made by the datapath goes with its endpoint; all maps are as before."""
    scene.dp.remove_endpoint(scene.dp.add_endpoint("brief", {"app": "brief"}).name)
    before = scenes.traces(scene.dp, scene.node)
    endpoint = scene.dp.add_endpoint("brief", {"app": "brief"}, ports={"http": "80/TCP"})
    assert scenes.traces(scene.dp, scene.node) != before
    assert endpoint.named_ports["http"][0] == 80
    scene.dp.remove_endpoint("brief")
    assert scenes.traces(scene.dp, scene.node) == before


@VERSIONS
def test_by_namespace_and_by_device(scene: Scene, version: int) -> None:
    """What knows nothing of the lab gets routes of its own, which go with it."""
    for how in ("netns", "device"):
        with scene.node.pod("plain") as pod:
            for address in pod.addresses:  # only a plain veth, as from another tool
                scene.node.run(["ip", "route", "del", address])
                scene.node.run(["ip", "neigh", "del", address, "dev", pod.host_ifname])
            before = scenes.traces(scene.dp, scene.node)
            where: dict[str, Any] = {"netns": str(pod.netns.name)}
            if how == "device":
                where = {"device": pod.host_ifname, "mac": pod.mac, "addresses": pod.addresses}
            endpoint = scene.dp.add_endpoint("plain", {"app": "plain"}, **where)
            assert set(endpoint.addresses) == set(pod.addresses)
            assert (endpoint.mac, endpoint.node_mac) == (pod.mac, pod.host_mac)
            pod.serve("80/TCP")
            assert scene.verdict("web", "plain", "80/TCP", version) == OPEN
            assert scene.verdict("plain", "api", "80/TCP", version) == OPEN
            assert scene.verdict("world", "plain", "80/TCP", version) == OPEN
            scene.dp.remove_endpoint("plain")
            after = scenes.traces(scene.dp, scene.node)
            differing = [name for name in before if after[name] != before[name]]
            assert differing == (["stored"])  # the device that was left is remembered as closed


def test_a_device_that_vanished(scene: Scene) -> None:
    """The pod went first; its endpoint is removed without an error and without a trace."""
    with scene.node.pod("short") as pod:
        before = scenes.traces(scene.dp, scene.node)
        scene.dp.add_endpoint("short", {"app": "short"}, pod=pod)
        scene.node.netlink.delete_link(pod.ifindex)
        assert "short" in str(scene.dp.drift())
        scene.dp.remove_endpoint("short")
        after = scenes.traces(scene.dp, scene.node)
        assert after["maps"] == before["maps"] and after["drift"] == before["drift"]
        assert not {"endpoints/short", f"devices-left/{pod.ifindex}"} & set(after["stored"])


# ---------------------------------------------------------------------- whole or not at all


def test_ids_exhausted(node: Node) -> None:
    """The endpoint too many is refused by name, and as if it had never been asked for."""
    with Datapath(node, config=DatapathConfig(max_endpoints=3)) as dp:
        for name in ("one", "two"):
            dp.add_endpoint(name, {"app": name})
        before, held = scenes.traces(dp, node), scenes.descriptors()
        for _ in range(3):
            with pytest.raises(errors.ExhaustedError, match="max_endpoints"):
                dp.add_endpoint("three", {"app": "three"})
            gc.collect()
            assert scenes.traces(dp, node) == before
            assert scenes.descriptors() == held
        dp.remove_endpoint("one")
        dp.add_endpoint("three", {"app": "three"})


def test_a_full_policy_map(node: Node) -> None:
    """Documents, new endpoints and new labels that need more entries than a map has: MapFullError,
    and the old policy is in force everywhere."""
    rules = [{"toPorts": [{"ports": [{"port": str(2 * n + 1), "protocol": "TCP"}]}]}
             for n in range(30)]  # fmt: skip
    large = scenes.policy("large", {"app": "large"}, ingress=rules)
    with Datapath(node, config=DatapathConfig(policy=16)) as dp:
        dp.policy.apply(large)
        dp.add_endpoint("small", {"app": "small"})
        before = scenes.traces(dp, node)
        with pytest.raises(errors.MapFullError):
            dp.add_endpoint("large", {"app": "large"})
        assert scenes.traces(dp, node) == before
        with pytest.raises(errors.MapFullError):
            dp.endpoints.relabel("small", {"app": "large"})
        assert scenes.traces(dp, node) == before
        everybody = scenes.policy("large", {}, ingress=rules)
        with pytest.raises(errors.MapFullError):
            dp.policy.apply([everybody, scenes.policy("other", {}, ingress=[{}])])
        assert scenes.traces(dp, node) == before


@VERSIONS
def test_what_a_full_map_cannot_keep_out_is_dropped(version: int) -> None:
    """An identity that no longer fits into one endpoint's map: MapFullError, and the endpoint is
    locked down, for old connections too; it opens when the identity is gone again."""
    deny = scenes.policy("api", {"app": "api"}, ingress=[{"fromEntities": ["all"]}],
                         ingressDeny=[scenes.apps("from", "bad")])  # fmt: skip
    bad = ["k8s:app=bad", "k8s:io.kubernetes.pod.namespace=default",
           "k8s:io.cilium.k8s.policy.cluster=default"]  # fmt: skip
    with (
        Lab() as lab,
        scenes.scene(lab, config=DatapathConfig(policy=16)) as scene,
        scenes.tcp_pair(scene.web, scene.api, version) as (near, far),
    ):
        scene.dp.policy.apply(deny)
        during: list[object] = []

        def look(added: object, _: object) -> None:
            if added:
                during.append(scene.verdict("web", "api", "80/TCP", version))
                during.append(scene.verdict("web", "db", "80/TCP", version))
                during.append(scenes.arrives(near, far))

        with pytest.raises(errors.MapFullError, match="policy"):
            for number in itertools.count():
                scene.dp.identities.allocate([f"k8s:n={number}", *bad])
        assert number > 8
        stop = scene.dp.identities.observe(look)
        during.clear()
        with pytest.raises(errors.MapFullError):
            scene.dp.identities.allocate(["k8s:n=more", *bad])
        stop()
        assert during == [int(DropReason.ENDPOINT_NOT_READY), OPEN, False]
        assert scenes.comes(far, 3.0)  # what was sent meanwhile
        assert scene.verdict("web", "api", "80/TCP", version) == OPEN
        assert not scene.dp.drift()


def test_identities_come_while_one_that_is_locked_down_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its policy is gone then and its map not yet: the others' maps follow all the same."""
    with Datapath(node) as dp:
        api, gone = dp.add_endpoint("api", {"app": "api"}), dp.add_endpoint("gone", {"app": "gone"})
        dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[scenes.apps("from", "new")]))
        tries = dp.endpoints._parts.tries
        tries.lock_down(gone.id)
        release = tries.release
        labels = ["k8s:app=new", "k8s:io.kubernetes.pod.namespace=default",
                  "k8s:io.cilium.k8s.policy.cluster=default"]  # fmt: skip
        made: list[int] = []

        def release_late(endpoint: int) -> None:
            made.append(dp.identities.allocate(labels).id)
            release(endpoint)

        monkeypatch.setattr(tries, "release", release_late)
        dp.endpoints.remove("gone")
        assert made[0] in tries.read(api.id).keys["identity"].tolist()
        assert not tries.locked and not dp.drift()


_BAD: dict[str, tuple[type[Exception], str, Callable[[Datapath, Scene], object]]] = {
    "name taken": (errors.ExistsError, "already", lambda dp, s: dp.add_endpoint("web")),
    "name empty": (errors.InvalidError, "name", lambda dp, s: dp.add_endpoint("")),
    "name odd": (errors.InvalidError, "name", lambda dp, s: dp.add_endpoint("a b")),
    "name no text": (errors.InvalidError, "name", lambda dp, s: dp.add_endpoint(7)),  # type: ignore[arg-type]  # on purpose
    "label source": (errors.LabelError, "nosuch", lambda dp, s: dp.add_endpoint("x", ["nosuch:a"])),
    "labels as text": (errors.LabelError, "list", lambda dp, s: dp.add_endpoint("x", "app=web")),
    "pod of another endpoint": (
        errors.ExistsError,
        "'web'",
        lambda dp, s: dp.add_endpoint("x", pod=s.web),
    ),
    "two places": (
        errors.InvalidError,
        "one of",
        lambda dp, s: dp.add_endpoint("x", pod=s.web, netns="pcl-none"),
    ),
    "no such namespace": (
        errors.NotFoundError,
        "pcl-none",
        lambda dp, s: dp.add_endpoint("x", netns="pcl-none"),
    ),
    "no such device": (
        errors.DeviceError,
        "none0",
        lambda dp, s: dp.add_endpoint("x", device="none0", mac=s.web.mac, addresses=["10.9.9.9"]),
    ),
    "device without a mac": (
        errors.InvalidError,
        "mac=",
        lambda dp, s: dp.add_endpoint("x", device=s.node.native),
    ),
    "device with a bad mac": (
        errors.InvalidError,
        "MAC",
        lambda dp, s: dp.add_endpoint("x", device=s.node.native, mac="zz", addresses=["10.9.9.9"]),
    ),
    "device without addresses": (
        errors.InvalidError,
        "address",
        lambda dp, s: dp.add_endpoint("x", device=s.node.native, mac=s.web.mac),
    ),
    "bad address": (
        errors.UnitError,
        "10.9.9",
        lambda dp, s: dp.add_endpoint(
            "x", device=s.node.native, mac=s.web.mac, addresses=["10.9.9"]
        ),
    ),
    "the node's address": (
        errors.ExistsError,
        "node",
        lambda dp, s: dp.add_endpoint(
            "x", device=s.node.native, mac=s.web.mac, addresses=[s.node.ip4]
        ),
    ),
    "address of another endpoint": (
        errors.ExistsError,
        "'db'",
        lambda dp, s: dp.add_endpoint(
            "x", device=s.node.native, mac=s.web.mac, addresses=["10.9.9.9", s.db.ip6]
        ),
    ),
    "bad port": (
        errors.UnitError,
        "http",
        lambda dp, s: dp.add_endpoint("x", ports={"web": "http"}),
    ),
    "range as a named port": (
        errors.InvalidError,
        "one port",
        lambda dp, s: dp.add_endpoint("x", ports={"web": "80-90/TCP"}),
    ),
    "remove a stranger": (
        errors.NotFoundError,
        'did you mean "web"',
        lambda dp, s: dp.remove_endpoint("webb"),
    ),
    "relabel a stranger": (
        errors.NotFoundError,
        "'x'",
        lambda dp, s: dp.endpoints.relabel("x", {}),
    ),
    "relabel with a bad label": (
        errors.LabelError,
        "nosuch",
        lambda dp, s: dp.endpoints.relabel("web", ["nosuch:a"]),
    ),
    "look a stranger up": (errors.NotFoundError, "'x'", lambda dp, s: dp.endpoints["x"]),
    "is a stranger attached": (
        errors.NotFoundError,
        "'x'",
        lambda dp, s: dp.endpoints.attached("x"),
    ),
    "bad document": (
        errors.PolicyError,
        "ingres",
        lambda dp, s: dp.policy.apply(scenes.policy("p", {}, ingres=[{}])),
    ),
    "one bad document of two": (
        errors.PolicyError,
        "fromEndpoint",
        lambda dp, s: dp.policy.apply(
            [
                scenes.policy("p", {}, ingress=[{}]),
                scenes.policy("q", {}, ingress=[{"fromEndpoint": []}]),
            ]
        ),
    ),
    "explain a stranger": (
        errors.NotFoundError,
        "did you mean",
        lambda dp, s: dp.policy.explain("web", "apii", "80/TCP"),
    ),
    "explain a bad port": (
        errors.UnitError,
        "http",
        lambda dp, s: dp.policy.explain("web", "api", "http"),
    ),
    "explain an unknown identity": (
        errors.NotFoundError,
        "4242",
        lambda dp, s: dp.policy.explain(4242, "api", "80/TCP"),
    ),
    "simulate at a stranger": (
        errors.NotFoundError,
        "'x'",
        lambda dp, s: dp.simulate(bytes(64), at="x"),
    ),
    "simulate nothing": (
        errors.InvalidError,
        "Ethernet",
        lambda dp, s: dp.simulate(b"", at="web"),
    ),
    "simulate too much": (
        errors.InvalidError,
        "bytes",
        lambda dp, s: dp.simulate(bytes(100_000), at="web"),
    ),
    "unknown hook slot": (
        errors.NotFoundError,
        "before-policy",
        lambda dp, s: dp.hooks.attach("before-polcy", "none.bpf.o"),
    ),
    "hook without an object": (
        errors.ObjectError,
        "none.bpf.o",
        lambda dp, s: dp.hooks.attach("before-policy", "none.bpf.o"),
    ),
    "keep without pins": (errors.StateError, "pin_root", lambda dp, s: dp.keep()),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_is_refused_and_changes_nothing(scene: Scene, case: str) -> None:
    """Each public function says what is wrong by its own type of error."""
    kind, text, call = _BAD[case]
    scene.dp.simulate(bytes(64), at="web")  # the first one loads programs, which stay
    before, held = scenes.traces(scene.dp, scene.node), scenes.descriptors()
    with pytest.raises(kind, match=text):
        call(scene.dp, scene)
    gc.collect()
    assert scenes.traces(scene.dp, scene.node) == before
    assert scenes.descriptors() == held


_BAD_CONFIGS = [
    {"max_endpoints": 1}, {"max_endpoints": 65536}, {"flows": "many"}, {"flows": True},
    {"event_bytes": 5000}, {"event_bytes": 2048}, {"event_bytes": "4096"}, {"timeout_tcp": 0},
    {"cluster_id": 512}, {"cluster_name": ""}, {"ipv4": "yes"}, {"ipv4": False, "ipv6": False},
    {"redirect_peer": "no"}, {"tc": "xdp"},
]  # fmt: skip


@pytest.mark.parametrize("options", _BAD_CONFIGS, ids=str)
def test_bad_configuration(options: dict[str, Any]) -> None:
    """A configuration is checked when it is made, before anything touches the kernel."""
    with pytest.raises(errors.InvalidError, match=next(reversed(options))):
        DatapathConfig(**options)


def test_a_closed_datapath(node: Node) -> None:
    """Every call on it is a ClosedError, but a second close."""
    dp = Datapath(node)
    dp.add_endpoint("web")
    dp.close()
    dp.close()
    calls: list[Callable[[], object]] = [
        lambda: dp.add_endpoint("api"),
        lambda: dp.remove_endpoint("web"),
        lambda: dp.flows(),
        lambda: dp.metrics(),
        lambda: dp.drift(),
        lambda: dp.simulate(bytes(64), at="web"),
        lambda: dp.keep(),
        lambda: dp.hooks.attach("before-policy", "none.bpf.o"),
        lambda: dp.policy.apply(scenes.policy("p", {}, ingress=[{}])),
        lambda: dp.endpoints.add("api"),
        lambda: dp.__enter__(),
    ]
    for call in calls:
        with pytest.raises(errors.ClosedError):
            call()


def test_a_failed_start_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step fails, no descriptor is left."""

    def fail(self: Endpoints) -> None:
        raise errors.StateError("no")

    with Datapath(node):
        pass
    held = scenes.descriptors()
    monkeypatch.setattr(Endpoints, "restore", fail)
    with pytest.raises(errors.StateError):
        Datapath(node)
    gc.collect()
    assert scenes.descriptors() == held


# ---------------------------------------------------------------------- side by side, and often


@VERSIONS
def test_two_datapaths_do_not_meet(lab: Lab, version: int) -> None:
    """Two nodes with the same pod addresses and opposite policies; each goes its own way."""
    with contextlib.ExitStack() as stack:
        sides = []
        for number in (1, 2):
            node = lab.node(f"twin{number}v{version}", cidr4="10.77.0.0/24", cidr6="fd77::/64")
            stack.callback(node.close)
            dp = stack.enter_context(Datapath(node))
            pods = [node.pod(f"{name}{number}v{version}") for name in ("web", "api")]
            for pod, app in zip(pods, ("web", "api"), strict=True):
                dp.add_endpoint(pod.name, {"app": app}, pod=pod)
            pods[1].serve("80/TCP")
            sides.append((dp, *pods))
        (first, *one), (second, *two) = sides
        assert one[1].addresses == two[1].addresses
        second.policy.apply(scenes.policy("p", {"app": "api"}, ingress=[scenes.apps("from", "x")]))
        address = at(one[1], version)
        assert one[0].connect(address, "80/TCP").reply == f"{one[1].name}\n".encode()
        assert two[0].connect(address, "80/TCP", timeout=SILENCE).error == "timeout"
        assert not [flow for flow in first.flows() if flow.dropped and flow.protocol == 6]
        assert {f.drop_reason for f in second.flows() if f.dropped and f.protocol == 6} == {
            DropReason.POLICY
        }
        second.close()
        assert one[0].connect(address, "80/TCP").ok
        assert not first.drift()


def test_closing_restores_plain_routing(scene: Scene, node: Node) -> None:
    """Without a datapath the lab is what it was before it."""
    dp = Datapath(node)
    pods = [node.pod(name) for name in ("left", "right")]
    for pod in pods:
        dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
    dp.policy.apply(scenes.policy("closed", {}, ingress=[scenes.apps("from", "x")]))
    pods[1].serve("80/TCP")
    assert pods[0].connect(pods[1].ip4, "80/TCP", timeout=SILENCE).error == "timeout"
    dp.close()
    assert pods[0].connect(pods[1].ip4, "80/TCP").ok


def test_opening_and_closing_leaks_nothing(node: Node) -> None:
    """Descriptors and the kernel's memory of us are constant over many lives of a datapath."""
    small = DatapathConfig(flows=64, pending=64, event_bytes=4096, ipcache=64)
    with Datapath(node, config=small):
        pass
    held = scenes.descriptors()
    for _ in range(20):
        with Datapath(node, config=small):
            pass
    gc.collect()
    assert scenes.descriptors() == held


def test_two_hundred_endpoints_one_after_the_other(scene: Scene) -> None:
    """Adding and removing a pod's endpoint 200 times: the last state is the first."""
    with scene.node.pod("again") as pod:
        for round_ in range(201):
            scene.dp.add_endpoint("again", {"app": f"again{round_ % 7}"}, pod=pod)
            if round_ == 100:
                assert pod.connect(scene.api.ip6, "80/TCP").ok
            scene.dp.remove_endpoint("again")
            if round_ == 7:
                before, held = scenes.traces(scene.dp, scene.node), scenes.descriptors()
        gc.collect()
        assert scenes.traces(scene.dp, scene.node) == before
        assert scenes.descriptors() == held


def test_families_can_be_off(node: Node) -> None:
    """With one family the world is one identity, for the model and for the programs."""
    settings = DatapathConfig(ipv6=False)
    world = node.lab.outside("single", of=node)
    with Datapath(node, config=settings) as dp, world:
        dp.add_endpoint("web", {"app": "web"})
        dp.policy.apply(scenes.policy("p", {"app": "web"}, egress=[{"toEntities": ["world"]}]))
        world.serve("80/TCP")
        assert node.pods["web"].connect(world.ip4, "80/TCP").ok
        flow = next(f for f in dp.flows() if f.dst == ipaddress.ip_address(world.ip4))
        assert flow.dst_identity == 2
        assert dp.policy.explain("web", world.ip4, "80/TCP").verdict.value == "allow"


def test_settings_of_policy_are_the_callers(node: Node) -> None:
    """Enforcement "always" is handed through: without rules nothing passes."""
    always = attrs.evolve(PolicySettings(), enforcement="always")
    with Datapath(node, policy=always) as dp:
        for name in ("web", "api"):
            dp.add_endpoint(name, {"app": name})
        node.pods["api"].serve("80/TCP")
        api = node.pods["api"].ip4
        assert node.pods["web"].connect(api, "80/TCP", timeout=SILENCE).error == "timeout"
