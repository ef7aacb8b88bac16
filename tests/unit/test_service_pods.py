"""Pods in service documents: ports of their node, and what local redirects make of them."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import ServiceError
from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import (
    Backend,
    Balancer,
    FrontendType,
    LoadBalancerConfig,
    LocalNode,
    LocalRedirect,
    Service,
    ServiceDocuments,
    Why,
    read_services,
)
from tests.unit.test_service_documents import endpoint_slice, service

NODE = LocalNode("n1", ["192.0.2.1", "2001:db8::1"])
POD_IPS = ("10.244.1.5", "fd00:244::5")


def pod(
    ports: list[dict[str, Any]] | None = None,
    name: str = "cache",
    ips: tuple[str, ...] = POD_IPS,
    **fields: Any,
) -> dict[str, Any]:
    ready = fields.pop("ready", True)
    spec = {"nodeName": fields.pop("node", "n1"), **fields.pop("spec", {})}
    if ports is not None:
        spec["containers"] = [{"name": "c", "image": "i", "ports": ports}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": fields.pop("labels", {"app": "cache"})},
        "spec": spec,
        "status": {
            "phase": fields.pop("phase", "Running"),
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def read(*documents: dict[str, Any], **options: Any) -> ServiceDocuments:
    return read_services(list(documents), **{"node": NODE, **options})


# ---------------------------------------------------------------------- ports of the node


def test_a_host_port() -> None:
    """At every address of the node, for the pod's own families."""
    (found,) = read(pod([{"containerPort": 8080, "hostPort": 80}])).services
    assert str(found.key) == "default/cache:host-port-80-tcp"
    assert {(str(f), f.type) for f in found.frontends} == {
        (text, FrontendType.HOST_PORT)
        for text in ("192.0.2.1:80/TCP", "[2001:db8::1]:80/TCP", "0.0.0.0:80/TCP", "[::]:80/TCP")
    }
    assert [str(b) for b in found.backends] == ["10.244.1.5:8080/TCP", "[fd00:244::5]:8080/TCP"]
    model = Balancer([found], node=NODE)
    placed = model.where("198.51.100.7:1", "192.0.2.1:80")
    assert str(placed.backend) == "10.244.1.5:8080/TCP"
    assert model.where("198.51.100.7:1", "192.0.2.1:81").why is Why.NO_SERVICE


@pytest.mark.parametrize(
    ("host_ip", "ips", "frontends", "backends"),
    [
        ("192.0.2.9", POD_IPS, ["192.0.2.9:80/TCP"], 1),
        ("0.0.0.0", POD_IPS, ["192.0.2.1:80/TCP", "0.0.0.0:80/TCP"], 1),
        ("::", POD_IPS, ["[2001:db8::1]:80/TCP", "[::]:80/TCP"], 1),
        ("", POD_IPS[:1], ["192.0.2.1:80/TCP", "0.0.0.0:80/TCP"], 1),
    ],
)
def test_host_addresses(
    host_ip: str, ips: tuple[str, ...], frontends: list[str], backends: int
) -> None:
    """One address that is asked for, or all of a family."""
    ports = [{"containerPort": 8080, "hostPort": 80, "hostIP": host_ip}]
    (found,) = read(pod(ports, ips=ips)).services
    assert [str(f) for f in found.frontends] == frontends
    assert len(found.backends) == backends


PORT = [{"containerPort": 8080, "hostPort": 80}]


@pytest.mark.parametrize(
    "document",
    [
        pod(PORT, node="n2"),
        pod(PORT, phase="Succeeded"),
        pod(PORT, spec={"hostNetwork": True}),
        pod([{"containerPort": 8080}]),
        pod(),
    ],
    ids=["another node", "ended", "the node's network", "no host port", "no ports"],
)
def test_no_host_port(document: dict[str, Any]) -> None:
    """Nothing of this node's, and no error."""
    assert read(document).services == ()


def test_a_host_port_among_the_node_ports() -> None:
    """Left out, and said."""
    found = read(pod([{"containerPort": 8080, "hostPort": 30080}]))
    assert found.services == ()
    assert "hostPort 30080" in found.warnings[0] and "Pod default/cache" in found.warnings[0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (pod([{"containerPort": 0, "hostPort": 80}]), "containerPort: 0"),
        (pod([{"containerPort": 80, "hostPort": 70000}]), "hostPort: 70000"),
        (pod([{"containerPort": 80, "protocol": "ICMP"}]), "TCP, UDP or SCTP"),
        (pod([{"containerPort": 80, "hostPort": 80, "hostIP": "here"}]), "'here'"),
        (pod(ips=("10.0.0",)), r"podIPs\[0\]"),
    ],
)
def test_faults_of_pods(document: dict[str, Any], said: str) -> None:
    """With the pod's name."""
    with pytest.raises(ServiceError, match=said) as caught:
        read(document)
    assert "(Pod default/cache)" in caught.value.problems[0]


