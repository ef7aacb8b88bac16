"""Services as policy sees them (`toServices`): the pods they select, or the addresses behind them.

A Service with a selector means those pods. One without has its addresses in EndpointSlice or
Endpoints objects; addresses of pods in there count as little as elsewhere, since pods are known by
their labels.
https://docs.cilium.io/en/stable/security/policy/language/#services-based
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyciliumlib.errors import UnitError
from pyciliumlib.identity.labels import SOURCE_K8S, Labels
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.cilium import read_metadata
from pyciliumlib.policy.model import PolicyDocument, PolicyKey, ServiceReference
from pyciliumlib.policy.peers import NAMESPACE_KEY, Scope, select_prefix
from pyciliumlib.policy.schema import Problems
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Network, parse_network

SERVICE: Final = "Service"
SLICE: Final = "EndpointSlice"
ENDPOINTS: Final = "Endpoints"
_OF_SERVICE: Final = "kubernetes.io/service-name"


def read_service(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The Service `data`, for its labels and its selector of pods."""
    item = fields.SERVICE.read(data, "", problems)
    key, labels = read_metadata(item, kind, True, problems)
    selector = item.get("spec", {}).get("selector") or {}
    if not isinstance(selector, Mapping) or not all(
        isinstance(text, str) for pair in selector.items() for text in pair
    ):
        problems.add("spec.selector", f"expected an object of texts, found {selector!r:.60}")
        selector = {}
    return PolicyDocument(key, (), labels, pods=_pods(selector, key.namespace, settings))


def _pods(selector: Mapping[str, str], namespace: str, settings: PolicySettings) -> Selector | None:
    if not selector:
        return None
    wanted = {NAMESPACE_KEY: namespace, **selector}
    return Scope(namespace, settings).settle(
        Selector(
            Requirement(SOURCE_K8S, key, Operator.IN, (value,)) for key, value in wanted.items()
        )
    )


def read_slice(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The EndpointSlice `data`, for the addresses that are no pods'."""
    del settings
    item = fields.SLICE.read(data, "", problems)
    key, labels = read_metadata(item, kind, True, problems)
    service = labels.get(_OF_SERVICE, "")
    if not service:
        problems.add("metadata.labels", f"{_OF_SERVICE} is missing; it names the service")
    listed = item.get("endpoints", [])
    members = [
        network
        for entry, where in fields.SLICE_ENDPOINT.read_list(listed, "endpoints", problems)
        if not _is_pod(entry)
        for network in _addresses(entry.get("addresses", []), f"{where}.addresses", problems)
    ]
    of = PolicyKey(SERVICE, key.namespace, service)
    return PolicyDocument(key, (), labels, tuple(dict.fromkeys(members)), of=of)


def read_endpoints(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The Endpoints object `data`, which belongs to the Service of its name."""
    del settings
    item = fields.ENDPOINTS.read(data, "", problems)
    key, labels = read_metadata(item, kind, True, problems)
    members: list[Network] = []
    for subset, where in fields.SUBSET.read_list(item.get("subsets", []), "subsets", problems):
        path = f"{where}.addresses"
        for entry, at in fields.ENDPOINT_ADDRESS.read_list(
            subset.get("addresses", []), path, problems
        ):
            if not _is_pod(entry) and "ip" in entry:
                members.extend(_addresses([entry["ip"]], f"{at}.ip", problems))
    of = PolicyKey(SERVICE, key.namespace, key.name)
    return PolicyDocument(key, (), labels, tuple(dict.fromkeys(members)), of=of)


def _is_pod(entry: Mapping[str, Any]) -> bool:
    target = entry.get("targetRef")
    return isinstance(target, Mapping) and target.get("kind") == "Pod"


def _addresses(values: list[Any], path: str, problems: Problems) -> Iterator[Network]:
    for value in values:
        try:
            network = parse_network(value)
        except (TypeError, UnitError) as error:
            problems.add(path, str(error))
            continue
        if network.prefixlen == network.max_prefixlen:
            yield network
        else:
            problems.add(path, f"{value!r} is no single address")


def select(
    reference: ServiceReference,
    documents: Mapping[PolicyKey, PolicyDocument],
    settings: PolicySettings,
) -> Iterator[Selector]:
    """Those who are behind the services that `reference` means now."""
    for key, document in sorted(documents.items()):
        if key.kind != SERVICE or not _means(reference, document):
            continue
        if document.pods is not None:
            yield document.pods
            continue
        for _, part in sorted(documents.items()):
            if part.of == key:
                yield from (select_prefix(member, (), settings) for member in part.members)


def _means(reference: ServiceReference, service: PolicyDocument) -> bool:
    if reference.namespace not in ("", service.key.namespace):
        return False
    if reference.selector is None:
        return reference.name == service.key.name
    return reference.selector.matches(Labels.parse(service.labels, source=SOURCE_K8S))
