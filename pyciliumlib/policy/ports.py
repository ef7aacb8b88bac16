"""`toPorts` and `icmps` of a rule entry: ports by number, range or name, and what L7 adds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from pyciliumlib.errors import nearest
from pyciliumlib.policy import fields
from pyciliumlib.policy.l7 import L7, L7Rule, Parser
from pyciliumlib.policy.l7.reader import (
    read_fqdns,
    read_generic,
    read_http,
    read_kafka,
    read_secret,
)
from pyciliumlib.policy.model import PortMatch
from pyciliumlib.policy.schema import Problems, read_once, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, Protocol
from pyciliumlib.types.ports import PORT_MAX

PORTS_MAX: Final = 40
LISTENER_PRIORITY_MAX: Final = 100
TRANSPORT: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_PROTOCOLS: Final = {"": TRANSPORT, "ANY": TRANSPORT, **{p.name: (p,) for p in TRANSPORT}}
_WITHOUT_PORTS: Final = {p.name.upper(): p for p in Protocol if p.extended}
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PORT_NAME_MAX: Final = 15

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_TYPE_MAX: Final = 255
_ICMP_FAMILIES: Final = {"IPv4": Protocol.ICMP, "IPv6": Protocol.ICMPv6}
# https://www.iana.org/assignments/icmp-parameters, https://www.iana.org/assignments/icmpv6-parameters
_ICMP_TYPES: Final[dict[Protocol, dict[str, int]]] = {
    Protocol.ICMP: {
        "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
        "RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11,
        "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14, "Photuris": 40,
        "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
    },
    Protocol.ICMPv6: {
        "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
        "EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
        "RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136,
        "RedirectMessage": 137, "RouterRenumbering": 138, "ICMPNodeInformationQuery": 139,
        "ICMPNodeInformationResponse": 140, "InverseNeighborDiscoverySolicitation": 141,
        "InverseNeighborDiscoveryAdvertisement": 142, "HomeAgentAddressDiscoveryRequest": 144,
        "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160,
        "ExtendedEchoReply": 161,
    },
}  # fmt: skip


class PortGroup(NamedTuple):
    """The ports of one `toPorts` or `icmps` entry, and the L7 rules for them."""

    ports: tuple[PortMatch, ...]
    l7: L7 | None
    path: str


class PortContext(NamedTuple):
    """Where the ports stand: L7 is for allow rules, and differs by direction and subject."""

    direction: Direction
    deny: bool
    clusterwide: bool
    on_nodes: bool
    settings: PolicySettings


def read_ports(
    values: list[Any], path: str, context: PortContext, problems: Problems
) -> Iterator[PortGroup]:
    """The groups of `toPorts`; an entry without ports yields a group that matches nothing."""
    groups = read_once(_read_ports, values, path, problems, context)
    for index, (ports, l7) in enumerate(groups):
        yield PortGroup(ports, l7, f"{path}[{index}]")


def _read_ports(
    values: list[Any], path: str, problems: Problems, context: PortContext
) -> list[tuple[tuple[PortMatch, ...], L7 | None]]:
    groups = []
    schema = fields.PORT_DENY_RULE if context.deny else fields.PORT_RULE
    for item, where in schema.read_list(values, path, problems):
        listed = item.get("ports", [])
        if len(listed) > PORTS_MAX:
            problems.add(f"{where}.ports", f"{len(listed)} ports in one entry; at most {PORTS_MAX}")
        ports: list[PortMatch] = []
        for port, port_path in fields.PORT.read_list(listed, f"{where}.ports", problems):
            ports.extend(_read_port(port, port_path, context, problems))
        l7 = _read_l7(item, listed, ports, where, context, problems)
        groups.append((tuple(dict.fromkeys(ports)), l7))
    return groups


def _read_port(
    item: dict[str, Any], path: str, context: PortContext, problems: Problems
) -> list[PortMatch]:
    name = str(item.get("protocol", "")).upper()
    text = item.get("port", "")
    extended = context.settings.extended_protocols
    if name in _WITHOUT_PORTS:
        if text not in ("", "0"):
            problems.add(f"{path}.port", f"{name} has no ports; leave port out")
        elif not extended:
            problems.add(
                f"{path}.protocol",
                f"{name} is known only with PolicySettings(extended_protocols=True)",
            )
        return [PortMatch(_WITHOUT_PORTS[name])]
    if name not in _PROTOCOLS:
        hint = (
            "; ICMP goes under icmps"
            if name.startswith("ICMP")
            else (nearest(name, _PROTOCOLS) + "; known are TCP, UDP, SCTP and ANY")
        )
        problems.add(f"{path}.protocol", f"unknown protocol {item['protocol']!r}{hint}")
        return []
    if not isinstance(text, str):
        problems.add(f"{path}.port", f'expected a text, found {text!r}; quote it: "{text}"')
        return []
    if not text and not extended:
        problems.add(path, 'port is missing; "0" means every port')
        return []
    return parse_port(text or "0", item.get("endPort", 0), _PROTOCOLS[name], path, problems)


def parse_port(
    text: str, end: int, protocols: tuple[Protocol, ...], path: str, problems: Problems
) -> list[PortMatch]:
    """What a port's text means for each of `protocols`: a number, a range to `end`, or a name."""
    if not (text.isascii() and text.isdigit()):
        name = text.lower()
        if len(name) > _PORT_NAME_MAX or not _PORT_NAME.fullmatch(name):
            problems.add(
                f"{path}.port",
                f"{text!r} is neither a number nor the name of a port (at most {_PORT_NAME_MAX} "
                "letters, digits and '-', one of them a letter)",
            )
            return []
        return [PortMatch(protocol, name=name) for protocol in protocols]
    if text[0] == "0" and text != "0":
        problems.add(f"{path}.port", f"{text!r}: Cilium reads this as octal; leave out the zeros")
        return []
    first = int(text) if len(text) <= 9 else PORT_MAX + 1
    if first > PORT_MAX or not 0 <= end <= PORT_MAX:
        problems.add(f"{path}.port", f"ports end at {PORT_MAX}")
        return []
    if 0 < end < first:
        problems.warn(f"{path}.endPort", f"{end} is before {first}, so port {first} alone is meant")
    if not (first or end):
        return [PortMatch(protocol) for protocol in protocols]
    return [PortMatch(protocol, first, max(first, end)) for protocol in protocols]


