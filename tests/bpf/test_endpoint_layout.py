"""The C structs, enums and hashes against what Python makes of them."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import numpy as np
import pytest

from pyciliumlib.flow import DropReason, TracePoint
from pyciliumlib.identity import addr_hash
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.policy.entries import VALUE_DTYPE
from pyciliumlib.policy.nodes import NODE_DTYPE, ROOTS_DTYPE
from pyciliumlib.resources import include_dir, object_path
from pyciliumlib.types.addresses import Address, address_to_bytes
from tests.bpf.compiled import compile_bpf

#: Every struct that user space and the programs share, with its size in bytes.
STRUCTS = {
    "policy_node": 64,
    "policy_roots": 20,
    "policy_entry": 16,
    "ipcache_key": 20,
    "ipcache_entry": 8,
    "endpoint": 24,
    "device": 8,
    "flow_key": 40,
    "endpoint_link": 12,
    "flow": 104,
    "fragment_key": 48,
    "fragment_ports": 8,
    "counter": 16,
    "event": 80,
    "hook_args": 48,
    "lb_service_key": 24,
    "lb_service": 40,
    "lb_backend": 24,
    "lb_frontend": 32,
    "lb_affinity_key": 24,
}

SOURCE = """
#include <lib/addr.h>
#include <lib/event.h>
#include <lib/hooks.h>

struct enums {
	enum drop_reason drop;
	enum trace_point trace;
	enum event_type event;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct enums);
} enums SEC(".maps");

struct hashed {
	struct addr addr;
	__u32 hash;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct hashed);
} hashes SEC(".maps");

SEC("tc")
int hash_all(struct __sk_buff *skb)
{
	for (__u32 i = 0; i < 256; i++) {
		__u32 key = i;
		struct hashed *entry = bpf_map_lookup_elem(&hashes, &key);

		if (entry)
			entry->hash = addr_hash(&entry->addr);
	}
	return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ObjectSpec:
    """An object that names the enums, which no program's types do."""
    return ObjectSpec.open(compile_bpf(SOURCE, tmp_path_factory.mktemp("layout"), include_dir()))


@pytest.mark.parametrize("name", STRUCTS)
def test_no_struct_has_padding_that_is_not_written_down(name: str) -> None:
    """Implicit padding would leak the stack, and differ between keys that are equal."""
    dtype = ObjectSpec.open(object_path("endpoint")).type(name).dtype
    assert dtype.fields is not None
    end = 0
    for field in dtype.names or ():
        inner, offset = dtype.fields[field][:2]
        assert offset == end, f"a hole before {field}"
        end = offset + inner.itemsize
    assert end == dtype.itemsize == STRUCTS[name]


def test_all_objects_have_one_layout() -> None:
    """What the one writes the other may read."""
    names = ("endpoint", "policy", "host")
    endpoint, policy, host = (ObjectSpec.open(object_path(name)) for name in names)
    alone = {"endpoint", "endpoint_link", "device", "hook_args"}
    for name in (name for name in STRUCTS if not name.startswith("lb_")):
        if name not in alone:
            assert endpoint.type(name).dtype == policy.type(name).dtype
        if name != "hook_args":
            assert endpoint.type(name).dtype == host.type(name).dtype


def test_an_established_packet_touches_two_cache_lines() -> None:
    """The kernel's 48 bytes, the key and the hot fields; a whole entry is three lines."""
    spec = ObjectSpec.open(object_path("endpoint"))
    fields = spec.type("flow").dtype.fields
    assert fields is not None
    key_end = 48 + spec.type("flow_key").dtype.itemsize
    hot = ("sent", "ifindex", "endpoint", "due", "changes", "opener", "state")
    assert max(fields[name][1] + fields[name][0].itemsize for name in hot) + key_end <= 128
    assert key_end + STRUCTS["flow"] == 192


def test_policy_entries_are_laid_out_alike() -> None:
    """The policy room writes columns without an object at hand."""
    spec = ObjectSpec.open(object_path("endpoint"))
    assert spec.type("policy_node").dtype == NODE_DTYPE
    assert spec.type("policy_roots").dtype == ROOTS_DTYPE
    assert spec.type("policy_entry").dtype == VALUE_DTYPE


def test_drop_reasons(compiled: ObjectSpec) -> None:
    """The same names and numbers in C and in Python, and a text for each."""
    in_c = {
        name.removeprefix("DROP_"): number.value
        for name, number in compiled.enums["drop_reason"].__members__.items()
    }
    assert in_c == {reason.name: int(reason) for reason in DropReason}
    assert len({reason.text for reason in DropReason}) == len(DropReason)


def test_trace_points(compiled: ObjectSpec) -> None:
    """The same for observation points."""
    in_c = {
        name.removeprefix("TRACE_"): number.value
        for name, number in compiled.enums["trace_point"].__members__.items()
    }
    assert in_c == {point.name: int(point) for point in TracePoint}


def test_addr_hash(compiled: ObjectSpec) -> None:
    """User space bumps the very cell that the programs read."""
    chance = random.Random(1)
    addresses: list[Address] = [
        *(ipaddress.IPv4Address(chance.getrandbits(32)) for _ in range(100)),
        *(ipaddress.IPv6Address(chance.getrandbits(128)) for _ in range(100)),
        *(ipaddress.IPv4Address(f"10.0.0.{last}") for last in range(54)),
        ipaddress.IPv6Address(0),
        ipaddress.IPv6Address((1 << 128) - 1),
    ]
    with compiled.load() as loaded:
        hashes = loaded.maps["hashes"]
        keys, values = hashes.lookup_batch()
        packed = b"".join(map(address_to_bytes, addresses))
        values["addr"] = np.frombuffer(packed, np.uint8).reshape(-1, 16)
        hashes.update_batch(keys, values)
        loaded.programs["hash_all"].run(bytes(64))
        computed = hashes.lookup_batch()[1]["hash"].tolist()
    assert computed == [addr_hash(address_to_bytes(address)) for address in addresses]
    assert len(set(computed)) > 250


def test_the_shipped_headers_are_the_ones_that_were_compiled() -> None:
    """A user's program sees the structs of the objects beside it."""
    shipped = include_dir() / "lib"
    source = Path(__file__).parents[2] / "bpf" / "lib"
    names = sorted(path.name for path in source.glob("*.h"))
    assert names == sorted(path.name for path in shipped.glob("*.h"))
    for name in names:
        assert (shipped / name).read_bytes() == (source / name).read_bytes()
