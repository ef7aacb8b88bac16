"""Drift: whatever somebody else changes in the kernel is told, in words that name it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyciliumlib.datapath import Datapath
from pyciliumlib.kernel.link import Link
from pyciliumlib.kernel.tc import attached_tc
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import Scene, apps


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        made.dp.policy.apply(
            scenes.policy(
                "api",
                {"app": "api"},
                ingress=[apps("from", "web"), {"fromCIDR": ["198.51.100.0/24"]}],
            )
        )
        yield made


Broken = Iterator[None]


def entry_gone(dp: Datapath, name: str, key: Any) -> Broken:
    table = dp._programs.maps[name]
    value = table[key]
    del table[key]
    yield
    table[key] = value


def entry_altered(dp: Datapath, name: str, key: Any, **fields: Any) -> Broken:
    table = dp._programs.maps[name]
    value = table[key]
    table[key] = {**value._asdict(), **fields}
    yield
    table[key] = value


def entry_added(dp: Datapath, name: str, key: Any, like: Any) -> Broken:
    table = dp._programs.maps[name]
    table[key] = table[like]
    yield
    del table[key]


def rule_gone(dp: Datapath) -> Broken:
    with open_trie(dp) as trie:
        keys, values = trie.lookup_batch()
        trie.delete_batch(keys[:1])
        yield
        trie.update_batch(keys, values)


def rule_altered(dp: Datapath) -> Broken:
    with open_trie(dp) as trie:
        keys, values = trie.lookup_batch()
        changed = values.copy()
        changed["own"] = changed["own"][:, ::-1]
        trie.update_batch(keys, changed)
        yield
        trie.update_batch(keys, values)


def rule_added(dp: Datapath, identity: int = 4242) -> Broken:
    with open_trie(dp) as trie:
        keys, values = trie.lookup_batch()
        more, row = np.array([4242], np.uint32), values[keys != 0][:1]
        row["identity"] = identity
        trie.update_batch(more, row)
        yield
        trie.delete_batch(more)


def trie_gone(dp: Datapath, half: int) -> Broken:
    slots, endpoint = dp._programs.maps["policies"], dp.endpoints["api"]
    slot = half * dp.config.max_endpoints + endpoint.id
    with slots.open_inner(slot) as trie:
        slots.delete(slot)
        yield
        slots[slot] = trie


def trie_swapped(dp: Datapath) -> Broken:
    slots = dp._programs.maps["policies"]
    half = dp._programs.maps["policy_generation"][0] & 1
    slot = half * dp.config.max_endpoints + dp.endpoints["api"].id
    with slots.open_inner(slot) as right, slots.open_inner(slot - 1) as wrong:
        slots[slot] = wrong
        yield
        slots[slot] = right


@contextlib.contextmanager
def open_trie(dp: Datapath) -> Iterator[Any]:
    half = dp._programs.maps["policy_generation"][0] & 1
    slot = half * dp.config.max_endpoints + dp.endpoints["api"].id
    with dp._programs.maps["policies"].open_inner(slot) as trie:
        yield trie


CASES: dict[str, tuple[Callable[[Scene], Broken], tuple[str, ...]]] = {
    "endpoint gone": (
        lambda s: entry_gone(s.dp, "endpoints", s.api.ip4),
        ("map endpoints", "missing"),
    ),
    "endpoint altered": (
        lambda s: entry_altered(s.dp, "endpoints", s.api.ip6, identity=4242),
        ("map endpoints", "identity 4242"),
    ),
    "endpoint added": (
        lambda s: entry_added(s.dp, "endpoints", "10.9.9.9", s.api.ip4),
        ("10.9.9.9", "should not be there"),
    ),
    "device gone": (
        lambda s: entry_gone(s.dp, "devices", s.api.ifindex),
        ("map devices", "missing"),
    ),
    "device altered": (
        lambda s: entry_altered(s.dp, "devices", s.api.ifindex, node_mac=bytes(6)),
        ("map devices", "node_mac"),
    ),
    "device added": (
        lambda s: entry_added(s.dp, "devices", 4242, s.api.ifindex),
        ("map devices", "4242"),
    ),
    "prefix gone": (
        lambda s: entry_gone(s.dp, "ipcache", "198.51.100.0/24"),
        ("ipcache: +", "198.51.100.0/24"),
    ),
    "prefix altered": (
        lambda s: entry_altered(s.dp, "ipcache", f"{s.api.ip4}/32", identity=4242),
        ("ipcache: ~",),
    ),
    "prefix added": (
        lambda s: entry_added(s.dp, "ipcache", "10.9.0.0/16", "198.51.100.0/24"),
        ("ipcache: -", "10.9.0.0/16"),
    ),
    "rule gone": (lambda s: rule_gone(s.dp), ("endpoint api", "policy map")),
    "rule altered": (lambda s: rule_altered(s.dp), ("endpoint api", "policy map")),
    "rule added": (lambda s: rule_added(s.dp), ("endpoint api", "policy map")),
    "another's rule": (lambda s: rule_added(s.dp, 1), ("endpoint api", "policy map")),
    "policy map gone": (lambda s: trie_gone(s.dp, 0), ("endpoint api", "do not find")),
    "other half gone": (lambda s: trie_gone(s.dp, 1), ("endpoint api", "do not find")),
    "another's policy map": (lambda s: trie_swapped(s.dp), ("endpoint api", "do not find")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_change_by_hand_is_told(scene: Scene, case: str) -> None:
    """One difference, one line, which names the place; none once it is put right."""
    assert not scene.dp.drift(), str(scene.dp.drift())
    breaking, words = CASES[case]
    for _ in breaking(scene):
        found = scene.dp.drift()
        assert found and len(found.differences) == 1, str(found)
        assert all(word in str(found) for word in words), str(found)
    assert not scene.dp.drift()
    assert str(scene.dp.drift()) == "the kernel holds what it should"


@pytest.mark.parametrize("name", ["policy_nodes", "policy_entries"])
def test_shared_rows_changed_by_hand(scene: Scene, name: str) -> None:
    """Each endpoint whose tries lead there is told of."""
    scene.dp.policy.apply(scenes.policy("port", {"app": "api"}, ingress=[scenes.ports("80/TCP")]))
    rows = scene.dp._programs.maps[name]
    keys, values = rows.lookup_batch()
    rows.update_batch(keys, np.zeros_like(values))
    found = str(scene.dp.drift())
    assert "endpoint api: its policy map needs" in found
    rows.update_batch(keys, values)
    assert not scene.dp.drift()


def test_programs_taken_off(scene: Scene) -> None:
    """An endpoint whose programs somebody took off its device is one without policy: told."""

    def take_off() -> None:
        (there,) = attached_tc(scene.db.ifindex, "egress")
        Link.from_id(there.link_id).detach()

    scene.node.call(take_off)
    assert f"endpoint db: its programs are not on device {scene.db.host_ifname}" in str(
        scene.dp.drift()
    )
    scene.dp.remove_endpoint("db")
    scene.dp.add_endpoint("db", {"app": "db"}, pod=scene.db)
    assert not scene.dp.drift()
