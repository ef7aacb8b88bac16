"""The identity allocator: numbers, references, restarts, several nodes, observers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyciliumlib.errors import (
    ClosedError,
    ExhaustedError,
    InvalidError,
    LabelError,
    NotFoundError,
    StateError,
)
from pyciliumlib.identity import (
    AllocatorSettings,
    ClusterRange,
    Identity,
    IdentityAllocator,
    IdentityCollector,
    Labels,
    Scope,
    cidr_labels,
)
from pyciliumlib.identity.shared import BASE_PATH, SharedNumbers
from pyciliumlib.store import MemoryStore, SQLiteStore, Store, locked

WEB = Labels.parse(["k8s:app=web"])
API = Labels.parse(["k8s:app=api"])
PREFIX = cidr_labels("10.0.0.0/8")


def node(store: Store, name: str, **settings: int) -> IdentityAllocator:
    return IdentityAllocator(store, AllocatorSettings(node=name, **settings))  # type: ignore[arg-type]


def keys(store: Store) -> list[str]:
    return [entry.key.removeprefix(BASE_PATH) for entry in store.entries(BASE_PATH)]


def test_the_same_labels_get_the_same_number() -> None:
    """In whatever form they come; other labels get another."""
    with IdentityAllocator() as allocator:
        web = allocator.allocate(WEB)
        assert web == allocator.allocate({"app": "web", "k8s:app": "web"})
        assert web != allocator.allocate(API)
        assert web.id in ClusterRange().numbers
        assert web == allocator.get(web.id) == allocator.find(WEB)


def test_numbers_are_stable() -> None:
    """An empty store gives the same labels the same number each time."""
    with IdentityAllocator() as one, IdentityAllocator() as other:
        other.allocate(API)
        assert one.allocate(WEB).id == other.allocate(WEB).id


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        (["reserved:host"], 1),
        (["reserved:world-ipv6"], 10),
        (["reserved:remote-node", "reserved:kube-apiserver"], 7),
        (["k8s:x=y", "k8s:io.cilium.fixed-identity=db"], 130),
    ],
)
def test_numbers_that_are_not_allocated(labels: list[str], number: int) -> None:
    """Reserved and fixed identities are there already, and cannot be used up."""
    with IdentityAllocator(settings=AllocatorSettings(fixed={130: "db"})) as allocator:
        identity = allocator.allocate(labels)
        assert number == identity.id
        assert allocator.get(number) == identity
        assert not allocator.release(identity)
        assert allocator.allocate(labels) == identity


def test_well_known_identities_are_opt_in() -> None:
    """The kube-dns labels are 102 where the table is on, an allocated number where it is off."""
    labels = Labels.parse(
        {
            "k8s-app": "kube-dns",
            "io.cilium.k8s.policy.cluster": "default",
            "io.cilium.k8s.policy.serviceaccount": "kube-dns",
            "io.kubernetes.pod.namespace": "kube-system",
        },
        source="k8s",
    )
    with IdentityAllocator(settings=AllocatorSettings(well_known=True)) as allocator:
        assert allocator.allocate(labels).id == 102
    with IdentityAllocator() as allocator:
        assert allocator.allocate(labels).id >= 256


@pytest.mark.parametrize(
    "labels",
    [
        [],
        ["reserved:unknown"],
        ["reserved:wrold"],
        ["reserved:aggregate-world"],
        ["k8s:a=1;k8s:b=2"],
    ],
)
def test_labels_without_an_identity(labels: list[str]) -> None:
    """No labels, reserved ones that nobody has, and a value that would be read as a label."""
    with IdentityAllocator() as allocator:
        before = allocator.identities()
        with pytest.raises(LabelError):
            allocator.allocate(labels)
        assert before == allocator.identities()


def test_a_value_may_hold_a_semicolon() -> None:
    """As long as the stored text reads as the same labels."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        labels = Labels.parse(["any:zone=eu;1", "k8s:app=web"])
        identity = one.allocate(labels)
        assert other.poll() == 1
        assert identity == other.get(identity.id)


