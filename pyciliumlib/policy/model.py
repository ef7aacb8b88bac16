"""What a policy document says, as values: rules, clauses, peers, ports, and L7 rules.

A `Rule` selects subjects; its clauses each allow or deny some peers on some ports. Selectors here
are complete: namespace and cluster are already implied, entities and prefixes already expanded.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from attrs import field, frozen

from pyciliumlib.errors import UnitError
from pyciliumlib.identity.labels import (
    SOURCE_CIDR,
    SOURCE_RESERVED,
    Label,
    Labels,
    LabelsLike,
    prefix_of_key,
)
from pyciliumlib.identity.selector import Requirement, Selector
from pyciliumlib.policy.l7 import L7
from pyciliumlib.types import Direction, Network, Protocol
from pyciliumlib.types.ports import PORT_MAX, are_ports


class Verdict(enum.Enum):
    """What becomes of a packet."""

    ALLOW = "allow"
    DENY = "deny"
    REDIRECT = "redirect"

    def __str__(self) -> str:
        return self.value


class Authentication(enum.IntEnum):
    """Whether the ends must prove who they are; the numbers are those of the policy map."""

    DISABLED = 0
    REQUIRED = 1
    TEST_ALWAYS_FAIL = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Tier(enum.IntEnum):
    """Rules are asked tier by tier, the lower number first; the numbers are Cilium's.

    Policies of namespaces and of Cilium are NORMAL. What holds without a rule is DEFAULT.
    """

    ADMIN = 100
    NORMAL = 200
    BASELINE = 250
    DEFAULT = 255

    def __str__(self) -> str:
        return self.name.lower()


class Level(NamedTuple):
    """When a clause is asked: clauses of a lower level come first.

    `priority` counts within the tier, in hundredths of a policy's priority.
    """

    tier: Tier = Tier.NORMAL
    priority: int = 0


NORMAL: Final = Level()


def _document_name(kind: str, namespace: str, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


class Source(NamedTuple):
    """Where a clause was written: a document and the path inside it.

    Rules that no document holds have the kind `reserved`. A tuple, since it is hashed and compared
    for each entry of each policy.
    """

    kind: str
    namespace: str
    name: str
    path: str = ""

    @property
    def document(self) -> str:
        """`kind namespace/name`."""
        return _document_name(self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.document} {self.path}".rstrip()


@frozen(order=True)
class PortMatch:
    """The ports `first` to `last` of a protocol, or a port by the name that a pod gives it.

    `protocol` ANY with all ports is every packet, also of protocols without ports.
    For ICMP and ICMPv6 the port is the message type.
    """

    protocol: Protocol = Protocol.ANY
    first: int = 0
    last: int = PORT_MAX
    name: str = ""

    def __attrs_post_init__(self) -> None:
        if not are_ports(self.first, self.last):
            raise UnitError(f"ports {self.first!r}-{self.last!r}: write 0 to {PORT_MAX}, in order")
        if not isinstance(self.protocol, Protocol):
            raise UnitError(f"{self.protocol!r} is no Protocol; Protocol.parse reads a text")
        if self.protocol is Protocol.ANY and not self.any_port:
            raise UnitError(f"{self}: a port is of one protocol; write a match for each")

    @property
    def any_port(self) -> bool:
        """Whether it holds for all ports of the protocol."""
        return not self.name and self.first == 0 and self.last == PORT_MAX

    def __str__(self) -> str:
        if self.name:
            return f"{self.name}/{self.protocol}"
        if self.protocol.extended:
            return str(self.protocol)
        if self.protocol in (Protocol.ICMP, Protocol.ICMPv6):
            kind = "any type" if self.any_port else f"type {self.first}"
            return f"{self.protocol} {kind}"
        if self.any_port:
            return "every port" if self.protocol is Protocol.ANY else f"every {self.protocol} port"
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.protocol}"


ALL_PORTS: Final = PortMatch()

#: A pod's names for its ports: name to (number, protocol).
NamedPorts = Mapping[str, tuple[int, Protocol]]
#: Names for ports of several pods: one name may stand for several numbers.
PortNames = frozenset[tuple[str, tuple[int, Protocol]]]


def read_named_ports(ports: Mapping[str, tuple[int, Protocol | str]]) -> NamedPorts:
    """A pod's names for its ports, checked; a protocol may be a text.

    Raises UnitError: a name that means no port would match nothing, without a word.
    """
    found: dict[str, tuple[int, Protocol]] = {}
    for name, value in ports.items():
        try:
            port, protocol = value
        except (TypeError, ValueError):
            raise UnitError(f"port {name!r} is {value!r}; write number and protocol") from None
        if not isinstance(name, str) or type(port) is not int or not 1 <= port <= PORT_MAX:
            raise UnitError(f"port {name!r} is {port!r}; it must be 1 to {PORT_MAX}")
        found[name] = port, Protocol.parse(protocol)
    return found


@frozen
class GroupReference:
    """CIDR groups, by name or by a selector of their labels, less some prefixes.

    `cloud` is what a provider knows the group by, as JSON, if it is one of a cloud.
    """

    name: str = ""
    selector: Selector | None = None
    excepts: tuple[Network, ...] = ()
    cloud: str = ""

    def __str__(self) -> str:
        if self.cloud:
            return f"cloud group {self.cloud}"
        groups = self.name if self.selector is None else str(self.selector)
        return f"CIDR group {groups}"


@frozen
class ServiceReference:
    """A service by name, or services by a selector of their labels; no namespace is any."""

    name: str = ""
    namespace: str = ""
    selector: Selector | None = None

    def __str__(self) -> str:
        what = self.name if self.selector is None else str(self.selector)
        return f"service {self.namespace}/{what}" if self.namespace else f"service {what}"


Reference = GroupReference | ServiceReference


@frozen
class Clause:
    """One statement: these peers, on these ports, are allowed, denied, or left to the next tier.

    `peers` None is any peer and an empty tuple none at all; several are alternatives, as are
    `ports`. A clause that selects nothing still turns default deny on. Those whom `references`
    mean are filled in beside the peers by who knows the objects. The peers of a `confined` clause
    are pods that must also have what the rules of the subject require.
    """

    source: Source
    direction: Direction
    deny: bool
    peers: tuple[Selector, ...] | None
    ports: tuple[PortMatch, ...]
    l7: L7 | None = None
    references: tuple[Reference, ...] = ()
    confined: bool = False
    #: None where the clause says nothing of it.
    authentication: Authentication | None = None
    level: Level = NORMAL
    #: It decides nothing, and no later clause of its tier is asked about what it matches.
    passes: bool = False

    @property
    def verdict(self) -> Verdict:
        """What happens to a packet that matches, unless the clause passes it on."""
        if self.deny:
            return Verdict.DENY
        return Verdict.REDIRECT if self.l7 else Verdict.ALLOW


@frozen(order=True)
class BandwidthLimit:
    """At most `rate` bits a second, after `burst` bytes at once from idle."""

    rate: int
    burst: int = 0


@frozen
class Rule:
    """One `spec`: whom it governs, and its clauses.

    `enforces` holds the directions it speaks about, `default_deny` those of them in which what it
    does not allow is denied. `requires` are conditions on the pods that any rule of the same
    subject names as peers (`fromRequires`, `toRequires`; Cilium before 1.19).
    """

    source: Source
    subject: Selector
    on_nodes: bool
    clauses: tuple[Clause, ...]
    enforces: frozenset[Direction]
    default_deny: frozenset[Direction]
    description: str = ""
    requires: tuple[tuple[Direction, Requirement], ...] = ()
    #: Of what the subject sends.
    bandwidth: BandwidthLimit | None = None
    #: What its author wants to read where it decides (`log.value`).
    log: str = ""


class PolicyKey(NamedTuple):
    """What names a document in a repository."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return _document_name(self.kind, self.namespace, self.name)


