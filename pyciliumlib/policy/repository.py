"""The rules of a cluster, the identities they are about, and the endpoints they govern.

A change is whole or not at all: the policies of all endpoints that it touches are resolved first,
and one that cannot be refuses the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from pyciliumlib.documents import ObjectInput
from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, StateError
from pyciliumlib.flow import Flow
from pyciliumlib.identity.labels import (
    Labels,
    LabelsLike,
    Network,
)
from pyciliumlib.identity.numeric import IDENTITY_MAX, ReservedIdentity
from pyciliumlib.policy.analysis import (
    Finding,
    PolicyDiff,
    Reachability,
    RuleSet,
    Suggestion,
    connections,
    diff,
    lint,
    reachability,
    suggest,
)
from pyciliumlib.policy.answer import one_request
from pyciliumlib.policy.cidr_groups import cloud_groups
from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.enforcement import governs
from pyciliumlib.policy.entries import ANY_IDENTITY
from pyciliumlib.policy.explain import Explanation, Target, explain, parse_target
from pyciliumlib.policy.identity_index import IdentityIndex
from pyciliumlib.policy.l7 import HTTPRequest, KafkaRequest
from pyciliumlib.policy.model import (
    BandwidthLimit,
    NamedPorts,
    NamespaceDocument,
    Party,
    PolicyDocument,
    PolicyKey,
    PortNames,
    Rule,
    read_named_ports,
)
from pyciliumlib.policy.parse import Documents, parse
from pyciliumlib.policy.resolve import EndpointPolicy, resolve
from pyciliumlib.policy.rule_store import RuleStore
from pyciliumlib.policy.selections import IdentityDelta, SelectorCache
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.verdict import Decision, decide
from pyciliumlib.types import Direction
from pyciliumlib.types.collector import collector_at_rest


@frozen(eq=False, repr=False)
class Change:
    """What a change of documents did: the revision it made, and the policies it replaced.

    `policies` are the new ones of the endpoints that it touches, by endpoint. `undo` turns it
    back, as long as nothing has changed since.
    """

    revision: int
    policies: Mapping[int, EndpointPolicy]
    before: Mapping[PolicyKey, PolicyDocument | None]
    documents: Documents = field(factory=Documents)
    namespaces_before: Mapping[str, NamespaceDocument | None] = field(factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.before)) or "nothing"
        endpoints = ", ".join(map(str, self.policies)) or "none"
        return f"<Change revision {self.revision}: {names}; endpoints {endpoints}>"


@define(eq=False)
class _Endpoint:
    party: Party
    policy: EndpointPolicy


#: An end of a connection: a party, the number of a known identity, or labels.
PartyLike = Party | int | LabelsLike


class Repository:
    """Rules by document, identities, and the endpoints of this node; safe under threads.

    >>> repository = Repository()
    >>> _ = repository.update_identities({1000: ["k8s:app=web"]})
    >>> policy = repository.add_endpoint(1, ["k8s:app=web"])
    >>> len(policy.entries())  # nothing governs it: both directions are open
    2
    """

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self.settings = settings or PolicySettings()
        self._rules = RuleStore(self.settings)
        self._cache = SelectorCache()
        self._lock = self._cache.lock
        self._derivations = Derivations()
        self._endpoints: dict[int, _Endpoint] = {}
        self._subjects = IdentityIndex()  # of endpoints, by number
        self._namespaces: dict[str, NamespaceDocument] = {}
        self._revision = 0
        reserved = (identity for identity in ReservedIdentity if identity.given_to_traffic)
        self.update_identities({identity: identity.labels for identity in reserved})

    # ------------------------------------------------------------------ documents

    @property
    def revision(self) -> int:
        """Counts the changes of documents."""
        return self._revision

    @property
    def documents(self) -> Mapping[PolicyKey, PolicyDocument]:
        """The documents, by key; a copy."""
        with self._lock:
            return dict(self._rules.documents)

    @property
    def namespaces(self) -> Mapping[str, NamespaceDocument]:
        """The Namespace objects that were applied, by name; a copy."""
        with self._lock:
            return dict(self._namespaces)

    def apply(self, source: ObjectInput | Documents) -> Change:
        """Add or replace documents; `source` is what `parse` takes, or its result.

        Raises PolicyError, with nothing changed, if a document is wrong or contradicts another.
        """
        with collector_at_rest():
            documents = source if isinstance(source, Documents) else parse(source, self.settings)
            return self._change(
                {item.key: item for item in documents.policies},
                {item.name: item for item in documents.namespaces},
                documents,
            )

    def delete(self, *keys: PolicyKey) -> Change:
        """Delete documents; NotFoundError, with nothing changed, if one is not there."""
        with self._lock:
            for key in keys:
                if key not in self._rules.documents:
                    raise NotFoundError(f"there is no {key} to delete")
            return self._change(dict.fromkeys(keys), {})

    def undo(self, change: Change) -> Change:
        """Bring back the documents that a change replaced or deleted, and delete those it added.

        Raises StateError if another change came after it.
        """
        with self._lock:
            if change.revision != self._revision:
                raise StateError(
                    f"{change} is not the latest, which is revision {self._revision}; apply the "
                    "documents that you want instead"
                )
            return self._change(change.before, change.namespaces_before)

    def _change(
        self,
        wanted: Mapping[PolicyKey, PolicyDocument | None],
        namespaces: Mapping[str, NamespaceDocument | None],
        documents: Documents | None = None,
    ) -> Change:
        with self._lock:
            before = self._rules.change(wanted)
            resolved: dict[int, EndpointPolicy] = {}
            try:
                for number in self._touched(before, wanted):
                    endpoint = self._endpoints[number]
                    resolved[number] = self._resolve(
                        endpoint.party, self._revision + 1, endpoint.policy
                    )
            except BaseException:
                for policy in resolved.values():
                    policy.release()
                self._rules.change(before)
                raise
            self._revision += 1
            for number, policy in resolved.items():
                endpoint = self._endpoints[number]
                endpoint.policy.release()
                endpoint.policy = policy
            spaces_before = {name: self._namespaces.get(name) for name in namespaces}
            self._namespaces |= {name: item for name, item in namespaces.items() if item}
            for name in [name for name, item in namespaces.items() if item is None]:
                self._namespaces.pop(name, None)
            return Change(self._revision, resolved, before, documents or Documents(), spaces_before)

    def _touched(self, *sets: Mapping[PolicyKey, PolicyDocument | None]) -> list[int]:
        """The endpoints that a rule of these documents governs."""
        if not self._endpoints:
            return []
        found = {
            number
            for documents in sets
            for rule in self._rules.touched(documents)
            for number in self._subjects.select(rule.subject)
            if governs(rule, self._endpoints[number].party)
        }
        return sorted(found)

    # ------------------------------------------------------------------ identities

    def update_identities(
        self,
        added: Mapping[int, LabelsLike] | None = None,
        removed: Iterable[int] = (),
        named_ports: Mapping[int, NamedPorts | PortNames] | None = None,
    ) -> IdentityDelta:
        """Tell which identities there are now, and their ports' names where they have any.

        Pods of one identity may give a name to different ports; all of them are meant.

        `EndpointPolicy.changes` says what the result means for a policy map. A number whose
        labels or named ports differ goes and comes again. Raises InvalidError for a number that
        no packet can carry.
        """
        names = named_ports or {}
        parsed: dict[int, tuple[Labels, PortNames]] = {}
        for number, labels in (added or {}).items():
            if not isinstance(number, int) or not ANY_IDENTITY < number <= IDENTITY_MAX:
                raise InvalidError(f"identity {number!r}: identities are 1 to {IDENTITY_MAX}")
            ports = names.get(number, {})
            if isinstance(ports, Mapping):
                ports = frozenset(read_named_ports(ports).items())
            parsed[number] = Labels.parse(labels), ports
        if strangers := names.keys() - parsed.keys():
            raise InvalidError(f"identity {min(strangers)} has named ports but is not in `added`")
        with self._lock:
            return self._cache.update(parsed, removed)

    def identity(self, number: int) -> Party:
        """An identity as a party to a connection; NotFoundError if it is not known."""
        with self._lock:
            labels = self._cache.index.labels.get(number)
            if labels is None:
                raise NotFoundError(f"identity {number} is not known; tell update_identities of it")
            return Party(labels, dict(self._cache.named_ports.get(number, ())), number)

    # ------------------------------------------------------------------ endpoints

    def add_endpoint(
        self,
        number: int,
        labels: LabelsLike,
        named_ports: NamedPorts | None = None,
        *,
        audit: bool = False,
    ) -> EndpointPolicy:
        """The policy of a new endpoint, kept up from now on.

        With `audit` its entries let pass what they would deny.
        """
        with self._lock:
            if number in self._endpoints:
                raise ExistsError(f"endpoint {number} is there already; remove it first")
            party = Party(labels, dict(named_ports or {}), audit=audit)
            policy = self._resolve(party, self._revision)
            self._endpoints[number] = _Endpoint(party, policy)
            self._subjects.add(number, party.labels)
            return policy

    def remove_endpoint(self, number: int) -> None:
        """Forget an endpoint; NotFoundError if it is not there."""
        with self._lock:
            self._endpoint(number).policy.release()
            del self._endpoints[number]
            self._subjects.remove(number)

    def policy(self, number: int) -> EndpointPolicy:
        """The policy of an endpoint as it is now."""
        with self._lock:
            return self._endpoint(number).policy

    def policies(self) -> Mapping[int, EndpointPolicy]:
        """The policies of all endpoints, by number; a copy."""
        with self._lock:
            return {number: endpoint.policy for number, endpoint in self._endpoints.items()}

    def _endpoint(self, number: int) -> _Endpoint:
        try:
            return self._endpoints[number]
        except KeyError:
            raise NotFoundError(f"there is no endpoint {number}") from None

    def _resolve(
        self, party: Party, revision: int, before: EndpointPolicy | None = None
    ) -> EndpointPolicy:
        handouts = self._rules.handouts(party)
        return resolve(
            handouts, self.settings, party, self._cache, self._derivations, revision, before
        )

    # ------------------------------------------------------------------ questions

    def derivation(self, cookie: int) -> Derivation | None:
        """The rules behind a map entry, by its cookie; None once no policy uses it."""
        return self._derivations.get(cookie)

    def prefixes(self) -> frozenset[Network]:
        """The prefixes that rules name, exceptions included.

        Each needs an identity of its own, with a `cidr` label, in the ipcache and in
        `update_identities`; without one its addresses are the world.
        """
        with self._lock:
            return self._rules.prefixes()

    def cloud_groups(self) -> Mapping[str, Mapping[str, Any]]:
        """The security groups of clouds that rules name (`fromGroups`, `toGroups`).

        Each selects nobody until a CiliumCIDRGroup is applied whose name is the key here, with the
        prefixes that the provider tells for the value.
        """
        with self._lock:
            return cloud_groups(self._rules.documents)

    def governing(self, subject: PartyLike) -> Sequence[Rule]:
        """The rules about a subject."""
        with self._lock:
            return self._rules.governing(self._party(subject))

    def bandwidth(self, subject: PartyLike) -> BandwidthLimit | None:
        """The lowest limit that rules set to what `subject` sends; None if there is none."""
        limits = [rule.bandwidth for rule in self.governing(subject) if rule.bandwidth]
        return min(limits, default=None)

    def decide(
        self, subject: PartyLike, peer: PartyLike, direction: Direction, target: Target
    ) -> Decision:
        """The model's verdict of one direction of `subject`."""
        with self._lock:
            party = self._party(subject)
            return decide(
                self._rules.governing(party),
                self.settings,
                party,
                self._party(peer),
                direction,
                *parse_target(target),
            )

    def explain(
        self,
        src: PartyLike,
        dst: PartyLike,
        port: Target,
        *,
        http: HTTPRequest | None = None,
        dns: str | None = None,
        kafka: KafkaRequest | None = None,
    ) -> Explanation:
        """Why a connection from `src` to `port` of `dst` passes or not, and a request in it.

        The ends are identities, labels, or parties; `dns` is the name that is asked for. Raises
        NotFoundError for an unknown identity, PolicyError or UnitError for a port that is not one
        port of one protocol, PolicyError for several requests.
        """
        request = one_request(http, dns, kafka)
        with self._lock:
            ends = self._party(src), self._party(dst)
            return explain(self._rules.governing, self.settings, *ends, port, request)

    def reachability(
        self, parties: Mapping[str, PartyLike] | Iterable[Party], port: Target
    ) -> Reachability:
        """The verdicts between all `parties`, by name, on one port.

        Raises what `explain` raises.
        """
        with self._lock:
            named = self._named(parties)
            return reachability(self._rules.governing, self.settings, named, port)

    def diff(
        self,
        source: ObjectInput | Documents,
        parties: Mapping[str, PartyLike] | Iterable[Party] | None = None,
        delete: Iterable[PolicyKey] = (),
    ) -> PolicyDiff:
        """What applying documents, and deleting others, would change; nothing is changed.

        `parties` are whose connections count; without them, those of all identities. Raises what
        `apply` raises.
        """
        with self._lock:
            changed = Repository(self.settings)
            kept = [d for key, d in self._rules.documents.items() if key not in set(delete)]
            changed.apply(Documents(tuple(kept), tuple(self._namespaces.values())))
            changed.apply(source)
            if parties is None:
                parties = {str(number): number for number in self._cache.index.labels}
            return diff(self._rule_set(), changed._rule_set(), self._named(parties))

    def lint(self) -> tuple[Finding, ...]:
        """What rules do that their author may not expect, as far as the identities are known."""
        with self._lock:
            names = {name for ports in self._cache.named_ports.values() for name, _ in ports}
            names |= {n for e in self._endpoints.values() for n in e.party.named_ports}
            return lint(self._rule_set().rules, self._cache.index.labels, frozenset(names))

    def _rule_set(self) -> RuleSet:
        rules = [rule for document in self._rules.documents.values() for rule in document.rules]
        return RuleSet(rules, self._rules.governing, self.settings)

    def suggest(
        self, flows: Iterable[Flow], *, dropped: bool = False, by_address: bool = False
    ) -> Suggestion:
        """The least CiliumNetworkPolicies that allow what `flows` tell of.

        Connections that were dropped count with `dropped`; with `by_address` an end in the world is
        allowed by its address. Raises NotFoundError for a flow of an identity that is not known.
        """
        return suggest(connections(flows, self.identity, dropped=dropped, by_address=by_address))

    def _named(self, parties: Mapping[str, PartyLike] | Iterable[Party]) -> dict[str, Party]:
        if isinstance(parties, Mapping):
            return {name: self._party(party) for name, party in parties.items()}
        listed = list(parties) if isinstance(parties, Iterable) else [parties]
        if any(not isinstance(party, Party) for party in listed):
            raise InvalidError(
                "parties: write a mapping of names to identities, labels or parties, or a list of "
                "values of the type Party"
            )
        return {str(party): party for party in listed}

    def _party(self, party: PartyLike) -> Party:
        if isinstance(party, Party):
            return party
        if isinstance(party, int):
            return self.identity(party)
        return Party(party)