def test_a_node_without_a_name() -> None:
    """Nobody knows which pods are here; where no pod matters, that is no fault."""
    for document in (pod(PORT), redirect(address("169.254.169.254", 8080))):
        with pytest.raises(ServiceError, match="say which node this is"):
            read(document, node=LocalNode())
    assert read(pod([{"containerPort": 80}]), node=LocalNode()).services == ()


# ---------------------------------------------------------------------- local redirects


def named(*ports: tuple[str, int, str]) -> list[dict[str, str]]:
    return [{"name": name, "port": str(port), "protocol": kind} for name, port, kind in ports]


def address(ip: str, port: int = 0, ports: list[dict[str, str]] | None = None) -> dict[str, Any]:
    listed = ports or [{"port": str(port), "protocol": "TCP"}]
    return {"addressMatcher": {"ip": ip, "toPorts": listed}}


def of_service(**fields: Any) -> dict[str, Any]:
    return {"serviceMatcher": {"serviceName": "web", "namespace": "default", **fields}}


def redirect(frontend: dict[str, Any], name: str = "local", **fields: Any) -> dict[str, Any]:
    ports = fields.pop("ports", [{"port": "53", "protocol": "TCP"}])
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name},
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": "cache"}}, "toPorts": ports,
            },
            **fields,
        },
    }  # fmt: skip


CACHE = pod([{"name": "dns", "containerPort": 53}])
SLICE = endpoint_slice([{"addresses": ["10.0.0.1"]}])


def only(found: ServiceDocuments) -> Service:
    (one,) = found.services
    return one


def test_an_address() -> None:
    """Pods that ask it meet the pod on their node; nobody else is concerned, nor another port."""
    found = only(read(redirect(address("169.254.169.254", 8080)), CACHE))
    assert found.redirect == LocalRedirect("default/local", [Backend("10.244.1.5", 53, node="n1")])
    model = Balancer([found], node=NODE)
    to = "169.254.169.254:8080"
    placed = model.connect("10.244.1.9:40000", to, direction="east-west")
    assert (placed.redirect, str(placed.backend)) == ("default/local", "10.244.1.5:53/TCP")
    assert model.where("10.244.1.9:40000", to, direction="socket").backend == placed.backend
    assert model.where("198.51.100.7:1", to).why is Why.NO_SERVICE
    other = model.where("10.244.1.9:1", "169.254.169.254:80", direction="east-west")
    assert (other.why, other.reason) == (Why.NO_SERVICE, DropReason.FORWARDED)
    assert [str(b) for _, _, b in model.connections()] == ["10.244.1.5:53/TCP"]


def test_a_service() -> None:
    """Its ClusterIP is served by the pod on this node, its other frontends as before."""
    outside = service({"type": "LoadBalancer", "loadBalancerIP": "203.0.113.10"})
    found = only(read(outside, SLICE, CACHE, redirect(of_service())))
    model = Balancer([found], node=NODE)
    placed = model.where("10.244.1.9:1", "10.96.0.1:80", direction="east-west")
    assert (placed.redirect, str(placed.backend)) == ("default/local", "10.244.1.5:53/TCP")
    for to, direction in (("203.0.113.10:80", "north-south"), ("203.0.113.10:80", "east-west")):
        placed = model.where("10.244.1.9:1", to, direction=direction)
        assert (placed.redirect, str(placed.backend)) == ("", "10.0.0.1:8080/TCP")


def test_both_families_of_a_service() -> None:
    """Each frontend has the pod's address of its family."""
    dual = service({"clusterIPs": ["10.96.0.1", "fd00:96::1"]})
    found = only(read(dual, SLICE, CACHE, redirect(of_service())))
    model = Balancer([found], node=NODE)
    for client, to, pod_ip in (("10.244.1.9:1", "10.96.0.1:80", "10.244.1.5"),
                               ("[fd00:244::9]:1", "[fd00:96::1]:80", "fd00:244::5")):  # fmt: skip
        placed = model.where(client, to, direction="east-west")
        assert str(getattr(placed.backend, "address", "")) == pod_ip


