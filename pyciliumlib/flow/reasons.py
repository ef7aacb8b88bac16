"""Why a packet was dropped, and where it was seen, in numbers and English.

The numbers are the C enums' (`bpf/lib/drop.h`, `bpf/lib/event.h`), which are Cilium's up to 219;
a test holds the two together. The texts live here alone, since an enumerator cannot carry one.
"""

from __future__ import annotations

import enum


class DropReason(enum.IntEnum):
    """A numbered reason; 0 is none. `text` is what a person reads."""

    text: str

    def __new__(cls, number: int, text: str = "") -> DropReason:
        member = int.__new__(cls, number)
        member._value_ = number
        member.text = text
        return member

    FORWARDED = 0, "Forwarded"
    INVALID_SOURCE = 132, "Invalid source IP"
    POLICY = 133, "Policy denied"
    INVALID_PACKET = 134, "Invalid packet"
    FRAG_NEEDED = 136, "Fragmentation needed"
    UNSUPPORTED_L3 = 139, "Unsupported L3 protocol"
    WRITE_ERROR = 141, "Error writing to packet"
    UNKNOWN_L4 = 142, "Unknown L4 protocol"
    UNKNOWN_TARGET = 150, "Unknown L3 target address"
    FLOW_INSERT = 155, "Flow table insertion failed"
    IPV6_EXTENSION = 156, "Invalid IPv6 extension header"
    NO_SERVICE_BACKEND = 158, "Service backend not found"
    NAT_NO_MAPPING = 167, "No mapping for NAT masquerade"
    FIB = 169, "FIB lookup failed"
    IS_CLUSTER_IP = 174, "Is a ClusterIP"
    FRAGMENT_NOT_FOUND = 175, "First logical datagram fragment not found"
    FORBIDDEN_ICMPV6 = 176, "Forbidden ICMPv6 message"
    LB_SOURCE_RANGE = 177, "Not in source range"
    POLICY_DENY = 181, "Policy denied by denylist"
    VLAN = 182, "VLAN traffic disallowed by VLAN filter"
    POLICY_AUTH_REQUIRED = 189, "Authentication required"
    DSR_UNSUPPORTED = 193, "Unsupported packet protocol for DSR encap"
    TTL_EXCEEDED = 196, "TTL exceeded"
    ENDPOINT_NOT_READY = 203, "Endpoint not ready"
    NO_PROXY = 220, "L7 redirect without a proxy"
    V4_MAPPED = 221, "IPv6 packet with a v4-mapped address"
    HOOK = 222, "Dropped by a user's hook"

    def __str__(self) -> str:
        return f"{self.text} ({self.value})"


class TracePoint(enum.IntEnum):
    """Where a forwarded packet was seen; Cilium's observation points."""

    TO_ENDPOINT = 0
    TO_HOST = 2
    TO_STACK = 3
    FROM_ENDPOINT = 5
    FROM_STACK = 8
    TO_NETWORK = 11

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


def reason_text(number: int) -> str:
    """The English of a reason, also of one that a newer program knows and this table does not."""
    try:
        return str(DropReason(number))
    except ValueError:
        return f"Drop reason {number}"
