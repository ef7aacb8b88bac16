"""Services, frontends, backends and the balancer's settings: as values, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import fields

from pyciliumlib.errors import InvalidError, ServiceError, UnitError
from pyciliumlib.loadbalancer import (
    Algorithm,
    Backend,
    BackendState,
    DSRDispatch,
    ForwardingMode,
    Frontend,
    FrontendType,
    LoadBalancerConfig,
    LocalNode,
    LocalRedirect,
    Maglev,
    Mesh,
    NodeExposure,
    Service,
    ServiceKey,
)
from pyciliumlib.loadbalancer.saved import Saved, as_row

BARE = Service("bare", [])
VIP = "203.0.113.10:80"


def test_by_hand_in_two_lines() -> None:
    """Texts become values; what is not said is Cilium's default."""
    web = Service("web", [VIP, "[2001:db8::10]:80"], ["10.0.0.1:8080", "[fd00::1]:8080"])
    assert web.key == ServiceKey("default", "web")
    assert [str(f) for f in web.frontends] == ["203.0.113.10:80/TCP", "[2001:db8::10]:80/TCP"]
    assert web.backends == (Backend("10.0.0.1", 8080), Backend("fd00::1", 8080))
    assert web.frontends[0].type is FrontendType.LOAD_BALANCER
    assert (web.algorithm, web.affinity_timeout, web.source_ranges) == (None, 0, ())


def test_services_are_values() -> None:
    """Equal content is equal, and a hash fits."""
    one = Service("web", [VIP], ["10.0.0.1:80"], source_ranges=["10.0.0.5/8"])
    other = Service("web", [VIP], ["10.0.0.1:80"], source_ranges=["10.0.0.0/8"])
    assert one == other and hash(one) == hash(other)
    assert one.with_backends(["10.0.0.2:80"]).backends == (Backend("10.0.0.2", 80),)


FULL = Service(
    "web",
    [Frontend("203.0.113.10", 80), Frontend("2001:db8::10", 80, type="NodePort")],
    [
        Backend("10.0.0.1", 8080, weight=7, state="terminating-not-serving", node="n1"),
        Backend("fd00::1", 8080, cluster_id=3, internal=True),
    ],
    namespace="shop",
    port_name="http",
    algorithm="maglev",
    forwarding="dsr",
    dispatch="geneve",
    affinity_timeout=60,
    source_ranges=["10.0.0.0/8", "fd00::/8"],
    source_ranges_policy="deny",
    external_policy="Local",
    internal_policy="Local",
    proxy_delegation="delegate-if-local",
    mesh=Mesh(True, True, "remote", False),
    exposure=NodeExposure("n1", "zone=a"),
    redirect=LocalRedirect("shop/local", [Backend("10.0.0.9", 8080, node="n1")], True),
    health_port=30080,
)


@pytest.mark.parametrize("service", [FULL, Service("plain", []), Service("s", [VIP])])
def test_a_service_is_stored_and_read(service: Service) -> None:
    """Everything comes back as it was, with its numbers."""
    saved = Saved(service, 7, 0, tuple(range(len(service.backends))))
    assert Saved.from_json(saved.to_json()) == saved
    if service is FULL:  # a field that is new has to be here too
        differs = {
            f.name for f in fields(Service) if getattr(FULL, f.name) != getattr(BARE, f.name)
        }
        assert differs == {f.name for f in fields(Service)}


@pytest.mark.parametrize(
    "value",
    [
        LoadBalancerConfig("maglev", "dsr", "ipip", table_size=251, node_ports="1000-2000"),
        LocalNode("n1", ["192.0.2.1", "2001:db8::1"], {"zone": "a"}, "z"),
    ],
)
def test_settings_are_stored_and_read(value: Any) -> None:
    """By way of JSON, as a restart reads them."""
    assert type(value)(**json.loads(json.dumps(as_row(value)))) == value