@pytest.mark.parametrize("skip", [False, True])
def test_the_backends_own_connections(skip: bool) -> None:
    """They meet themselves, or with `skipRedirectFromBackend` whom they stand before."""
    policy = redirect(of_service(), skipRedirectFromBackend=skip)
    addresses = redirect(address("169.254.20.10", 53), "at", skipRedirectFromBackend=skip)
    model = Balancer(read(service({}), SLICE, CACHE, policy, addresses).services, node=NODE)
    placed = model.where("10.244.1.5:1", "10.96.0.1:80", direction="east-west")
    assert str(placed.backend) == ("10.0.0.1:8080/TCP" if skip else "10.244.1.5:53/TCP")
    assert placed.hairpin is not skip
    at = model.where("10.244.1.5:1", "169.254.20.10:53", direction="east-west")
    assert at.why is (Why.NO_SERVICE if skip else Why.RANDOM)


@pytest.mark.parametrize(
    "document",
    [
        pod([{"containerPort": 53}], node="n2"),
        pod([{"containerPort": 53}], ready=False),
        pod([{"containerPort": 54}]),
        pod([{"containerPort": 53, "protocol": "UDP"}]),
        pod([{"containerPort": 53}], labels={"app": "other"}),
        pod([{"containerPort": 53}], ips=()),
    ],
    ids=["another node", "not ready", "another port", "another protocol", "another pod",
         "no address"],
)  # fmt: skip
def test_no_pod_here(document: dict[str, Any]) -> None:
    """Then nothing changes: the service serves, and the address is whatever it was."""
    policies = redirect(of_service()), redirect(address("169.254.20.10", 53), "at")
    assert only(read(service({}), SLICE, document, *policies)).redirect is None


def test_a_pod_that_declares_no_ports() -> None:
    """Is taken at the policy's word."""
    found = only(read(service({}), SLICE, pod(), redirect(of_service())))
    assert found.redirect is not None


DNS = service(
    {
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53},
            {"name": "metrics", "port": 9153},
        ]
    }
)
DNS_PORTS = named(("dns", 5353, "UDP"), ("dns-tcp", 5354, "TCP"))
DNS_POD = pod([{"name": "dns", "containerPort": 5353, "protocol": "UDP"},
               {"name": "DNS-TCP", "containerPort": 5354}])  # fmt: skip


@pytest.mark.parametrize(
    ("matcher", "ports", "expected"),
    [
        (of_service(), DNS_PORTS, {"dns": 5353, "dns-tcp": 5354}),
        (of_service(toPorts=named(("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"))), DNS_PORTS,
         {"dns": 5353, "dns-tcp": 5354}),
        (of_service(toPorts=named(("any", 53, "UDP"))), DNS_PORTS, {"dns": 5353}),
        (of_service(toPorts=named(("", 53, "TCP"))), DNS_PORTS[1:], {"dns-tcp": 5354}),
        (of_service(toPorts=named(("", 54, "UDP"))), DNS_PORTS, {}),
        (of_service(), named(("dns", 5354, "TCP"), ("dns-tcp", 5354, "TCP")), {"dns-tcp": 5354}),
        (of_service(), named(("dns", 5353, "UDP"), ("metrics", 5354, "TCP")), {"dns": 5353}),
    ],
    ids=["all", "named", "one", "the other", "none", "by protocol", "by the pod's name"],
)  # fmt: skip
def test_ports_of_a_service(
    matcher: dict[str, Any], ports: list[dict[str, str]], expected: dict[str, int]
) -> None:
    """Several meet by name, one by its number and protocol; others are not redirected."""
    found = read(DNS, DNS_POD, redirect(matcher, ports=ports)).services
    assert {
        one.port_name: one.redirect.backends[0].port for one in found if one.redirect is not None
    } == expected


def test_ports_of_an_address() -> None:
    """By name as well."""
    policy = redirect(address("169.254.20.10", ports=named(("dns", 53, "UDP"),
                                                           ("dns-tcp", 53, "TCP"))),
                      ports=DNS_PORTS)  # fmt: skip
    found = read(DNS_POD, policy).services
    assert {str(one.frontends[0]): one.redirect.backends[0].port
            for one in found if one.redirect} == {
        "169.254.20.10:53/UDP": 5353, "169.254.20.10:53/TCP": 5354,
    }  # fmt: skip


