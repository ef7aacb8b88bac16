"""A user's own programs in the packet's path, compiled against the headers that we ship."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attrs import frozen

from pyciliumlib.flow import DropReason
from pyciliumlib.kernel import Object, ObjectSpec
from pyciliumlib.resources import include_dir
from tests.bpf import harness
from tests.bpf.compiled import compile_bpf
from tests.bpf.harness import (
    CLIENT,
    CLIENT_IDENTITY,
    EGRESS,
    FROM,
    INGRESS,
    REDIRECT,
    SERVER,
    SERVER_IDENTITY,
    SHOT,
    TO,
    Devices,
    Rig,
)
from tests.bpf.packets import ACK, FAMILIES, SYN, Family
from tests.bpf.test_endpoint_flows import answer, establish, request

#: Counts what it sees and drops what is sent to port 6666.
SOURCE = """
#include <lib/hooks.h>

struct seen {
	__u64 calls;
	struct hook_args last;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOOK_SLOTS);
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

SEC("tc")
int user(struct __sk_buff *skb)
{
	const struct hook_args *args = hook_packet();
	struct seen *entry;
	__u32 slot;

	if (!args)
		return TC_ACT_SHOT;
	slot = args->slot;
	entry = bpf_map_lookup_elem(&seen, &slot);
	if (!entry)
		return TC_ACT_SHOT;
	entry->calls++;
	entry->last = *args;
	return args->dport == bpf_htons(6666) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
"""
BEFORE, AFTER = 0, 1
families = pytest.mark.parametrize("family", FAMILIES, ids=str)


@frozen
class Hooked:
    """The endpoint programs with hooks on, and the user's program beside them."""

    rig: Rig
    user: Object

    def install(self, *slots: int) -> None:
        """Put the user's program into these slots and no other; forget what it saw."""
        for slot in (BEFORE, AFTER):
            if slot in slots:
                self.rig.maps["hooks"][slot] = self.user.programs["user"]
            else:
                self.rig.maps["hooks"].delete(slot)
        seen = self.user.maps["seen"]
        keys, values = seen.lookup_batch()
        seen.update_batch(keys, np.zeros_like(values))

    def seen(self, slot: int) -> Any:
        return self.user.maps["seen"][slot]


@pytest.fixture(scope="module")
def loaded(where: Devices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hooked]:
    """Compiled as a user would, against `include_dir()`, sharing the library's map."""
    source = compile_bpf(SOURCE, tmp_path_factory.mktemp("hook"), include_dir())
    with harness.rig(where, hooks_enabled=True) as rig:
        reuse = {"hook_args": rig.maps["hook_args"]}
        with ObjectSpec.open(source).load(reuse=reuse) as user:
            yield Hooked(rig, user)


@pytest.fixture
def hooked(loaded: Hooked) -> Hooked:
    loaded.rig.reset()
    loaded.rig.allow_all()
    return loaded


@families
def test_before_policy_every_packet_is_seen(hooked: Hooked, family: Family) -> None:
    """Also one that policy denies; who its ends are is not known yet."""
    hooked.install(BEFORE)
    hooked.rig.clear_rules(SERVER)
    assert request(hooked.rig, family, SYN).drop == DropReason.POLICY
    seen = hooked.seen(BEFORE)
    assert seen.calls == 1
    assert (str(seen.last.src), str(seen.last.dst)) == (family.client, family.server)
    assert (seen.last.sport, seen.last.dport, seen.last.proto) == (40000, 80, 6)
    assert (seen.last.direction, seen.last.slot) == (EGRESS, BEFORE)
    assert (seen.last.src_identity, seen.last.dst_identity) == (0, 0)


@families
def test_after_policy_the_identities_are_known(hooked: Hooked, family: Family) -> None:
    """In the packet's direction, for an opening, an established packet and a reply."""
    hooked.install(AFTER)
    establish(hooked.rig, family)
    seen = hooked.seen(AFTER)
    assert seen.calls == 3
    assert (seen.last.src_identity, seen.last.dst_identity) == (CLIENT_IDENTITY, SERVER_IDENTITY)
    answer(hooked.rig, family, ACK)
    seen = hooked.seen(AFTER)
    assert (seen.last.src_identity, seen.last.dst_identity) == (SERVER_IDENTITY, CLIENT_IDENTITY)


@families
def test_after_policy_what_is_denied_is_not_seen(hooked: Hooked, family: Family) -> None:
    """The slot is for what policy allows."""
    hooked.install(AFTER)
    hooked.rig.clear_rules(SERVER)
    request(hooked.rig, family, SYN)
    assert hooked.seen(AFTER).calls == 0


@families
@pytest.mark.parametrize("slot", [BEFORE, AFTER])
def test_a_hook_may_drop(hooked: Hooked, family: Family, slot: int) -> None:
    """With a reason of its own, in the events and in the metrics."""
    hooked.install(slot)
    frame = family.tcp(family.client, family.server, 6666)
    outcome = hooked.rig.send(FROM, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.HOOK)
    assert outcome.packet == frame
    assert hooked.rig.metrics() == {(EGRESS, DropReason.HOOK): (1, len(frame))}
    assert request(hooked.rig, family, SYN).action == REDIRECT


@families
def test_empty_slots_change_nothing(hooked: Hooked, family: Family) -> None:
    """A packet goes on where no program is installed."""
    hooked.install()
    establish(hooked.rig, family)
    assert hooked.seen(BEFORE).calls == hooked.seen(AFTER).calls == 0


@families
def test_the_other_hook_calls_them_too(hooked: Hooked, family: Family) -> None:
    """What the stack sends to an endpoint is of the direction ingress."""
    hooked.install(BEFORE, AFTER)
    hooked.rig.send(TO, SERVER, family.tcp(family.peer, family.server))
    for slot in (BEFORE, AFTER):
        seen = hooked.seen(slot)
        assert (seen.calls, seen.last.direction) == (1, INGRESS)