def read_icmps(values: list[Any], path: str, problems: Problems) -> Iterator[PortGroup]:
    """The groups of `icmps`."""
    for item, where in fields.ICMP_RULE.read_list(values, path, problems):
        listed = item.get("fields", [])
        if len(listed) > PORTS_MAX:
            problems.add(
                f"{where}.fields", f"{len(listed)} fields in one entry; at most {PORTS_MAX}"
            )
        ports: list[PortMatch] = []
        for icmp, icmp_path in fields.ICMP_FIELD.read_list(listed, f"{where}.fields", problems):
            ports.extend(_read_icmp(icmp, icmp_path, problems))
        yield PortGroup(tuple(ports), None, where)


def _read_icmp(item: dict[str, Any], path: str, problems: Problems) -> Iterator[PortMatch]:
    family = item.get("family", "IPv4")
    if family not in _ICMP_FAMILIES:
        problems.add(f"{path}.family", f"unknown family {family!r}; known are IPv4 and IPv6")
        return
    protocol = _ICMP_FAMILIES[family]
    kind, known = item.get("type"), _ICMP_TYPES[protocol]
    if isinstance(kind, str):
        kind = known.get(kind, int(kind) if _NUMBER.fullmatch(kind) else kind)
    if isinstance(kind, bool) or not isinstance(kind, int):
        if kind is not None:
            problems.add(
                f"{path}.type", f"no {family} message type {kind!r}{nearest(str(kind), known)}"
            )
    elif not 0 <= kind <= PORT_MAX:
        problems.add(f"{path}.type", f"{kind} is no message type; they are 0 to {_TYPE_MAX}")
    elif kind == 0:
        yield PortMatch(protocol)  # as in Cilium, where port 0 of a filter is every port
    else:
        if kind > _TYPE_MAX:
            problems.warn(f"{path}.type", f"no message has the type {kind}; the rule has no effect")
        yield PortMatch(protocol, kind, kind)


_Reader = Callable[[list[Any], str, Problems], Iterator[L7Rule]]
_READERS: Final[dict[str, tuple[Parser, _Reader]]] = {
    "http": (Parser.HTTP, read_http),
    "dns": (Parser.DNS, read_fqdns),
    "kafka": (Parser.KAFKA, read_kafka),
}