def test_a_service_that_is_not_there() -> None:
    """It may come; a warning names it."""
    found = read(CACHE, redirect(of_service()))
    assert found.services == () and "default/web" in found.warnings[0]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no matcher": (redirect({}), "write one of addressMatcher, serviceMatcher, found 0"),
    "both": (redirect({**address("10.0.0.1", 80), **of_service()}), "found 2"),
    "no address": (redirect({"addressMatcher": {"toPorts": named(("", 1, "TCP"))}}), r"\.ip"),
    "no ports": (redirect({"addressMatcher": {"ip": "10.0.0.1"}}), "toPorts: it is missing"),
    "another namespace": (redirect(of_service(namespace="x")), "its? has to be|policy's own"),
    "no service": (redirect(of_service(serviceName="")), "serviceName"),
    "no names": (
        redirect(address("10.0.0.1", ports=[{"port": "1"}, {"port": "2"}])),
        r"toPorts\[0\].name",
    ),
    "names of backends": (
        redirect(of_service(), ports=[{"port": "1"}, {"port": "2"}]), "redirectBackend.*name",
    ),
    "protocols": (
        redirect(address("10.0.0.1", 80), ports=[{"port": "53", "protocol": "UDP"}]),
        "UDP, and the frontend's is TCP",
    ),
    "port": (redirect(address("10.0.0.1", 70000)), "70000: write 1 to 65535"),
    "no backend port": (redirect(of_service(), ports=[]), "redirectBackend.toPorts"),
    "selector": (
        redirect(of_service(), redirectBackend={"localEndpointSelector": {"app": "x"},
                                                "toPorts": named(("", 1, "TCP"))}),
        "localEndpointSelector",
    ),
    "no selector": (
        redirect(of_service(), redirectBackend={"toPorts": named(("", 1, "TCP"))}),
        "localEndpointSelector is missing",
    ),
    "unknown field": (redirect(of_service(), skipRedirectFromBackends=True), "skipRedirectFromB"),
    "a service's address": (redirect(address("10.96.0.1", 80)), "10.96.0.1:80/TCP is default/web"),
}  # fmt: skip


@pytest.mark.parametrize(("document", "said"), FAULTS.values(), ids=FAULTS)
def test_faults_of_policies(document: dict[str, Any], said: str) -> None:
    """With the policy's name and the field's path."""
    with pytest.raises(ServiceError, match=said) as caught:
        read(service({}), CACHE, document)
    assert "(CiliumLocalRedirectPolicy default/local)" in caught.value.problems[0]


def test_two_policies_for_one() -> None:
    """The second is told of the first, for a service as for an address."""
    for frontend in (of_service(), address("169.254.20.10", 53)):
        with pytest.raises(ServiceError, match=r"local\d? already|local-redirect-53-tcp's already"):
            read(service({}), CACHE, redirect(frontend), redirect(frontend, "second"))


# ---------------------------------------------------------------------- hairpins


def test_a_pod_that_meets_itself() -> None:
    """It is said, as the packets need another source; from outside nobody does."""
    model = Balancer([Service("web", ["203.0.113.10:80"], ["10.0.0.1:80"])])
    own, other = "10.0.0.1:40000", "10.0.0.2:40000"
    to = "203.0.113.10:80"
    assert model.where(own, to, direction="east-west").hairpin
    assert not model.where(other, to, direction="east-west").hairpin
    assert not model.where(own, to).hairpin
    assert not model.where(own, to, direction="socket").hairpin  # no packet is translated there
    connected = model.connect(own, to, direction="east-west")
    assert connected.hairpin
    again = model.where(own, to, direction="east-west", opening=False)
    assert (again.why, again.hairpin) == (Why.CONNECTION, True)


def test_a_pod_that_may_meet_itself() -> None:
    """At random it is known when the backend is chosen."""
    model = Balancer([Service("web", ["203.0.113.10:80"], ["10.0.0.1:80", "10.0.0.2:80"])], seed=1)
    assert not model.where("10.0.0.1:1", "203.0.113.10:80", direction="east-west").hairpin
    for port in range(1, 40):
        placed = model.connect(f"10.0.0.1:{port}", "203.0.113.10:80", direction="east-west")
        assert placed.hairpin is (str(getattr(placed.backend, "address", "")) == "10.0.0.1")


def test_config_of_a_redirect() -> None:
    """A redirect of Maglev's service is no exception: its table is of the pods on this node."""
    found = only(read(service({}), SLICE, CACHE, redirect(of_service()),
                      config=LoadBalancerConfig("maglev", external_cluster_ip=True)))  # fmt: skip
    model = Balancer([found], LoadBalancerConfig("maglev", external_cluster_ip=True), NODE)
    placed = model.where("10.244.1.9:1", "10.96.0.1:80", direction="east-west")
    assert str(placed.backend) == "10.244.1.5:53/TCP"