@pytest.mark.parametrize(
    "arguments",
    [
        {"node": ""},
        {"node": "a/b"},
        {"cluster_id": 256},
        {"max_clusters": 100},
        {"fixed": {127: "db"}},
        {"fixed": {256: "db"}},
        {"fixed": {130: "host"}},
        {"fixed": {130: "db", 131: "db"}},
    ],
)
def test_settings_that_are_refused(arguments: dict[str, object]) -> None:
    """Each would make a node that writes keys or numbers that are not its own."""
    with pytest.raises(InvalidError):
        AllocatorSettings(**arguments)  # type: ignore[arg-type]


def test_references_are_counted() -> None:
    """The slave key goes with the last reference, the master stays; once too often is told."""
    with MemoryStore() as store, node(store, "a") as allocator:
        web = allocator.allocate(WEB)
        allocator.allocate(WEB)
        assert not allocator.release(web)
        assert keys(store) == [f"/id/{web.id}", "/value/k8s:app=web;/a"]
        assert allocator.release(web)
        assert keys(store) == [f"/id/{web.id}"]
        with pytest.raises(NotFoundError, match="twice"):
            allocator.release(web)
        assert web == allocator.allocate(WEB)


def test_local_numbers() -> None:
    """Prefixes count up in this node's scope; a freed number is not soon another's."""
    with MemoryStore() as store, node(store, "a") as allocator:
        first = allocator.allocate(PREFIX)
        assert first.id == Scope.LOCAL + 1
        assert allocator.release(first)
        assert allocator.get(first.id) is None
        assert allocator.allocate(cidr_labels("11.0.0.0/8")).id == Scope.LOCAL + 2
        assert keys(store) == []


def test_a_restart_keeps_local_numbers() -> None:
    """Withheld numbers go only to those who had them before."""
    with IdentityAllocator() as allocator:
        allocator.withhold([Scope.LOCAL + 1, Scope.LOCAL + 2, 5000])
        assert allocator.allocate(cidr_labels("11.0.0.0/8")).id == Scope.LOCAL + 3
        assert allocator.allocate(PREFIX, previous=Scope.LOCAL + 2).id == Scope.LOCAL + 2
        taken = allocator.allocate(cidr_labels("12.0.0.0/8"), previous=Scope.LOCAL + 2)
        assert taken.id == Scope.LOCAL + 4
        allocator.give_back([Scope.LOCAL + 1])
        assert allocator.allocate(cidr_labels("13.0.0.0/8"), previous=Scope.LOCAL + 1).id == (
            Scope.LOCAL + 1
        )


def test_a_restart_keeps_global_numbers(tmp_path: Path) -> None:
    """They are in the store."""
    with SQLiteStore(tmp_path / "store.db") as store, node(store, "a") as allocator:
        web = allocator.allocate(WEB)
    with SQLiteStore(tmp_path / "store.db") as store, node(store, "a") as allocator:
        assert allocator.get(web.id) == web
        assert web == allocator.allocate(WEB)
        assert keys(store) == [f"/id/{web.id}", "/value/k8s:app=web;/a"]


def test_a_node_takes_over_what_its_crash_left() -> None:
    """A slave key of the run before, still alive in its session, does not stand in the way."""
    with MemoryStore() as store:
        crashed = node(store, "a")
        web = crashed.allocate(WEB)
        with node(store, "a") as allocator:
            assert web == allocator.allocate(WEB)
            crashed.close()
            assert keys(store) == [f"/id/{web.id}", "/value/k8s:app=web;/a"]


def test_nodes_agree() -> None:
    """Each node of a store gets the number that the first one made."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        web = one.allocate(WEB)
        assert web == other.allocate(WEB)
        api = other.allocate(API)
        assert one.get(api.id) is None
        assert one.poll() == 1
        assert one.get(api.id) == api
        assert one.poll() == 0


def test_labels_that_begin_alike_are_not_confused() -> None:
    """A value with a slash in it must not make a longer set look like a shorter one's user."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        longer = Labels.parse(["k8s:app=web;/evil"])
        one.allocate(longer)
        assert other.allocate(WEB).id != one.allocate(longer).id


def test_nodes_and_threads_race() -> None:
    """However many allocate the same sets at once, each set has one number and each one set."""
    with MemoryStore() as store:
        nodes = [node(store, f"n{i}") for i in range(4)]
        found: list[dict[str, int]] = [{} for _ in nodes]
        failures: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for value in range(25):
                    identity = nodes[index].allocate([f"k8s:app={value}"])
                    found[index][str(value)] = identity.id
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert found[0] == found[1] == found[2] == found[3]
        assert len(set(found[0].values())) == 25
        for allocator in nodes:
            allocator.close()


