"""The third face of the ipcache: what `bpf/lib/ipcache.h` finds is what the model says."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.identity import IPCache, IPCacheTable, Metadata, Source, addr_hash, world_identity
from pyciliumlib.kernel import Object, ObjectSpec
from pyciliumlib.types import Address, Network, address_to_bytes
from tests.bpf.compiled import compile_bpf
from tests.scale import examples

_LIB = Path(__file__).resolve().parents[2] / "bpf" / "lib"
_SOURCE = f"""
#include "{_LIB}/ipcache.h"

struct answer {{
	__u32 hash;
	__u32 cell;
	__u32 identity;
	__u32 revision;
}};
struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
}} answers SEC(".maps");

/* The packet is one address. */
SEC("xdp")
int ask(struct xdp_md *ctx)
{{
	struct addr *addr = (void *)(long)ctx->data;
	struct answer answer = {{}};
	__u32 zero = 0;

	if ((void *)(addr + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	struct addr copy = *addr;
	answer.hash = addr_hash(&copy);
	answer.cell = ipcache_cell(&copy);
	answer.identity = ipcache_identity(&copy);
	answer.revision = ipcache_revision(answer.cell) + ipcache_revision(IPCACHE_REV_PREFIX);
	bpf_map_update_elem(&answers, &zero, &answer, 0);
	return XDP_PASS;
}}
"""
ADDRESSES = st.one_of(
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.128.0.1", "::1", "fd00::1", "fd00::2"]).map(
        ipaddress.ip_address
    ),
    st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None),
)
PREFIXES = st.builds(
    lambda address, length: ipaddress.ip_network(
        (address, min(length, address.max_prefixlen)), strict=False
    ),
    ADDRESSES,
    st.sampled_from([0, 1, 8, 16, 24, 31, 32, 64, 127, 128]),
).filter(lambda network: not network.subnet_of(ipaddress.ip_network("::ffff:0:0/96"))
         if network.version == 6 else True)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["one family", "both families"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Object, bool]]:
    spec = ObjectSpec.open(compile_bpf(_SOURCE, tmp_path_factory.mktemp("ipcache")))
    spec.config["dual_stack"] = request.param
    spec.config["ipcache_cells"] = spec.maps["ipcache_rev"].max_entries
    with spec.load() as obj:
        yield obj, request.param


class Answer:
    """What the program says of one address."""

    def __init__(self, obj: Object, address: Address) -> None:
        packet = address_to_bytes(address)
        assert obj.program("ask").run(packet).retval == 2  # XDP_PASS
        found = obj.map("answers")[0]
        self.hash, self.cell = found.hash, found.cell
        self.identity, self.revision = found.identity, found.revision


@given(addresses=st.lists(ADDRESSES, min_size=1, max_size=20))
@settings(max_examples=examples(30), deadline=None)
def test_hash_and_cell(loaded: tuple[Object, bool], addresses: list[Address]) -> None:
    """User space computes the cell that the program reads."""
    obj, _ = loaded
    cells = obj.map("ipcache_rev").max_entries
    for address in addresses:
        answer = Answer(obj, address)
        expected = addr_hash(address_to_bytes(address))
        assert answer.hash == expected
        assert answer.cell == 2 + expected % (cells - 2)


@given(
    said=st.dictionaries(PREFIXES, st.integers(1, 2**32 - 1), max_size=8),
    later=st.dictionaries(PREFIXES, st.none() | st.integers(1, 2**32 - 1), max_size=4),
    addresses=st.lists(ADDRESSES, min_size=1, max_size=8),
)
@settings(max_examples=examples(60), deadline=None)
def test_model_table_and_program_agree(
    loaded: tuple[Object, bool],
    said: dict[Network, int],
    later: dict[Network, int | None],
    addresses: list[Address],
) -> None:
    """Before and after a change; an address that changes hands has another revision."""
    obj, dual_stack = loaded
    cache = IPCache()
    table = IPCacheTable(obj.map("ipcache"), obj.map("ipcache_rev"), dual_stack)
    cancel = table.follow(cache)
    asked = [*addresses, *(network.network_address for network in (*said, *later))]
    asked = [a for a in asked if getattr(a, "ipv4_mapped", None) is None]

    def check() -> list[tuple[int, int]]:
        assert not table.drift(cache)
        found = []
        for address in asked:
            entry, answer = cache.lookup(address), Answer(obj, address)
            world = int(world_identity(address.version, ipv6=dual_stack))
            if not dual_stack:
                world = 2
            assert answer.identity == (entry.identity if entry else world), address
            found.append((answer.identity, answer.revision))
        return found

    cache.update((p, "test", Metadata(Source.LOCAL, identity=n)) for p, n in said.items())
    before = check()
    cache.update(
        (p, "test", None if n is None else Metadata(Source.LOCAL, identity=n))
        for p, n in later.items()
    )
    for (was, revision), (now, new_revision) in zip(before, check(), strict=True):
        assert was == now or revision != new_revision
    cancel()