def _read_l7(
    item: dict[str, Any],
    listed: list[Any],
    ports: list[PortMatch],
    path: str,
    context: PortContext,
    problems: Problems,
) -> L7 | None:
    rules = fields.L7_RULES.read(item.get("rules", {}), f"{path}.rules", problems)
    found = [kind for kind in _READERS if rules.get(kind)]
    if "l7proto" in rules:
        found.append("l7proto")
    elif rules.get("l7"):
        problems.add(f"{path}.rules.l7", "l7proto is missing; it names the parser of l7")
    if len(found) > 1:
        problems.add(f"{path}.rules", f"{' and '.join(found)} in one entry; write one for each")
        return None
    if found and not context.settings.l7_proxy:
        problems.add(f"{path}.rules", "L7 rules need a proxy, and PolicySettings.l7_proxy is off")
    names = _read_server_names(item.get("serverNames"), f"{path}.serverNames", problems)
    tls = {
        name: _read_tls(item[name], f"{path}.{name}", problems)
        for name in ("terminatingTLS", "originatingTLS")
        if name in item
    }
    if names and found and "terminatingTLS" not in tls:
        problems.add(
            path,
            f"serverNames with {found[0]} rules needs terminatingTLS; without it "
            "the proxy cannot read the requests",
        )
    if "listener" in item:
        return _read_listener(item, bool(found), path, context, problems)
    if not found:
        if names or tls:
            if any(port.protocol is not Protocol.TCP or port.any_port for port in ports):
                problems.warn(path, "TLS runs over TCP; other connections fail at the proxy")
            return L7(
                Parser.TLS,
                server_names=names,
                terminating=tls.get("terminatingTLS", ""),
                originating=tls.get("originatingTLS", ""),
            )
        return None
    parser, parsed = _read_rules(found[0], rules, f"{path}.rules", problems)
    _check_protocol(parser, listed, ports, path, context, problems)
    return L7(
        parser,
        rules.get("l7proto", ""),
        tuple(dict.fromkeys(parsed)),
        names,
        tls.get("terminatingTLS", ""),
        tls.get("originatingTLS", ""),
    )


def _read_rules(
    kind: str, rules: dict[str, Any], path: str, problems: Problems
) -> tuple[Parser, list[L7Rule]]:
    if kind == "l7proto":
        if not rules["l7proto"]:
            problems.add(f"{path}.l7proto", "the name of the parser is empty")
        return Parser.GENERIC, list(read_generic(rules.get("l7", []), f"{path}.l7", problems))
    parser, read = _READERS[kind]
    return parser, list(read(rules[kind], f"{path}.{kind}", problems))


def _read_server_names(values: Any, path: str, problems: Problems) -> tuple[str, ...]:
    if values is None:
        return ()
    found = texts(values, path, problems)
    for name, where in found:
        if not name:
            problems.add(where, "the server name is empty")
    return tuple(name for name, _ in found)


def _read_tls(value: object, path: str, problems: Problems) -> str:
    item = fields.TLS.read(value, path, problems)
    return read_secret(item["secret"], f"{path}.secret", problems) if "secret" in item else ""


def _read_listener(
    item: dict[str, Any], has_rules: bool, path: str, context: PortContext, problems: Problems
) -> L7:
    where = f"{path}.listener"
    listener = fields.LISTENER.read(item["listener"], where, problems)
    if context.direction is Direction.INGRESS:
        problems.add(where, "a listener is for egress only")
    if has_rules:
        problems.add(where, "a listener brings its own rules; leave `rules` out")
    config = fields.ENVOY_CONFIG.read(
        listener.get("envoyConfig", {"name": "-"}), f"{where}.envoyConfig", problems
    )
    own = "CiliumClusterwideEnvoyConfig" if context.clusterwide else "CiliumEnvoyConfig"
    kind = config.get("kind", own)
    if kind not in ("CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"):
        problems.add(
            f"{where}.envoyConfig.kind",
            f"unknown kind {kind!r}; write CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig",
        )
    if context.clusterwide and kind == "CiliumEnvoyConfig":
        problems.add(
            f"{where}.envoyConfig.kind",
            "a clusterwide policy belongs to no namespace; write CiliumClusterwideEnvoyConfig",
        )
    priority = listener.get("priority", 0)
    if not 0 <= priority <= LISTENER_PRIORITY_MAX:
        problems.add(f"{where}.priority", f"write 1 to {LISTENER_PRIORITY_MAX}, found {priority}")
    # as Cilium names it, less the namespace, which is the policy's: a leading "/" has none
    shared = "/" if kind == "CiliumClusterwideEnvoyConfig" else ""
    name = f"{shared}{config.get('name', '')}/{listener.get('name', '')}"
    return L7(Parser.CRD, name, priority=priority)


def _check_protocol(
    parser: Parser,
    listed: list[Any],
    ports: list[PortMatch],
    path: str,
    context: PortContext,
    problems: Problems,
) -> None:
    dns = parser is Parser.DNS
    where = f"{path}.rules"
    if context.on_nodes and not (dns and context.direction is Direction.EGRESS):
        problems.add(where, f"{parser.value} rules have no place in a policy for nodes")
    if dns and context.direction is Direction.INGRESS:
        problems.add(where, "dns rules are for egress only")
    if dns and not listed:
        problems.add(where, 'dns rules need a port; write port "53"')
    for port in ports:
        if port.any_port:
            problems.add(where, f"{parser.value} rules need a port other than 0")
        elif dns and port.first != port.last and not port.name:
            problems.add(where, f"dns rules take no range of ports, found {port}")
        elif not dns and port.protocol is not Protocol.TCP:
            problems.add(where, f"{parser.value} rules are for TCP, found {port}")
