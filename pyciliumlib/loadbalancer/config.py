"""How a node balances: Cilium's `bpf-lb-*` settings as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError, ServiceError, nearest
from pyciliumlib.loadbalancer.backend import number
from pyciliumlib.loadbalancer.kinds import (
    Acceleration,
    Algorithm,
    BalancerMode,
    DSRDispatch,
    ForwardingMode,
    NoBackendResponse,
)
from pyciliumlib.loadbalancer.maglev import SEED_DEFAULT, SIZE_DEFAULT, Maglev
from pyciliumlib.loadbalancer.service import Service
from pyciliumlib.types import Protocol
from pyciliumlib.types.ports import PORT_MAX, PortProto

#: The UDP port of Geneve (RFC 8926).
GENEVE_PORT: Final = 6081
_NODE_PORTS: Final = PortProto(30000, 32767)


def _ports(value: str | PortProto) -> PortProto:
    return PortProto.parse(value)


def _nat_ports(value: str | PortProto | None) -> PortProto | None:
    if value is None:
        return None
    ports = PortProto.parse(value)
    if ports.any_port or ports.protocol is not Protocol.ANY:
        raise InvalidError(f"nat_ports {value!r}: write the first and the last port, 40000-65535")
    return ports


@frozen
class LoadBalancerConfig:
    """The balancer's settings; the defaults are Cilium's.

    `mode` and `dispatch` say how packets reach backends of services that do not say it
    themselves. The two annotation switches let services choose; a service that does, without the
    switch, is refused. `socket` is for clients on the node itself: their sockets are connected to
    backends (`SocketBalancer`), `socket_host_only` those of the node's own network namespace
    alone, `socket_terminate` ends those whose backend is gone. `nat_ports` are the node's ports
    for connections that are translated, by default those after `node_ports`, less some for the
    node's own sockets; `auto_protect_ports` keeps the kernel from giving them to sockets.

    >>> LoadBalancerConfig.from_config({"maglev-table-size": "65521"}).table_size
    65521
    """

    algorithm: Algorithm = field(default=Algorithm.RANDOM, converter=Algorithm)
    mode: BalancerMode = field(default=BalancerMode.SNAT, converter=BalancerMode)
    dispatch: DSRDispatch = field(default=DSRDispatch.OPT, converter=DSRDispatch)
    acceleration: Acceleration = field(default=Acceleration.DISABLED, converter=Acceleration)
    geneve_port: int = field(default=GENEVE_PORT, validator=number(1, PORT_MAX, "geneve_port"))
    table_size: int = SIZE_DEFAULT
    hash_seed: str = SEED_DEFAULT
    algorithm_annotation: bool = False
    mode_annotation: bool = False
    external_cluster_ip: bool = False
    no_backend_response: NoBackendResponse = field(
        default=NoBackendResponse.REJECT, converter=NoBackendResponse
    )
    source_ranges_all_types: bool = False
    node_ports: PortProto = field(default=_NODE_PORTS, converter=_ports)
    socket: bool = False
    socket_host_only: bool = False
    socket_terminate: bool = False
    nat_ports: PortProto | None = field(default=None, converter=_nat_ports)
    auto_protect_ports: bool = True
    service_topology: bool = False
    service_proxy_name: str = ""

    def __attrs_post_init__(self) -> None:
        Maglev(self.table_size, self.hash_seed)  # which checks both

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LoadBalancerConfig:
        """From a ConfigMap object of Kubernetes, or from its `data` alone.

        Keys of other parts of Cilium are passed over. Raises ServiceError with every key that
        is misspelt, has a bad value, or asks for what this version does not implement.
        """
        data = config.get("data", {}) if config.get("kind") == "ConfigMap" else config
        problems: list[str] = []
        found: dict[str, Any] = {}
        for key, value in data.items():
            _read_key(str(key), value, found, problems)
        if not problems:
            try:
                return cls(**found)
            except InvalidError as error:
                problems.append(str(error))
        raise ServiceError(f"{len(problems)} problem(s) in the load balancer's config", problems)

    def maglev(self) -> Maglev:
        """What builds the tables of this size and seed."""
        return Maglev(self.table_size, self.hash_seed)

    def algorithm_of(self, service: Service) -> Algorithm:
        """The service's own algorithm, else the balancer's."""
        return service.algorithm or self.algorithm

    def forwarding_of(self, service: Service) -> ForwardingMode:
        """How the service's packets reach their backends.

        SCTP is always SNAT, as no dispatch carries it.
        """
        if service.protocol is Protocol.SCTP:
            return ForwardingMode.SNAT
        if service.forwarding is not None:
            return service.forwarding
        if self.mode is BalancerMode.HYBRID:
            tcp = service.protocol is Protocol.TCP
            return ForwardingMode.DSR if tcp else ForwardingMode.SNAT
        return ForwardingMode(self.mode.value)

    def dispatch_of(self, service: Service) -> DSRDispatch:
        """The dispatch of a DSR service.

        IP in IP leaves the inner packet alone, so it cannot change a port: a service whose ports
        differ takes `opt`, unless it asked for IP in IP itself, which is an InvalidError.
        """
        wanted = service.dispatch or self.dispatch
        if wanted is not DSRDispatch.IPIP or not changes_port(service):
            return wanted
        if service.dispatch is DSRDispatch.IPIP:
            raise InvalidError(
                f"service {service.key}: IP in IP cannot change a port, and its backends have "
                'others than its frontends; let them be equal, or write dispatch="opt"'
            )
        return DSRDispatch.OPT


def changes_port(service: Service) -> bool:
    """Whether a backend listens on another port than a frontend."""
    ports = {frontend.port for frontend in service.frontends}
    return any(ports - {backend.port} for backend in service.backends)


def _text(value: Any) -> str:
    return str(value).strip()


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise InvalidError(f"{value!r}: write true or false")
    return text == "true"


def _whole(value: Any) -> int:
    text = str(value).strip()
    if not (text.isascii() and text.isdigit()):
        raise InvalidError(f"{value!r}: write a whole number")
    return int(text)


def _table_size(value: Any) -> int:
    return Maglev(_whole(value)).size


def _tunnel_port(value: Any) -> int:
    return _whole(value) or GENEVE_PORT


def _seed(value: Any) -> str:
    Maglev(seed=_text(value))
    return _text(value)


def _node_ports(value: Any) -> PortProto:
    parts = [part.strip() for part in _text(value).split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidError(f"{value!r}: write the first and the last port, 30000,32767")
    first, last = map(int, parts)
    if not 0 < first <= last <= PORT_MAX:
        raise InvalidError(f"{value!r}: the first port comes before the last, 1 to {PORT_MAX}")
    return PortProto(first, last)


#: Config key -> field and reader. The two `maglev-*` keys are no version's; people write them.
_KEYS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "bpf-lb-algorithm": ("algorithm", Algorithm),
    "bpf-lb-mode": ("mode", BalancerMode),
    "bpf-lb-dsr-dispatch": ("dispatch", DSRDispatch),
    "bpf-lb-acceleration": ("acceleration", Acceleration),
    "bpf-lb-maglev-table-size": ("table_size", _table_size),
    "bpf-lb-maglev-hash-seed": ("hash_seed", _seed),
    "tunnel-port": ("geneve_port", _tunnel_port),
    "maglev-table-size": ("table_size", _table_size),
    "maglev-hash-seed": ("hash_seed", _seed),
    "bpf-lb-algorithm-annotation": ("algorithm_annotation", _boolean),
    "bpf-lb-mode-annotation": ("mode_annotation", _boolean),
    "bpf-lb-external-clusterip": ("external_cluster_ip", _boolean),
    "bpf-lb-source-range-all-types": ("source_ranges_all_types", _boolean),
    "service-no-backend-response": ("no_backend_response", NoBackendResponse),
    "node-port-range": ("node_ports", _node_ports),
    "enable-auto-protect-node-port-range": ("auto_protect_ports", _boolean),
    "bpf-lb-sock": ("socket", _boolean),
    "bpf-lb-sock-hostns-only": ("socket_host_only", _boolean),
    "bpf-lb-sock-terminate-pod-connections": ("socket_terminate", _boolean),
    "enable-service-topology": ("service_topology", _boolean),
    "k8s-service-proxy-name": ("service_proxy_name", _text),
}
#: Keys of things that are not there yet: their defaults, which change nothing, are taken.
_LATER: Final[dict[str, tuple[str, ...]]] = {
    "bpf-lb-nat46x64": ("false",),
    "bpf-lb-rss-ipv4-src-cidr": ("",),
    "bpf-lb-rss-ipv6-src-cidr": ("",),
    "bpf-lb-map-max": ("0", "65536"),
    "bpf-lb-service-map-max": ("0",),
    "bpf-lb-service-backend-map-max": ("0",),
    "bpf-lb-rev-nat-map-max": ("0",),
    "bpf-lb-affinity-map-max": ("0",),
    "bpf-lb-source-range-map-max": ("0",),
    "bpf-lb-maglev-map-max": ("0",),
}


def _read_key(key: str, value: Any, found: dict[str, Any], problems: list[str]) -> None:
    if key in _LATER:
        if _text(value).lower() not in _LATER[key]:
            problems.append(f"{key}: {value!r} is not implemented; leave the key out")
        return
    if key not in _KEYS:
        if key.startswith(("bpf-lb-", "maglev-")):
            problems.append(f"{key}: there is no such setting{nearest(key, _KEYS)}")
        return
    name, read = _KEYS[key]
    try:
        wanted = read(value)
    except InvalidError as error:
        problems.append(f"{key}: {error}")
        return
    if found.setdefault(name, wanted) != wanted:
        problems.append(f"{key}: {value!r} contradicts the other key of the same setting")