BAD: dict[str, tuple[Any, str]] = {
    "no name": (lambda: Service("", [VIP]), "name"),
    "a text for a list": (lambda: Service("a", VIP), r"\['203.0.113.10:80'\]"),
    "no port": (lambda: Service("a", ["203.0.113.10"]), "203.0.113.10:80|endpoint"),
    "port 0": (lambda: Frontend("203.0.113.10", 0), "1 to 65535"),
    "port too large": (lambda: Backend.parse("10.0.0.1:65536"), "65536"),
    "bare IPv6": (lambda: Backend.parse("fd00::1:80"), r"\[fd00::1\]:80"),
    "protocol": (lambda: Frontend.parse("203.0.113.10:80/ICMP"), "TCP, UDP or SCTP"),
    "digits of another script": (lambda: Backend.parse("10.0.0.1:٨٠"), "endpoint"),
    "multicast": (lambda: Frontend("224.0.0.1", 80), "multicast"),
    "anywhere": (lambda: Frontend("0.0.0.0", 80), "0.0.0.0"),
    "v4-mapped frontend": (lambda: Frontend("::ffff:1.2.3.4", 80), "1.2.3.4"),
    "v4-mapped backend": (
        lambda: Service("a", ["[2001:db8::1]:80"], ["[::ffff:1.2.3.4]:80"]), "1.2.3.4",
    ),
    "mixed protocols": (lambda: Service("a", [VIP], ["10.0.0.1:80/UDP"]), "TCP, UDP"),
    "another family": (lambda: Service("a", [VIP], ["[fd00::1]:80"]), "IPv6"),
    "twice": (lambda: Service("a", [VIP], ["10.0.0.1:80", "10.0.0.1:80"]), "twice"),
    "algorithm": (lambda: Service("a", [VIP], algorithm="magelv"), 'did you mean "maglev"'),
    "forwarding": (lambda: Service("a", [VIP], forwarding="nat"), "snat, dsr"),
    "affinity": (lambda: Service("a", [VIP], affinity_timeout=86401), "86400"),
    "source range": (lambda: Service("a", [VIP], source_ranges=["10.0.0.0/33"]), "10.0.0.0/33"),
    "source range as text": (lambda: Service("a", [VIP], source_ranges="10.0.0.0/8"), "list"),
    "weight": (lambda: Backend("10.0.0.1", 80, weight=65536), "65535"),
    "state": (lambda: Backend("10.0.0.1", 80, state="gone"), "quarantined"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_bad_values(make: Any, said: str) -> None:
    """An InvalidError that quotes what is wrong or says the mend."""
    with pytest.raises(InvalidError, match=said):
        make()


ACTIVE, TERMINATING, QUARANTINED, MAINTENANCE, GONE = BackendState
ALLOWED = {
    ACTIVE: set(BackendState),
    TERMINATING: {TERMINATING, GONE},
    QUARANTINED: {QUARANTINED, ACTIVE, TERMINATING, GONE},
    MAINTENANCE: {MAINTENANCE, ACTIVE},
    GONE: {GONE},
}


@pytest.mark.parametrize("old", BackendState, ids=str)
@pytest.mark.parametrize("new", BackendState, ids=str)
def test_transitions(old: BackendState, new: BackendState) -> None:
    """Those of Cilium, and no others."""
    backend = Backend("10.0.0.1", 80, state=old)
    if new in ALLOWED[old]:
        assert backend.in_state(new).state is new
    else:
        with pytest.raises(InvalidError, match=f"is {old} and cannot become {new}"):
            backend.in_state(new)


def test_tables_do_not_mix_states() -> None:
    """Two sets of backends that differ in a state alone give their own backends back."""
    maglev = Maglev(251)
    first = maglev.build([Backend("10.0.0.1", 80)])
    second = maglev.build([Backend("10.0.0.1", 80, state="terminating")])
    assert first.backends[0].state is ACTIVE and second.backends[0].state is TERMINATING
    assert (first.slots == second.slots).all()


BRIEF = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "cilium-config", "namespace": "kube-system"},
    "data": {"maglev-table-size": "65521", "maglev-hash-seed": "JLfvgnHc2kaSUFaI"},
}


def test_config_of_a_configmap() -> None:
    """The short keys that people write, and nothing else changed."""
    config = LoadBalancerConfig.from_config(BRIEF)
    assert config == LoadBalancerConfig(table_size=65521)
    assert config.maglev().size == 65521


def test_config_keys_of_cilium() -> None:
    """Texts as a ConfigMap has them; keys of other parts are passed over."""
    config = LoadBalancerConfig.from_config(
        {
            "bpf-lb-algorithm": "maglev",
            "bpf-lb-mode": "hybrid",
            "bpf-lb-dsr-dispatch": "ipip",
            "bpf-lb-acceleration": "best-effort",
            "bpf-lb-maglev-table-size": 251,
            "bpf-lb-external-clusterip": "true",
            "bpf-lb-mode-annotation": True,
            "bpf-lb-sock": "true",
            "bpf-lb-sock-hostns-only": "true",
            "bpf-lb-sock-terminate-pod-connections": "false",
            "service-no-backend-response": "drop",
            "node-port-range": "31000, 32000",
            "enable-ipv4": "true",
            "kube-proxy-replacement": "true",
        }
    )
    assert (config.algorithm, config.dispatch) == (Algorithm.MAGLEV, DSRDispatch.IPIP)
    assert config.table_size == 251 and config.external_cluster_ip and config.mode_annotation
    assert config.socket and config.socket_host_only and not config.socket_terminate
    assert (config.node_ports.first, config.node_ports.last) == (31000, 32000)


