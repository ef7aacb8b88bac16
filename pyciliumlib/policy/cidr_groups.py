"""CiliumCIDRGroup objects: sets of prefixes by name, to which rules refer.

A security group of a cloud (`fromGroups`, `toGroups`) is one too, with a name made of what the
provider knows it by: who can ask the provider fills it in.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyciliumlib.identity.labels import SOURCE_K8S, Labels
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.cilium import read_metadata
from pyciliumlib.policy.identity_index import covering, prefix_key
from pyciliumlib.policy.model import GroupReference, PolicyDocument, PolicyKey
from pyciliumlib.policy.peers import parse_prefix, select_prefix
from pyciliumlib.policy.schema import Problems, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Network

CIDR_GROUP: Final = "CiliumCIDRGroup"
API_VERSIONS: Final = ("cilium.io/v2", "cilium.io/v2alpha1")


def read_group(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The group `data`: a document without rules, whose `members` are the prefixes."""
    del settings
    item = fields.DOCUMENT.read(data, "", problems)
    key, labels = read_metadata(item, kind, False, problems)
    spec = fields.CIDR_GROUP.read(item.get("spec", {}), "spec", problems)
    members = [
        parse_prefix(text, where, problems)
        for text, where in texts(spec.get("externalCIDRs", []), "spec.externalCIDRs", problems)
    ]
    return PolicyDocument(key, (), labels, tuple(dict.fromkeys(m for m in members if m)))


def cloud_groups(
    documents: Mapping[PolicyKey, PolicyDocument],
) -> dict[str, Mapping[str, Any]]:
    """What the provider knows each group by that rules name, by the name of its CiliumCIDRGroup."""
    return {
        reference.name: json.loads(reference.cloud)
        for document in documents.values()
        for rule in document.rules
        for clause in rule.clauses
        for reference in clause.references
        if isinstance(reference, GroupReference) and reference.cloud
    }


def select(
    reference: GroupReference,
    documents: Mapping[PolicyKey, PolicyDocument],
    settings: PolicySettings,
) -> Iterator[Selector]:
    """Those who are in the groups that `reference` means now, less its exceptions."""
    # in this order the prefixes inside one follow it, before any other
    holes = sorted((prefix_key(hole), hole) for hole in set(reference.excepts))
    keys = [key for key, _ in holes]
    known = set(keys)
    for prefix in _members(reference, documents):
        if not known.isdisjoint(covering(prefix)):
            continue
        version, first, length = prefix_key(prefix)
        end = first + (1 << (prefix.max_prefixlen - length))
        inside = slice(bisect_left(keys, (version, first)), bisect_left(keys, (version, end)))
        # a wider one that begins at the same address covers the prefix, so it is none of these
        yield select_prefix(prefix, tuple(hole for _, hole in holes[inside]), settings)


def _members(
    reference: GroupReference, documents: Mapping[PolicyKey, PolicyDocument]
) -> tuple[Network, ...]:
    if reference.selector is None:
        group = documents.get(PolicyKey(CIDR_GROUP, "", reference.name))
        return group.members if group else ()
    selector = reference.selector
    return tuple(
        prefix
        for key, group in sorted(documents.items())
        if key.kind == CIDR_GROUP
        and selector.matches(Labels.parse(group.labels, source=SOURCE_K8S))
        for prefix in group.members
    )
