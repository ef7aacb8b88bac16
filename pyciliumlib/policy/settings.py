"""The agent options that change what a policy means."""

from __future__ import annotations

import enum

from attrs import field, frozen, validators


class Enforcement(str, enum.Enum):
    """When an endpoint is held to policy at all (Cilium's `enable-policy`)."""

    DEFAULT = "default"
    ALWAYS = "always"
    NEVER = "never"


def _check_cluster(_: object, __: object, name: str) -> None:
    if not name:
        raise ValueError("cluster_name is empty; the default is 'default'")


@frozen(cache_hash=True)
class PolicySettings:
    """Options of one cluster; the defaults are those of current Cilium under Kubernetes.

    `default_local_cluster` confines selectors that name no cluster to this one.
    `allow_localhost` lets the local host reach every endpoint, whatever the rules say, short of
    a deny. `node_selectors` and `host_firewall` switch on `fromNodes`/`toNodes` and policies with
    a `nodeSelector`, as in Cilium.

    >>> PolicySettings(enforcement="always").enforcement
    <Enforcement.ALWAYS: 'always'>
    """

    cluster_name: str = field(default="default", validator=_check_cluster)
    enforcement: Enforcement = field(default=Enforcement.DEFAULT, converter=Enforcement)
    allow_localhost: bool = field(default=True, validator=validators.instance_of(bool))
    default_local_cluster: bool = field(default=True, validator=validators.instance_of(bool))
    enable_ipv4: bool = field(default=True, validator=validators.instance_of(bool))
    enable_ipv6: bool = field(default=True, validator=validators.instance_of(bool))
    node_selectors: bool = field(default=False, validator=validators.instance_of(bool))
    host_firewall: bool = field(default=False, validator=validators.instance_of(bool))
