"""The objects that a rule entry names as peers: CIDR groups, groups of clouds, services.

Who they mean is filled in by who holds the objects (`references.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyciliumlib.policy import fields
from pyciliumlib.policy.model import GroupReference, Reference, ServiceReference
from pyciliumlib.policy.peers import parse_prefix, parse_selector
from pyciliumlib.policy.schema import Problems, texts

_FIELDS: Final = {
    word: {f"{word}CIDRSet", f"{word}Groups", "toServices"} for word in ("from", "to")
}


def read_references(
    entry: Mapping[str, Any], word: str, path: str, problems: Problems
) -> tuple[Reference, ...]:
    """The references of an entry, whose `fromCIDRSet` was checked; `word` is `from` or `to`."""
    if _FIELDS[word].isdisjoint(entry):
        return ()
    return (
        *_groups(entry, word, path, problems),
        *_cloud_groups(entry, word, path, problems),
        *_services(entry, path, problems),
    )


def _groups(
    entry: Mapping[str, Any], word: str, path: str, problems: Problems
) -> tuple[GroupReference, ...]:
    """The CIDR groups that an entry's CIDR sets refer to; `read_peers` has checked their fields."""
    field = f"{word}CIDRSet"
    found: list[GroupReference] = []
    if field not in entry:
        return ()
    for index, item in enumerate(entry[field]):
        if not isinstance(item, Mapping) or item.get("cidr") is not None:
            continue
        where = f"{path}.{field}[{index}]"
        excepts = tuple(
            prefix
            for text, at in texts(item.get("except") or [], f"{where}.except", problems)
            if (prefix := parse_prefix(text, at, problems)) is not None
        )
        if isinstance(item.get("cidrGroupRef"), str):
            found.append(GroupReference(item["cidrGroupRef"], excepts=excepts))
        elif item.get("cidrGroupSelector") is not None:
            selector = parse_selector(
                item["cidrGroupSelector"], f"{where}.cidrGroupSelector", problems
            )
            if selector is not None:
                found.append(GroupReference(selector=selector, excepts=excepts))
    return tuple(found)


def _services(
    entry: Mapping[str, Any], path: str, problems: Problems
) -> tuple[ServiceReference, ...]:
    """The services that the `toServices` of an entry names."""
    found: list[ServiceReference] = []
    listed = entry.get("toServices")
    if not listed:
        return ()
    for item, where in fields.SERVICE_PEER.read_list(listed, f"{path}.toServices", problems):
        if "k8sService" in item:
            at = f"{where}.k8sService"
            named = fields.K8S_SERVICE.read(item["k8sService"], at, problems)
            found.append(ServiceReference(named.get("serviceName", ""), named.get("namespace", "")))
        elif "k8sServiceSelector" in item:
            at = f"{where}.k8sServiceSelector"
            chosen = fields.K8S_SERVICE_SELECTOR.read(item["k8sServiceSelector"], at, problems)
            selector = parse_selector(chosen.get("selector", {}), f"{at}.selector", problems)
            if selector is not None:
                found.append(ServiceReference("", chosen.get("namespace", ""), selector))
    return tuple(found)


def _cloud_groups(
    entry: Mapping[str, Any], word: str, path: str, problems: Problems
) -> Iterator[GroupReference]:
    """The groups that an entry's `fromGroups` or `toGroups` names."""
    name = f"{word}Groups"
    named = entry.get(name) or []
    for item, where in fields.CLOUD_GROUP.read_list(named, f"{path}.{name}", problems):
        where = f"{where}.aws"
        group = fields.AWS_GROUP.read(item.get("aws", {}), where, problems)
        for key in ("securityGroupsIds", "securityGroupsNames"):
            listed = texts(group.get(key, []), f"{where}.{key}", problems)
            group[key] = sorted(text for text, _ in listed)
        labels = group.get("labels", {})
        if not all(isinstance(text, str) for pair in labels.items() for text in pair):
            problems.add(f"{where}.labels", "keys and values are texts; quote numbers")
            continue
        known_by = json.dumps({"aws": group}, sort_keys=True)
        digest = hashlib.blake2b(known_by.encode(), digest_size=8).hexdigest()
        yield GroupReference(f"aws-{digest}", cloud=known_by)
