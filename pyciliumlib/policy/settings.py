"""The agent options that change what a policy means."""

from __future__ import annotations

import enum
from typing import Any, TypeVar

from attrs import field, frozen, validators

from pyciliumlib.errors import InvalidError

E = TypeVar("E", bound=enum.Enum)


class Enforcement(str, enum.Enum):
    """When an endpoint is held to policy at all (Cilium's `enable-policy`)."""

    DEFAULT = "default"
    ALWAYS = "always"
    NEVER = "never"


class Version(str, enum.Enum):
    """Whose meaning counts where it changed."""

    CURRENT = "current"
    V1_17 = "1.17"


def _check_cluster(_: object, __: object, name: str) -> None:
    if not name:
        raise InvalidError("cluster_name is empty; the default is 'default'")


def _member(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InvalidError(f"{kind.__name__.lower()} {value!r}: write one of {known}") from None


def _enforcement(value: str) -> Enforcement:
    return _member(Enforcement, value)


def _version(value: str) -> Version:
    return _member(Version, value)


@frozen(cache_hash=True)
class PolicySettings:
    """Options of one cluster; the defaults are those of current Cilium under Kubernetes.

    `default_local_cluster` confines selectors that name no cluster to this one.
    `allow_localhost` lets the local host reach every endpoint, whatever the rules say, short of
    a deny. `audit` lets pass what policy would deny, and tells of it. `node_selectors` and
    `host_firewall` switch on `fromNodes`/`toNodes` and policies with a `nodeSelector`, and
    `cidr_match_nodes` lets prefixes mean nodes too. Where `icmp_rules` or `l7_proxy` is off,
    documents with such rules are refused; `extended_protocols` admits VRRP, IGMP, GRE and the like
    under `toPorts`. Without `non_default_deny`, `enableDefaultDeny` says nothing. `version`
    chooses between meanings that changed: see `PolicySettings.of_version`.

    >>> PolicySettings(enforcement="always").enforcement
    <Enforcement.ALWAYS: 'always'>
    """

    cluster_name: str = field(default="default", validator=_check_cluster)
    enforcement: Enforcement = field(default=Enforcement.DEFAULT, converter=_enforcement)
    allow_localhost: bool = field(default=True, validator=validators.instance_of(bool))
    default_local_cluster: bool = field(default=True, validator=validators.instance_of(bool))
    enable_ipv4: bool = field(default=True, validator=validators.instance_of(bool))
    enable_ipv6: bool = field(default=True, validator=validators.instance_of(bool))
    audit: bool = field(default=False, validator=validators.instance_of(bool))
    node_selectors: bool = field(default=False, validator=validators.instance_of(bool))
    host_firewall: bool = field(default=False, validator=validators.instance_of(bool))
    cidr_match_nodes: bool = field(default=False, validator=validators.instance_of(bool))
    icmp_rules: bool = field(default=True, validator=validators.instance_of(bool))
    l7_proxy: bool = field(default=True, validator=validators.instance_of(bool))
    extended_protocols: bool = field(default=False, validator=validators.instance_of(bool))
    non_default_deny: bool = field(default=True, validator=validators.instance_of(bool))
    version: Version = field(default=Version.CURRENT, converter=_version)

    @classmethod
    def of_version(cls, version: str, **options: Any) -> PolicySettings:
        """The defaults of a version of Cilium, "1.17" or "current", with `options` of your own.

        In 1.17 selectors match pods of all clusters, `fromCIDR` takes addresses without a length,
        two stars in a name are no more than one, and there are neither ClusterNetworkPolicy nor the
        entity cluster-mesh.

        >>> PolicySettings.of_version("1.17").default_local_cluster
        False
        """
        chosen = _version(version)
        if chosen is Version.V1_17:
            options = {"default_local_cluster": False, **options}
        return cls(version=chosen, **options)

    @property
    def is_current(self) -> bool:
        """Whether documents mean what they do in current Cilium."""
        return self.version is Version.CURRENT