@frozen
class PolicyDocument:
    """One policy object: its key and its rules, or what rules refer to.

    A CIDR group has `members`, a service selects `pods`, and what tells the addresses of a service
    has them as `members` and says whose they are in `of`.
    """

    key: PolicyKey
    rules: tuple[Rule, ...]
    labels: Mapping[str, str] = field(factory=dict, hash=False)
    members: tuple[Network, ...] = ()
    pods: Selector | None = None
    of: PolicyKey | None = None

    def prefixes(self) -> Iterator[Network]:
        """The prefixes that it names, exceptions too; one may come several times."""
        yield from self.members
        for rule in self.rules:
            for clause in rule.clauses:
                for reference in clause.references:
                    if isinstance(reference, GroupReference):
                        yield from reference.excepts
                for selector in clause.peers or ():
                    for requirement in selector.requirements:
                        if requirement.source == SOURCE_CIDR:
                            yield prefix_of_key(requirement.key)


@frozen
class NamespaceDocument:
    """A Namespace object, of which policy needs the labels."""

    name: str
    labels: Mapping[str, str] = field(factory=dict, hash=False)


#: Reserved labels of those that no endpoint policy governs: they are outside, or other nodes.
_UNGOVERNED: Final = frozenset(
    {"kube-apiserver", "remote-node", "unmanaged", "world", "world-ipv4", "world-ipv6"}
)


def _labels(labels: LabelsLike) -> Labels:
    return Labels.parse(labels)


@frozen
class Party:
    """One end of a connection, as policy sees it: labels, and the names of its ports.

    `audit` is whether what its policy denies passes all the same (Cilium's PolicyAuditMode).
    """

    labels: Labels = field(converter=_labels)
    named_ports: NamedPorts = field(factory=dict, hash=False, converter=read_named_ports)
    identity: int | None = None
    name: str = ""
    audit: bool = False

    @property
    def is_host(self) -> bool:
        """Whether it is the local node itself."""
        return self.labels.has(Label(SOURCE_RESERVED, "host"))

    @property
    def governable(self) -> bool:
        """Whether policy can apply to it as a subject at all."""
        return not any(
            label.source == SOURCE_RESERVED and label.key in _UNGOVERNED for label in self.labels
        )

    def __str__(self) -> str:
        if self.name:
            return self.name
        shown = [
            f"{label.key}={label.value}" if label.value else str(label)
            for label in self.labels
            if not label.key.startswith("io.cilium.")
        ]
        return ",".join(shown) or f"identity {self.identity}"
