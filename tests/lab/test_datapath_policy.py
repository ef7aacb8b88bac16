"""Policy on real traffic: open, applied, withdrawn under connections, moved to other pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import (
    AUTH_REQUIRED,
    OPEN,
    POLICY,
    SILENCE,
    VERSIONS,
    Scene,
    apps,
    arrives,
    comes,
    ports,
)

WEB_TO_API = scenes.policy(
    "api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports("80/TCP", "8000/TCP")}]
)
NOBODY_TO_API = scenes.policy("api", {"app": "api"}, ingress=[apps("from", "nobody")])
OFFICE_TO_API = scenes.policy(
    "api", {"app": "api"}, ingress=[{"fromCIDRSet": [{"cidrGroupRef": "office"}]}]
)
WEB_GOES_TO_API = scenes.policy("web", {"app": "web"}, egress=[apps("to", "api")])
WEB_GOES_NOWHERE = scenes.policy("web", {"app": "web"}, egress=[apps("to", "nobody")])


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """The scene without any policy."""
    yield shared
    shared.no_policy()


@VERSIONS
@pytest.mark.smoke
@pytest.mark.parametrize("port", ["80/TCP", "53/UDP", "echo"])
@pytest.mark.parametrize(
    ("src", "dst"),
    [("web", "api"), ("api", "web"), ("web", "node"), ("node", "web"), ("web", "world"),
     ("world", "web")],
)  # fmt: skip
def test_without_policy_all_is_open(
    scene: Scene, src: str, dst: str, port: str, version: int
) -> None:
    """No document, no restriction: pods, the node and the world reach each other."""
    assert scene.verdict(src, dst, port, version) == OPEN


@VERSIONS
@pytest.mark.smoke
def test_a_policy_restricts_what_it_selects(scene: Scene, version: int) -> None:
    """Whom the rules name comes in, at the ports they name; other pods stay open."""
    scene.dp.policy.apply(WEB_TO_API)
    table = {
        ("web", "api", "80/TCP"): OPEN,
        ("web", "api", "81/TCP"): POLICY,
        ("web", "api", "53/UDP"): POLICY,
        ("web", "api", "echo"): POLICY,
        ("db", "api", "80/TCP"): POLICY,
        ("world", "api", "80/TCP"): POLICY,
        ("node", "api", "81/TCP"): OPEN,  # the node may always reach its pods
        ("api", "web", "80/TCP"): OPEN,
        ("db", "web", "81/TCP"): OPEN,
    }
    assert {way: scene.verdict(*way, version) for way in table} == table


@VERSIONS
@pytest.mark.smoke
@pytest.mark.parametrize("speaker", ["client", "server"])
@pytest.mark.parametrize(
    ("allowing", "withdrawing"),
    [(WEB_TO_API, NOBODY_TO_API), (WEB_GOES_TO_API, WEB_GOES_NOWHERE)],
    ids=["at-the-server", "at-the-client"],
)
def test_a_withdrawn_rule_bites_on_the_next_packet(
    scene: Scene, allowing: object, withdrawing: object, speaker: str, version: int
) -> None:
    """An established connection stops in both directions, also if only one end speaks, and goes
    on when the rule is back."""
    scene.dp.policy.apply(allowing)
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        sender, receiver = (near, far) if speaker == "client" else (far, near)
        scene.dp.policy.apply(withdrawing)
        scene.drain()
        assert not arrives(sender, receiver)
        dropped = scene.drops()
        assert {flow.reason for flow in dropped} == {POLICY}
        assert not arrives(receiver, sender)
        assert len({(flow.src, flow.dst) for flow in (*dropped, *scene.drops())}) == 2
        scene.dp.policy.apply(allowing)
        assert comes(receiver, 3.0) and comes(sender, 3.0)


@VERSIONS
@pytest.mark.smoke
def test_who_must_authenticate_is_dropped(scene: Scene, version: int) -> None:
    """Nobody authenticates yet: such traffic is dropped for that reason, other traffic passes."""
    proven = {"authentication": {"mode": "required"}, **apps("from", "web"), **ports("80/TCP")}
    entries = [proven, {**apps("from", "web"), **ports("81/TCP")}]
    scene.dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=entries))
    assert scene.verdict("web", "api", "80/TCP", version) == AUTH_REQUIRED
    assert scene.verdict("web", "api", "81/TCP", version) == OPEN
    assert "authentication: required" in str(scene.dp.policy.explain("web", "api", "80/TCP"))


@VERSIONS
def test_rules_follow_a_cidr_group(scene: Scene, version: int) -> None:
    """The world comes in as long as the group has its address."""
    everybody = ["198.51.100.0/24", "2001:db8:ffff::/64"]
    there = [*everybody, f"{scene.world.ip4}/32", f"{scene.world.ip6}/128"]
    scene.dp.policy.apply([scenes.cidr_group("office", *there), OFFICE_TO_API])
    assert scene.verdict("world", "api", "80/TCP", version) == OPEN
    scene.dp.policy.apply(scenes.cidr_group("office", *everybody))
    assert scene.verdict("world", "api", "80/TCP", version) == POLICY
    assert not scene.dp.drift()


@VERSIONS
def test_rules_follow_a_service(scene: Scene, version: int) -> None:
    """First it selects pods, then it is the addresses that its slice lists."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    to_service = scenes.policy(
        "web", {"app": "web"}, egress=[{"toServices": [{"k8sService": {"serviceName": "s"}}]}]
    )
    scene.dp.policy.apply([to_service, {**service, "spec": {"selector": {"app": "api"}}}])
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN
    assert scene.verdict("web", "world", "80/TCP", version) == POLICY
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "endpoints": [{"addresses": [str(scene.world.ip4), str(scene.world.ip6)]}],
    }
    scene.dp.policy.apply([{**service, "spec": {}}, slice_])
    assert scene.verdict("web", "api", "80/TCP", version) == POLICY
    assert scene.verdict("web", "world", "80/TCP", version) == OPEN
    assert not scene.dp.drift()


