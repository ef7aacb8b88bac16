"""The annotations of Services, `service.cilium.io/...`, and those of EndpointSlices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from attrs import define, field, frozen

from pyciliumlib.errors import InvalidError, nearest
from pyciliumlib.loadbalancer.backend import WEIGHT_DEFAULT, WEIGHT_MAX
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.kinds import (
    Algorithm,
    ForwardingMode,
    FrontendType,
    MeshAffinity,
    ProxyDelegation,
    SourceRangesPolicy,
    Word,
)
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.loadbalancer.service import Mesh, NodeExposure

_W = TypeVar("_W", bound=Word)
PREFIX: Final = "service.cilium.io/"
_IPAM: Final = ("lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips")
_IPAM_PREFIX: Final = "lbipam.cilium.io/"
_IPAM_KNOWN: Final = ("ips", "sharing-key", "sharing-cross-namespace")
#: The older name counts where both are there.
_TOPOLOGY: Final = (
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
)
#: Annotation -> the older or invented spellings that mean the same.
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "global": ("io.cilium/global-service",),
    "shared": ("io.cilium/shared-service",),
    "affinity": ("io.cilium/service-affinity",),
    "forwarding-mode": (PREFIX + "mode",),
}
_KNOWN: Final = (
    "global",
    "shared",
    "affinity",
    "global-sync-endpoint-slices",
    "lb-algorithm",
    "weight",
    "forwarding-mode",
    "mode",
    "type",
    "node",
    "node-selector",
    "src-ranges-policy",
    "proxy-delegation",
)
_EXPOSABLE: Final = (
    FrontendType.CLUSTER_IP,
    FrontendType.NODE_PORT,
    FrontendType.LOAD_BALANCER,
)


@frozen
class ServiceAnnotations:
    """What the annotations of one Service say; None where they say nothing."""

    algorithm: Algorithm | None = None
    forwarding: ForwardingMode | None = None
    only_type: FrontendType | None = None
    exposure: NodeExposure = field(factory=NodeExposure)
    source_ranges_policy: SourceRangesPolicy = SourceRangesPolicy.ALLOW
    proxy_delegation: ProxyDelegation = ProxyDelegation.NONE
    mesh: Mesh = field(factory=Mesh)
    addresses: tuple[str, ...] = ()
    topology: bool = False


@define
class _Annotations:
    """The annotations of one object, with the place to complain at."""

    values: Mapping[str, str]
    path: str
    reader: Reader
    warned: list[str] = field(factory=list)

    def get(self, name: str) -> tuple[str, str] | None:
        """The value and the path of the annotation or one of its other spellings."""
        for key in (PREFIX + name, *_ALIASES.get(name, ())):
            if key in self.values:
                return self.values[key].strip(), f"{self.path}[{key!r}]"
        return None

    def word(self, name: str, kind: type[_W]) -> _W | None:
        found = self.get(name)
        if found is None:
            return None
        try:
            # Cilium takes those that are in lower case in any
            return kind(found[0] if kind is FrontendType else found[0].lower())
        except InvalidError as error:
            self.reader.problem(found[1], str(error))
            return None

    def flag(self, name: str) -> bool | None:
        found = self.get(name)
        if found is None:
            return None
        if found[0] not in ("true", "false"):
            self.reader.problem(found[1], f"{found[0]!r}: write true or false")
            return None
        return found[0] == "true"

    def text(self, name: str) -> str:
        found = self.get(name)
        return found[0] if found else ""


def read_service_annotations(
    values: Mapping[str, str], path: str, config: LoadBalancerConfig, reader: Reader
) -> ServiceAnnotations:
    """All that the annotations of a Service say; what is wrong goes to `reader`."""
    _refuse_unknown(values, path, reader)
    read = _Annotations(values, path, reader)
    only_type = read.word("type", FrontendType)
    if only_type is not None and only_type not in _EXPOSABLE:
        found = read.get("type")
        assert found is not None
        names = ", ".join(map(str, _EXPOSABLE))
        reader.problem(found[1], f"{found[0]!r}: write one of {names}")
    is_global = read.flag("global") or False
    shared = read.flag("shared")
    return ServiceAnnotations(
        algorithm=_if_enabled(
            read.word("lb-algorithm", Algorithm),
            read.get("lb-algorithm"),
            config.algorithm_annotation,
            "bpf-lb-algorithm-annotation",
            reader,
        ),
        forwarding=_forwarding(read, config, reader),
        only_type=only_type,
        exposure=NodeExposure(read.text("node"), read.text("node-selector")),
        source_ranges_policy=read.word("src-ranges-policy", SourceRangesPolicy)
        or SourceRangesPolicy.ALLOW,
        proxy_delegation=read.word("proxy-delegation", ProxyDelegation) or ProxyDelegation.NONE,
        mesh=Mesh(
            is_global,
            is_global if shared is None else shared,
            read.word("affinity", MeshAffinity) or MeshAffinity.NONE,
            read.flag("global-sync-endpoint-slices"),
        ),
        addresses=_addresses(values),
        topology=_topology(values, path, reader),
    )


def read_weight(values: Mapping[str, str], path: str, reader: Reader) -> int:
    """The weight that an EndpointSlice gives its backends."""
    text = values.get(PREFIX + "weight")
    if text is None:
        return WEIGHT_DEFAULT
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or int(text) > WEIGHT_MAX:
        where = f"{path}[{PREFIX + 'weight'!r}]"
        reader.problem(where, f"{text!r}: write a whole number, 0 to {WEIGHT_MAX}")
        return WEIGHT_DEFAULT
    return int(text)


def _forwarding(
    read: _Annotations, config: LoadBalancerConfig, reader: Reader
) -> ForwardingMode | None:
    found = read.get("forwarding-mode")
    if found is not None and found[1].endswith("/mode']"):
        reader.warn(found[1], f"no annotation of Cilium's; {PREFIX}forwarding-mode is meant")
    wanted = read.word("forwarding-mode", ForwardingMode)
    return _if_enabled(wanted, found, config.mode_annotation, "bpf-lb-mode-annotation", reader)


def _if_enabled(
    wanted: _W | None, found: tuple[str, str] | None, enabled: bool, switch: str, reader: Reader
) -> _W | None:
    if found is not None and not enabled:
        reader.problem(found[1], f'services may not choose this; set {switch}: "true"')
    return wanted


def _topology(values: Mapping[str, str], path: str, reader: Reader) -> bool:
    for key in _TOPOLOGY:
        if key in values:
            text = values[key].strip().lower()
            if text not in ("auto", "disabled", ""):
                reader.problem(f"{path}[{key!r}]", f"{values[key]!r}: write Auto or Disabled")
            return text == "auto"
    return False


def _addresses(values: Mapping[str, str]) -> tuple[str, ...]:
    for key in _IPAM:
        if key in values:
            return tuple(part.strip() for part in values[key].split(",") if part.strip())
    return ()


def _refuse_unknown(values: Mapping[str, str], path: str, reader: Reader) -> None:
    for key in values:
        name = key.removeprefix(PREFIX)
        if name != key and name not in _KNOWN:
            reader.problem(f"{path}[{key!r}]", f"unknown annotation{nearest(name, _KNOWN)}")
        name = key.removeprefix(_IPAM_PREFIX)
        if name != key and name not in _IPAM_KNOWN:
            reader.problem(f"{path}[{key!r}]", f"unknown annotation{nearest(name, _IPAM_KNOWN)}")
    if PREFIX + "weight" in values:
        reader.problem(
            f"{path}[{PREFIX + 'weight'!r}]", "it belongs on an EndpointSlice, not on a Service"
        )


def only_on_nodes(exposure: NodeExposure, labels: Mapping[str, str]) -> bool:
    """Whether a service is to be installed on a node with these labels.

    Raises InvalidError for a selector that does not parse.
    """
    if exposure.selector:
        return matches_selector(exposure.selector, labels)
    return not exposure.node or labels.get(PREFIX + "node") == exposure.node


def matches_selector(text: str, labels: Mapping[str, str]) -> bool:
    """Whether labels meet a selector as kubectl's -l takes it.

    Of its forms these are known: `a=b`, `a==b`, `a!=b`, `a`, `!a`, `a in (b, c)`,
    `a notin (b, c)`, joined by commas. Raises InvalidError for others.

    >>> matches_selector("zone in (a, b),!spare", {"zone": "b"})
    True
    """
    return all(_meets(part, labels) for part in _parts(text))


def _parts(text: str) -> list[str]:
    """The requirements, parted at commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:])]


def _meets(part: str, labels: Mapping[str, str]) -> bool:
    words = part.replace("(", " ( ", 1).split()
    if len(words) > 2 and words[1] in ("in", "notin") and words[2] == "(" and part.endswith(")"):
        inside = part[part.index("(") + 1 : -1].split(",")
        return (labels.get(words[0]) in [v.strip() for v in inside]) is (words[1] == "in")
    for sign, equal in (("!=", False), ("==", True), ("=", True)):
        key, found, value = part.partition(sign)
        if found and _is_key(key) and "=" not in value:
            return (labels.get(key.strip()) == value.strip()) is equal
    if _is_key(part):
        return part in labels
    if part.startswith("!") and _is_key(part[1:]):
        return part[1:].strip() not in labels
    raise InvalidError(f"label selector: {part!r}: write a=b, a!=b, a, !a or a in (b, c)")


def _is_key(text: str) -> bool:
    return bool(text.strip()) and not set(text.strip()) & set(" !=<>(),")
