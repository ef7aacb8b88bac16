"""The compiled fill against one written for clarity, over random backends, weights and seeds."""

from __future__ import annotations

import base64
import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from pyciliumlib.loadbalancer import Backend, Maglev

SEEDS = st.binary(min_size=12, max_size=12).map(lambda data: base64.b64encode(data).decode())
BACKENDS = st.lists(
    st.builds(
        Backend,
        st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
        st.integers(1, 65535),
        st.sampled_from(["TCP", "UDP", "SCTP"]),
        st.one_of(st.integers(0, 5), st.integers(0, 65535)),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda backend: backend.hash_string,
)


#: Also runs of zeros of every length and place, and what is v4-mapped or nearly so.
ADDRESSES = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.tuples(*[st.sampled_from([0, 0, 0, 1, 0x10, 0xFFFF])] * 8).map(
        lambda words: ipaddress.IPv6Address(b"".join(word.to_bytes(2, "big") for word in words))
    ),
    st.integers(0, 0x1FFFF_FFFF_FFFF).map(ipaddress.IPv6Address),
    st.integers(0, 0xFFFFFFFF).map(lambda last: ipaddress.IPv6Address(0xFFFF << 32 | last)),
)


@given(
    ADDRESSES,
    st.integers(1, 65535),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
    st.integers(0, 255),
    st.booleans(),
)
def test_texts(address, port, protocol, cluster, internal):
    """The compiled text of a backend, beside one put together here."""
    host = str(address)
    if address.version == 6 and address.ipv4_mapped:
        host = f"::ffff:{address.ipv4_mapped}"  # as Go has it, whatever this Python does
    host += f"@{cluster}" if cluster else ""
    host = f"[{host}]" if address.version == 6 else host
    scope = "/i" if internal else ""
    backend = Backend(address, port, protocol, cluster_id=cluster, internal=internal)
    assert backend.hash_string == f"[{host}:{port}/{protocol}{scope},State:active]"


def naive_table(maglev: Maglev, backends: list[Backend]) -> list[Backend]:
    """Turns and permutations as the paper and spec tell them, one step at a time."""
    ordered = sorted(backends, key=lambda backend: backend.hash_string)
    permutations = []
    for backend in ordered:
        offset, skip = maglev.placement(backend)
        permutations.append([(offset + step * skip) % maglev.size for step in range(maglev.size)])
    total, count = sum(backend.weight for backend in ordered), len(ordered)
    ahead = [backend.weight / count for backend in ordered]
    slots: dict[int, Backend] = {}
    for turn in range(maglev.size):
        index = turn % count
        if total // count > 1:
            while (turn + 1) * ordered[index].weight < int(ahead[index]):
                index = (index + 1) % count
            ahead[index] += total
        slot = next(slot for slot in permutations[index] if slot not in slots)
        slots[slot] = ordered[index]
    return [slots[slot] for slot in range(maglev.size)]


@given(BACKENDS, SEEDS)
def test_equals_the_naive_table(backends, seed):
    """Every slot, whatever the weights."""
    maglev = Maglev(251, seed)
    table = maglev.build(backends)
    assert [table.backends[position] for position in table.slots] == naive_table(maglev, backends)


@given(BACKENDS, st.randoms())
def test_order_of_backends_does_not_matter(backends, random):
    """The same set in another order gives the same table."""
    shuffled = random.sample(backends, len(backends))
    assert (Maglev(251).build(backends).slots == Maglev(251).build(shuffled).slots).all()