@VERSIONS
def test_what_was_seen_becomes_the_policy(scene: Scene, version: int) -> None:
    """The flows of an open node suggest documents that allow them, and deny what was not seen."""
    seen = [("web", "api", "80/TCP"), ("api", "db", "53/UDP"), ("web", "world", "80/TCP")]
    unseen = [("db", "api", "80/TCP"), ("web", "api", "81/TCP"), ("api", "world", "80/TCP")]
    scene.drain()
    for src, dst, port in seen:
        assert scene.host(src).connect(scenes.at(scene.host(dst), version), port).ok
    documents = scene.dp.policy.repository.suggest(scene.dp.flows()).documents
    scene.dp.policy.apply(documents)
    assert [scene.verdict(*cell, version) for cell in seen] == [OPEN] * 3
    assert [scene.verdict(*cell, version) for cell in unseen] == [POLICY] * 3
    assert not scene.dp.drift()


@VERSIONS
def test_a_deleted_document_is_gone(scene: Scene, version: int) -> None:
    """Deleting the only rules opens the pod again, for connections that were refused too."""
    change = scene.dp.policy.apply(NOBODY_TO_API)
    assert scene.verdict("web", "api", "80/TCP", version) == POLICY
    scene.dp.policy.delete(*change.before)
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN


@VERSIONS
@pytest.mark.parametrize("speaker", ["client", "server"])
def test_relabelling_bites_at_once(scene: Scene, speaker: str, version: int) -> None:
    """A pod that is another's now loses its connections on the next packet, and gets them back."""
    scene.dp.policy.apply(WEB_TO_API)
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        sender, receiver = (near, far) if speaker == "client" else (far, near)
        before = scene.dp.endpoints["web"]
        after = scene.dp.endpoints.relabel("web", {"app": "stranger"})
        assert (after.id, after.name) == (before.id, "web")
        assert after.identity != before.identity
        assert not arrives(sender, receiver)
        assert not scene.dp.drift()
        scene.dp.endpoints.relabel("web", {"app": "web"})
        assert comes(receiver, 3.0)
        assert scene.dp.endpoints["web"] == before


@VERSIONS
def test_the_subject_of_a_policy_is_relabelled(scene: Scene, version: int) -> None:
    """Rules come and go with the labels that they select."""
    scene.dp.policy.apply(NOBODY_TO_API)
    scene.dp.endpoints.relabel("api", {"app": "free"})
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN
    scene.dp.endpoints.relabel("api", {"app": "api"})
    assert scene.verdict("web", "api", "80/TCP", version) == POLICY


@VERSIONS
def test_namespace_labels_reach_the_pods(scene: Scene, version: int) -> None:
    """A rule by a label of the namespace follows the Namespace object, under a connection too."""

    def namespace(env: str) -> dict[str, object]:
        metadata = {"name": "default", "labels": {"env": env}}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    production = {"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.env": "production"}}
    rules = scenes.policy("api", {"app": "api"}, ingress=[{"fromEndpoints": [production]}])
    scene.dp.policy.apply([namespace("production"), rules])
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert arrives(near, far)
        scene.dp.policy.apply(namespace("testing"))
        assert not arrives(far, near)
        assert scene.verdict("db", "api", "80/TCP", version) == POLICY
        scene.dp.policy.apply(namespace("production"))
        assert comes(near, 3.0)
    assert not scene.dp.drift()