BAD_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"bpf-lb-maglev-table-size": "1000"}, "251, 509, 1021"),
    "size of the short key": ({"maglev-table-size": "1000"}, "maglev-table-size: table size 1000"),
    "seed": ({"maglev-hash-seed": "AAAAAAAAAAAAAAA="}, "11 bytes"),
    "algorithm": ({"bpf-lb-algorithm": "least-connections"}, "random, maglev"),
    "mode": ({"bpf-lb-mode": "dsrr"}, 'did you mean "dsr"'),
    "boolean": ({"bpf-lb-external-clusterip": "yes"}, "true or false"),
    "range": ({"node-port-range": "32000,31000"}, "before"),
    "misspelt": ({"bpf-lb-algoritm": "maglev"}, 'did you mean "bpf-lb-algorithm"'),
    "later": ({"bpf-lb-nat46x64": "true"}, "not implemented"),
    "contradiction": (
        {"maglev-table-size": "251", "bpf-lb-maglev-table-size": "509"}, "contradicts",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_bad_config(data: dict[str, Any], said: str) -> None:
    """A ServiceError that names the key."""
    with pytest.raises(ServiceError, match=said) as caught:
        LoadBalancerConfig.from_config(data)
    assert len(caught.value.problems) == 1
    assert next(iter(data)) in caught.value.problems[0] or "contradicts" in said


def test_all_problems_of_a_config_at_once() -> None:
    """So that one round of mending is enough."""
    with pytest.raises(ServiceError) as caught:
        LoadBalancerConfig.from_config({"bpf-lb-mode": "x", "bpf-lb-algorithm": "y"})
    assert len(caught.value.problems) == 2


def test_size_and_seed_are_checked_without_a_configmap() -> None:
    """Built by hand, the same errors."""
    for wrong in ({"table_size": 1000}, {"hash_seed": "short"}):
        with pytest.raises(InvalidError):
            LoadBalancerConfig(**wrong)


MODES = [
    ("snat", "TCP", None, ForwardingMode.SNAT),
    ("dsr", "TCP", None, ForwardingMode.DSR),
    ("dsr", "UDP", None, ForwardingMode.DSR),
    ("dsr", "SCTP", None, ForwardingMode.SNAT),
    ("hybrid", "TCP", None, ForwardingMode.DSR),
    ("hybrid", "UDP", None, ForwardingMode.SNAT),
    ("snat", "TCP", "dsr", ForwardingMode.DSR),
    ("dsr", "UDP", "snat", ForwardingMode.SNAT),
    ("snat", "SCTP", "dsr", ForwardingMode.SNAT),
]


@pytest.mark.parametrize(("mode", "protocol", "own", "expected"), MODES)
def test_forwarding(mode: str, protocol: str, own: str | None, expected: ForwardingMode) -> None:
    """The table of spec 05, section 5."""
    service = Service("a", [f"203.0.113.10:80/{protocol}"], forwarding=own)
    assert LoadBalancerConfig(mode=mode).forwarding_of(service) is expected


def test_ipip_cannot_change_a_port() -> None:
    """A service whose ports differ takes the option; one that insists is told so."""
    config = LoadBalancerConfig(dispatch="ipip")
    same = Service("a", [VIP], ["10.0.0.1:80"])
    other = Service("a", [VIP], ["10.0.0.1:80", "10.0.0.2:8080"])
    assert config.dispatch_of(same) is DSRDispatch.IPIP
    assert config.dispatch_of(other) is DSRDispatch.OPT
    insists = Service("a", [VIP], ["10.0.0.2:8080"], dispatch="ipip")
    with pytest.raises(InvalidError, match="cannot change a port"):
        config.dispatch_of(insists)


def test_frontend_types_need_their_address() -> None:
    """0.0.0.0 is for what every node has."""
    assert Frontend("0.0.0.0", 30080, type="NodePort").address.is_unspecified
    with pytest.raises(UnitError):
        Frontend("::", 80, type="ClusterIP")
