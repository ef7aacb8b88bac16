"""Names of labs, hosts and devices."""

from __future__ import annotations

import hashlib
import re
import secrets

from pyciliumlib.errors import InvalidError
from pyciliumlib.net.link import IFNAME_MAX

#: Every namespace of a lab is called `pcl-<lab id>-<host>`.
PREFIX = "pcl-"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def new_lab_id() -> str:
    """Four random bytes in hex: many labs can live on one machine."""
    return secrets.token_hex(4)


def netns_prefix(lab_id: str) -> str:
    """What the names of all namespaces of a lab begin with.

    >>> netns_prefix("0badcafe")
    'pcl-0badcafe-'
    """
    return f"{PREFIX}{lab_id}-"


def check_host_name(name: str) -> str:
    """`name` if a host of a lab can be called so: an RFC 1123 name, as Kubernetes wants it."""
    if not _HOST.fullmatch(name):
        raise InvalidError(
            f"{name!r} is no name for a host: "
            "1 to 63 lower-case letters, digits, dots and dashes, beginning and ending with neither"
            " dot nor dash"
        )
    return name


def device_name(prefix: str, host: str) -> str:
    """A device name that shows the host it leads to; a long one is cut and told apart by a hash.

    >>> device_name("lxc-", "web"), device_name("lxc-", "kube-apiserver")
    ('lxc-web', 'lxc-kube-3ddd18')
    """
    full = prefix + host
    if len(full) <= IFNAME_MAX:
        return full
    digest = hashlib.sha256(host.encode()).hexdigest()[:6]
    return full[: IFNAME_MAX - len(digest)] + digest