@VERSIONS
def test_an_address_that_is_reused_gets_no_flow_of_its_former_owner(
    scene: Scene, version: int
) -> None:
    """Same addresses, same ports, another identity: both directions are decided anew."""
    scene.dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[apps("from", "friend")]))
    friend = scene.dp.add_endpoint("friend", {"app": "friend"})
    pod = scene.node.pods["friend"]
    addresses, address = {"ip4": pod.ip4, "ip6": pod.ip6}, scenes.at(scene.api, version)
    with pod.dial(address, "53/UDP", source_port=5353) as socket:
        assert socket.exchange().reply == b"api\n"
    scene.dp.remove_endpoint("friend")
    stranger = scene.node.pod("stranger", **addresses)
    taken = scene.dp.add_endpoint("stranger", {"app": "stranger"}, pod=stranger)
    try:
        assert taken.addresses == friend.addresses
        scene.drain()
        with stranger.dial(address, "53/UDP", source_port=5353) as socket:
            assert socket.exchange(timeout=SILENCE).error == "timeout"
        assert [flow.reason for flow in scene.drops()] == [POLICY]
        flow = scene.dp.conntrack
        assert not [e for e in flow if e.src_identity == taken.identity]
    finally:
        scene.dp.remove_endpoint("stranger")
        stranger.close()


@VERSIONS
def test_a_rule_by_prefix_less_exceptions(scene: Scene, version: int) -> None:
    """`toCIDRSet` holds for the prefix and not for what it excepts."""
    inside = scenes.at(scene.world, version)
    lan = "192.0.2.0/24" if version == 4 else "2001:db8::/64"
    rule = {"toCIDRSet": [{"cidr": lan}]}
    scene.dp.policy.apply(scenes.policy("web", {"app": "web"}, egress=[rule]))
    assert scene.verdict("web", "world", "80/TCP", version) == OPEN
    rule = {"toCIDRSet": [{"cidr": lan, "except": [f"{inside}/{inside.max_prefixlen}"]}]}
    scene.dp.policy.apply(scenes.policy("web", {"app": "web"}, egress=[rule]))
    assert scene.verdict("web", "world", "80/TCP", version) == POLICY
    assert scene.verdict("web", "api", "80/TCP", version) == POLICY
    assert not scene.dp.drift()


@VERSIONS
@pytest.mark.parametrize(
    ("entity", "opened"), [("world", "world"), ("host", "node"), ("cluster", "api")]
)
def test_entities(scene: Scene, entity: str, opened: str, version: int) -> None:
    """Each entity opens the way to whom it names and to nobody else."""
    rules = scenes.policy("web", {"app": "web"}, egress=[{"toEntities": [entity]}])
    scene.dp.policy.apply(rules)
    seen = {
        host: scene.verdict("web", host, "80/TCP", version) == OPEN
        for host in ("world", "node", "api")
    }
    also = {"node"} if entity == "cluster" else set()
    assert seen == {host: host in {opened, *also} for host in seen}


@VERSIONS
def test_the_api_server_is_whoever_the_ipcache_says(scene: Scene, version: int) -> None:
    """An outside address under `reserved:kube-apiserver` is that entity, until it is not."""
    rules = scenes.policy("web", {"app": "web"}, egress=[{"toEntities": ["kube-apiserver"]}])
    scene.dp.policy.apply(rules)
    address = scenes.at(scene.world, version)
    assert scene.verdict("web", "world", "80/TCP", version) == POLICY
    scene.dp.ipcache.assign(address, labels=["reserved:kube-apiserver"])
    assert scene.verdict("web", "world", "80/TCP", version) == OPEN
    with scenes.tcp_pair(scene.web, scene.world, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        scene.dp.ipcache.remove(address, "assigned")
        assert not arrives(far, near) and not arrives(near, far)


@VERSIONS
def test_what_the_model_explains_is_what_the_wire_does(scene: Scene, version: int) -> None:
    """`explain` by endpoint, name, address and identity gives the verdict that packets meet."""
    scene.dp.policy.apply(WEB_TO_API)
    web, api = scene.dp.endpoints["web"], scene.dp.endpoints["api"]
    for port in ("80/TCP", "81/TCP"):
        wire = scene.verdict("web", "api", port, version) == OPEN
        for ends in ((web, api), ("web", "api"), (at_(web, version), at_(api, version))):
            assert (scene.dp.policy.explain(*ends, port).verdict.value == "allow") is wire


def at_(endpoint: object, version: int) -> object:
    return getattr(endpoint, f"ip{version}")