def test_a_number_is_chosen_under_a_lock() -> None:
    """Who waits for the lock takes the number that its holder made, not another."""
    with MemoryStore() as store, node(store, "a") as allocator:
        found: list[Identity] = []
        thread = threading.Thread(target=lambda: found.append(allocator.allocate(WEB)))
        with locked(store, f"{BASE_PATH}/locks/{WEB.sorted_text}"):
            thread.start()
            thread.join(timeout=0.2)
            assert found == []
            store.put(f"{BASE_PATH}/id/777", WEB.sorted_text)
            store.put(f"{BASE_PATH}/value/{WEB.sorted_text}/b", "777")
        thread.join(timeout=10)
        assert [(identity.id, identity.labels) for identity in found] == [(777, WEB)]


def test_clusters_number_apart() -> None:
    """Each cluster's numbers carry its id."""
    with IdentityAllocator(settings=AllocatorSettings(cluster_id=3)) as allocator:
        assert allocator.allocate(WEB).id >> 16 == 3
    settings = AllocatorSettings(cluster_id=300, max_clusters=511)
    with IdentityAllocator(settings=settings) as allocator:
        assert allocator.allocate(WEB).id >> 15 == 300


def test_a_full_range_is_told() -> None:
    """And what was allocated stays as it was."""
    with MemoryStore() as store:
        shared = SharedNumbers(store, "a", range(256, 258))
        shared.allocate(WEB)
        shared.allocate(API)
        with pytest.raises(ExhaustedError):
            shared.allocate(Labels.parse(["k8s:app=third"]))
        assert [key for key in keys(store) if "third" in key] == []
        assert shared.allocate(WEB)[0].id in (256, 257)


def test_refresh_mends_the_store() -> None:
    """What somebody deleted comes back: masters, slaves, and a lost session's keys."""
    with MemoryStore() as store, node(store, "a") as allocator:
        web = allocator.allocate(WEB)
        before = keys(store)
        for entry in store.entries(BASE_PATH):
            store.delete(entry.key)
        allocator.refresh()
        assert before == keys(store)
        store.end_session("memory-1")
        assert keys(store) == [f"/id/{web.id}"]
        allocator.refresh()
        assert before == keys(store)


@pytest.mark.parametrize("value", [None, API.sorted_text, "garbage"])
def test_a_master_in_use_is_put_back(value: str | None) -> None:
    """What somebody else deletes or overwrites does not take an identity from its user."""
    with MemoryStore() as store, node(store, "a") as allocator, node(store, "b") as other:
        web = allocator.allocate(WEB)
        allocator.poll()
        master = f"{BASE_PATH}/id/{web.id}"
        store.delete(master) if value is None else store.put(master, value)
        other.poll()
        assert other.find(WEB) is None
        assert allocator.poll() == 0
        assert allocator.get(web.id) == web
        entry = store.get(master)
        assert entry is not None
        assert entry.value == WEB.sorted_text
        other.poll()
        assert other.find(WEB) == web and other.find(API) is None
        assert allocator.poll() == 0


def test_nonsense_in_the_store_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Keys that are no identity's are told of and not believed."""
    with MemoryStore() as store:
        store.put(f"{BASE_PATH}/id/abc", "k8s:app=web;")
        store.put(f"{BASE_PATH}/id/1", "k8s:app=web;")
        store.put(f"{BASE_PATH}/id/16777217", "k8s:app=web;")
        store.put(f"{BASE_PATH}/id/300", "garbage")
        with node(store, "a") as allocator:
            assert allocator.get(1) is not None
            assert allocator.find(WEB) is None
            assert allocator.get(300) is None
    assert len(caplog.records) == 4


class Watcher:
    """Keeps what an observer was told, as a set of identities."""

    def __init__(self) -> None:
        self.known: set[Identity] = set()

    def __call__(self, added: Sequence[Identity], removed: Sequence[Identity]) -> None:
        assert not self.known & set(added), "told twice"
        assert self.known >= set(removed), "gone before it came"
        self.known = (self.known | set(added)) - set(removed)


