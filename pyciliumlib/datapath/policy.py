"""The policies of a node's endpoints: the repository, and the maps that the programs read."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.endpoint import Endpoint
from pyciliumlib.documents import ObjectInput
from pyciliumlib.errors import KernelError, NotFoundError
from pyciliumlib.identity import Identity, IPCache, Metadata, Source, cidr_labels
from pyciliumlib.identity.labels import Labels, LabelsLike
from pyciliumlib.policy import (
    Change,
    Documents,
    Explanation,
    HTTPRequest,
    KafkaRequest,
    Party,
    PolicyDocument,
    PolicyKey,
    Repository,
    parse,
)
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.model import NamedPorts, PortNames
from pyciliumlib.policy.nodes import visible
from pyciliumlib.policy.program.tries import PolicyTries
from pyciliumlib.policy.resolve import EndpointPolicy
from pyciliumlib.policy.table import Plan, plan
from pyciliumlib.store import Store
from pyciliumlib.types import Address, Network, PortProto

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger(__name__)
_STORED: Final = "documents/"
_UNENFORCED: Final = (
    "its rules about nodes are not enforced on the wire; a datapath enforces them with "
    'DatapathConfig(host_firewall=True, devices=("eth0",))'
)
#: What stands for one end of a connection: an endpoint, its name, an address, labels.
PartyLike: TypeAlias = "Endpoint | Party | Address | int | LabelsLike"

#: Identities with their entries, and those that have none now, by the number of the endpoint.
_Differences: TypeAlias = "dict[int, tuple[GroupedEntries, npt.NDArray[np.uint32]]]"


class NodePolicy:
    """Applies documents to the endpoints of a node; each change is whole or not at all.

    When `apply` or `delete` returns, the next packet of every connection is decided by the new
    rules, in both directions.
    """

    def __init__(
        self,
        repository: Repository,
        tries: PolicyTries,
        ipcache: IPCache,
        resolve_party: Callable[[PartyLike], Party],
        store: Store,
        changes: Changes,
        namespaces_changed: Callable[[Iterable[str]], None],
        governs_node: bool = False,
    ) -> None:
        """`namespaces_changed` is told of namespaces whose documents were applied.

        `governs_node` is whether policies for nodes are enforced, and not in the model alone.
        """
        self._governs_node = governs_node
        self.repository = repository
        self._namespaces_changed = namespaces_changed
        self._store = store
        self._tries = tries
        self._ipcache = ipcache
        self._resolve_party = resolve_party
        self._changes = changes
        #: The named ports of endpoints: by identity, and by the endpoint's number.
        self._ports: dict[int, dict[int, NamedPorts]] = {}
        # Held while the repository and the maps change together; inside it only the tries' own.
        self._lock = threading.RLock()

    # ------------------------------------------------------------------ documents

    def apply(self, source: ObjectInput | Documents) -> Change:
        """Add or replace documents: YAML text, a path, decoded objects, or what `parse` made.

        Endpoints of a Namespace among them get its labels, after the rules are in force.

        Raises PolicyError, MapFullError or KernelError, with nothing changed; a StateError of the
        state file, or a MapFullError of an endpoint that follows its namespace, comes after the
        rules are in force.
        """
        settings = self.repository.settings
        documents = source if isinstance(source, Documents) else parse(source, settings)
        for warning in documents.warnings:
            _log.warning("%s", warning)
        for key in self._unenforced(documents.policies):
            _log.warning("%s: %s", key, _UNENFORCED)
        keys = [document.key for document in documents.policies]
        with self._changes:
            before = self.repository.documents
            old = [before[key] for key in keys if key in before]
            change = self._change(documents.policies, old, lambda: self.repository.apply(documents))
            self._keep(documents)
            self._namespaces_changed(item.name for item in documents.namespaces)
            return change

    def delete(self, *keys: PolicyKey) -> Change:
        """Delete documents; NotFoundError, with nothing changed, if one is not there."""
        with self._changes:
            before = self.repository.documents
            old = [before[key] for key in keys if key in before]
            change = self._change((), old, lambda: self.repository.delete(*keys))
            for key in keys:
                self._store.delete(_stored(key))
            return change

    @property
    def documents(self) -> Sequence[PolicyDocument]:
        """The documents in force, sorted by key."""
        documents = self.repository.documents
        return [documents[key] for key in sorted(documents)]

    @property
    def unenforced(self) -> Sequence[PolicyKey]:
        """The documents with rules about nodes, where the datapath does not enforce them.

        Packets pass whatever they say; `DatapathConfig(host_firewall=True)` with `devices` enforces
        them.
        """
        return self._unenforced(self.documents)

    def _unenforced(self, documents: Iterable[PolicyDocument]) -> list[PolicyKey]:
        if self._governs_node:
            return []
        return [item.key for item in documents if any(rule.on_nodes for rule in item.rules)]

    def restore(self) -> None:
        """Apply what the state file keeps; before there are endpoints."""
        kept = [json.loads(entry.value) for entry in self._store.entries(_STORED)]
        if kept:
            self.apply(kept)

    def _keep(self, documents: Documents) -> None:
        for key, item in documents.objects:
            self._store.put(_stored(key), json.dumps(item, default=str))

    def explain(
        self,
        src: PartyLike,
        dst: PartyLike,
        port: str | PortProto,
        *,
        http: HTTPRequest | None = None,
        dns: str | None = None,
        kafka: KafkaRequest | None = None,
    ) -> Explanation:
        """Why a connection passes or not, and a request in it, without sending a packet.

        `src` and `dst` are endpoints, names of endpoints, addresses, or labels; `port` is one
        port, as in "8080/TCP", an ICMP type, as in "8/ICMP", or "ICMP" for an echo request.
        """
        ends = self._resolve_party(src), self._resolve_party(dst)
        return self.repository.explain(*ends, port, http=http, dns=dns, kafka=kafka)

    def rule_text(self, cookie: int) -> str:
        """The rules behind a map entry's cookie; empty where there is none any more."""
        derivation = self.repository.derivation(cookie) if cookie else None
        return str(derivation) if derivation else ""

    def _change(
        self,
        new: Iterable[PolicyDocument],
        old: Iterable[PolicyDocument],
        change_rules: Callable[[], Change],
    ) -> Change:
        """Change rules and the maps; prefixes that rules name have an identity meanwhile.

        A prefix gets its identity before the new rules, so that they hold for it at once. Under
        the old rules it is judged as before, since the maps learn of the identity first.
        """
        wanted, unwanted = _prefixes(new), _prefixes(old)
        self._ipcache.update([(p, r, self._generated(p)) for p, r in wanted - unwanted])
        try:
            with self._lock:
                change = change_rules()
                try:
                    self._replace(change)
                except BaseException:
                    self.repository.undo(change)
                    raise
        except BaseException:
            self._ipcache.update([(p, r, None) for p, r in wanted - unwanted])
            raise
        self._ipcache.update([(p, r, None) for p, r in unwanted - wanted])
        return change

    def _generated(self, prefix: Network) -> Metadata:
        settings = self.repository.settings
        labels = cidr_labels(prefix, settings.enable_ipv4, settings.enable_ipv6)
        return Metadata(Source.GENERATED, labels)

    def _replace(self, change: Change) -> None:
        self._tries.replace(
            {number: policy.grouped() for number, policy in change.policies.items()}
        )

    # ------------------------------------------------------------------ identities and endpoints

    def identities_changed(self, added: Sequence[Identity], removed: Sequence[Identity]) -> None:
        """Follow the allocator: entries for what is new, none for what is gone.

        An endpoint whose map cannot take them is locked down, for without them a packet might pass
        that its rules deny: all of its packets are dropped until its policy fits again. Raises
        MapFullError or KernelError then, with every other endpoint up to date.
        """
        with self._lock:
            differences = self._update({i.id: i.labels for i in added}, [i.id for i in removed])
            self._restore_locked()
            failures = []
            for number, (adds, gone) in differences.items():
                try:
                    self._tries.discard(number, gone)
                    self._tries.add(number, adds)
                except KernelError as error:
                    _log.error("endpoint %d is locked down: %s", number, error)
                    self._tries.lock_down(number)
                    failures.append(error)
            if failures:
                raise failures[0]

    def _restore_locked(self) -> None:
        """Open the endpoints that were locked down and whose policy fits now."""
        policies = self.repository.policies()
        # one that is being removed has no policy any more, and its tries still for a moment
        for number in self._tries.locked & policies.keys():
            try:
                self._tries.replace({number: policies[number].grouped()})
            except KernelError as error:
                _log.error("endpoint %d stays locked down: %s", number, error)
            else:
                _log.warning("endpoint %d is no longer locked down", number)

    def _update(self, added: Mapping[int, Labels], removed: Iterable[int] = ()) -> _Differences:
        """Tell the repository of identities, with their ports by name; what differs by endpoint."""
        delta = self.repository.update_identities(
            added, removed, {number: self._names_of(number) for number in added}
        )
        policies = self.repository.policies()
        found = {n: policy.grouped_changes(delta) for n, policy in policies.items()}
        return {n: (adds, gone) for n, (adds, gone) in found.items() if len(adds) or len(gone)}

    def _names_of(self, identity: int) -> PortNames:
        endpoints = self._ports.get(identity, {}).values()
        return frozenset(item for ports in endpoints for item in ports.items())

    def expect_ports(self, endpoint: Endpoint) -> None:
        """Know the ports of an endpoint by name before its identity is announced."""
        if endpoint.named_ports:
            self._ports.setdefault(endpoint.identity, {})[endpoint.id] = endpoint.named_ports

    def forget_ports(self, endpoint: Endpoint) -> None:
        """The opposite, of an endpoint that went."""
        of_identity = self._ports.get(endpoint.identity, {})
        of_identity.pop(endpoint.id, None)
        if not of_identity:
            self._ports.pop(endpoint.identity, None)

    def _ports_changed(self, endpoint: Endpoint) -> None:
        """Let the policies of others follow an endpoint's ports by name that came or went."""
        if not endpoint.named_ports:
            return
        try:
            labels = self.repository.identity(endpoint.identity).labels
        except NotFoundError:
            return  # the identity went before; its entries with it
        touched = self._update({endpoint.identity: labels})
        self._tries.replace({n: self.repository.policy(n).grouped() for n in touched})

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Resolve and write the policy of an endpoint that no packet reaches yet."""
        with self._lock:
            policy = self._resolve(endpoint)
            try:
                self._tries.fill(endpoint.id, policy.grouped())
                self.expect_ports(endpoint)
                self._ports_changed(endpoint)
            except BaseException:
                self.repository.remove_endpoint(endpoint.id)
                self.forget_ports(endpoint)
                self._ports_changed(endpoint)
                raise

    def relabel_endpoint(self, old: Endpoint, new: Endpoint) -> None:
        """Give an endpoint whose labels changed the policy of the new ones, or leave all as it is.

        Raises PolicyError, MapFullError.
        """
        with self._lock:
            self.repository.remove_endpoint(old.id)
            try:
                self._tries.replace({new.id: self._resolve(new).grouped()})
                self.expect_ports(new)
                self._ports_changed(new)
            except BaseException:
                if new.id in self.repository.policies():
                    self.repository.remove_endpoint(new.id)
                self._resolve(old)
                self.forget_ports(new)
                self._ports_changed(new)
                raise
            self.forget_ports(old)
            self._ports_changed(old)

    def audit_endpoint(self, old: Endpoint, new: Endpoint) -> None:
        """Change whether an endpoint is audited, or leave all as it is. Raises MapFullError."""
        with self._lock:
            self.repository.remove_endpoint(old.id)
            try:
                self._tries.replace({new.id: self._resolve(new).grouped()})
            except BaseException:
                if new.id in self.repository.policies():
                    self.repository.remove_endpoint(new.id)
                self._resolve(old)
                raise

    def adopt_endpoint(self, endpoint: Endpoint) -> None:
        """Take over an endpoint whose map is in the kernel and in use; mend where it differs."""
        with self._lock:
            self.expect_ports(endpoint)
            self._ports_changed(endpoint)
            policy = self._resolve(endpoint)
            if self.drift(endpoint.id):
                self._tries.replace({endpoint.id: policy.grouped()})

    def misplaced(self, number: int) -> bool:
        """Whether the programs find another map than the endpoint's, or none."""
        with self._lock:
            return self._tries.misplaced(number)

    def drift(self, number: int) -> Plan:
        """How an endpoint's map in the kernel differs from its policy."""
        with self._lock:
            wanted = visible(self.repository.policy(number).grouped())
            return plan(wanted, self._tries.read(number))

    def _resolve(self, endpoint: Endpoint) -> EndpointPolicy:
        return self.repository.add_endpoint(
            endpoint.id, endpoint.identity_labels, endpoint.named_ports, audit=endpoint.audit
        )

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Forget an endpoint that no packet reaches any more."""
        with self._lock:
            self.repository.remove_endpoint(endpoint.id)
            self.forget_ports(endpoint)
            self._ports_changed(endpoint)


def _stored(key: PolicyKey) -> str:
    return f"{_STORED}{key.kind}/{key.namespace}/{key.name}"


def _prefixes(documents: Iterable[PolicyDocument]) -> set[tuple[Network, str]]:
    """The prefixes that documents name, exceptions too, with the resource that names them."""
    return {
        (prefix, f"policy/{document.key}")
        for document in documents
        for prefix in document.prefixes()
    }