class Refuser:
    """Has no room for some labels, so many times."""

    def __init__(self, labels: Labels, times: int) -> None:
        self._labels = labels
        self._times = times

    def __call__(self, added: Sequence[Identity], removed: Sequence[Identity]) -> None:
        if self._times and any(identity.labels == self._labels for identity in added):
            self._times -= 1
            raise StateError("no room")


def test_observers_hear_everything_once() -> None:
    """First all that is known, then each change, from here and from other nodes."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        one.allocate(WEB)
        seen = Watcher()
        cancel = one.observe(seen)
        assert seen.known == set(one.identities())
        prefix = one.allocate(PREFIX)
        one.allocate(WEB)
        other.allocate(API)
        one.poll()
        assert seen.known == set(one.identities())
        one.release(prefix)
        assert prefix not in seen.known
        assert seen.known == set(one.identities())
        cancel()
        one.allocate(PREFIX)
        assert prefix not in seen.known


@pytest.mark.parametrize("labels", [WEB, PREFIX], ids=["global", "local"])
def test_an_observer_that_refuses_undoes_the_allocation(labels: Labels) -> None:
    """Else the next to ask would get a number that the observers were never told of."""
    with MemoryStore() as store, node(store, "a") as allocator:
        first, last = Watcher(), Watcher()
        allocator.observe(first)
        allocator.observe(Refuser(labels, times=1))
        with pytest.raises(StateError, match="no room"):
            allocator.allocate(labels)
        assert allocator.find(labels) is None
        assert first.known == set(allocator.identities())
        assert store.entries(f"{BASE_PATH}/value/") == []
        allocator.observe(last)
        identity = allocator.allocate(labels)
        assert identity in first.known & last.known
        assert allocator.release(identity)


def test_what_other_nodes_did_is_told_again_after_a_refusal() -> None:
    """Until then nobody knows of it, also not those who did not refuse."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        first, last = Watcher(), Watcher()
        for observer in (first, Refuser(WEB, times=2), last):
            one.observe(observer)
        gone, web = other.allocate(["k8s:app=gone"]), other.allocate(WEB)
        with pytest.raises(StateError, match="no room"):
            one.poll()
        assert one.get(web.id) is None and one.find(WEB) is None
        assert first.known == last.known == set(one.identities())
        api = other.allocate(API)
        store.delete(f"{BASE_PATH}/id/{gone.id}")
        with pytest.raises(StateError, match="no room"):
            one.poll(timeout=60.0)  # with something to tell it does not wait
        assert first.known == last.known == set(one.identities())
        assert one.poll() == 2
        assert {web, api} <= first.known == last.known == set(one.identities())
        assert one.poll() == 0


def test_what_was_refused_can_be_allocated_here() -> None:
    """It is introduced then, and not told a second time."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b") as other:
        seen = Watcher()
        one.observe(Refuser(WEB, times=1))
        one.observe(seen)
        web = other.allocate(WEB)
        with pytest.raises(StateError):
            one.poll()
        assert one.allocate(WEB) == web
        assert one.poll() == 0
        assert web in seen.known == set(one.identities())


def test_garbage_goes_in_the_second_round() -> None:
    """Only if nobody used it in between, and only in the own cluster's range."""
    with MemoryStore() as store, node(store, "a") as one, node(store, "b", cluster_id=1) as far:
        web, api = one.allocate(WEB), one.allocate(API)
        far.release(far.allocate(["k8s:app=far"]))
        for identity in (web, api):
            one.release(identity)
        collector = IdentityCollector(store, ClusterRange().numbers)
        assert collector.collect() == []
        one.release(one.allocate(API))  # used in between: but unchanged in the store
        one.allocate(WEB)
        assert collector.collect() == [api.id]
        seen = Watcher()
        one.observe(seen)
        one.poll()
        assert one.find(API) is None
        assert api not in seen.known
        assert web in seen.known
        assert collector.collect() == []
        assert any(entry.value == "k8s:app=far;" for entry in store.entries(BASE_PATH))


def test_a_closed_allocator_refuses() -> None:
    """And its use of identities is gone from the store."""
    with MemoryStore() as store:
        allocator = node(store, "a")
        web = allocator.allocate(WEB)
        allocator.close()
        allocator.close()
        assert keys(store) == [f"/id/{web.id}"]
        for call in (lambda: allocator.allocate(WEB), allocator.identities, allocator.refresh):
            with pytest.raises((ClosedError, StateError)):
                call()
