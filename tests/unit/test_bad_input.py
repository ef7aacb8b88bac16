"""Bad input for every public function: a typed error that says what is wrong, or a reason why not.

The tables below name each function of the flat surface that takes an argument. What is refused
without a kernel is tried here, the rest by the tests that are named.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyciliumlib as pcl
from pyciliumlib import errors

TESTS = Path(__file__).parents[1]
SPEC = pcl.ObjectSpec.open(pcl.object_path("endpoint"))

Case = tuple[type[errors.PyCiliumError], Callable[[], Any]]


def stored(call: Callable[[pcl.MemoryStore], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with pcl.MemoryStore() as store:
            return call(store)

    return run


def allocated(call: Callable[[pcl.IdentityAllocator], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with pcl.IdentityAllocator() as allocator:
            return call(allocator)

    return run


def asked(call: Callable[[pcl.Repository], Any]) -> Callable[[], Any]:
    return lambda: call(pcl.Repository())


def cached(call: Callable[[pcl.IPCache], Any]) -> Callable[[], Any]:
    return lambda: call(pcl.IPCache())


def translated(call: Callable[[pcl.Nat, pcl.Ends], Any]) -> Callable[[], Any]:
    flow = pcl.Ends("198.51.100.7", 1, "203.0.113.10", 80)
    return lambda: call(pcl.Nat("192.0.2.1", pcl.PortProto(50000, 50003)), flow)


REFUSED: dict[str, list[Case]] = {
    "AllocatorSettings": [
        (errors.InvalidError, lambda: pcl.AllocatorSettings(node="a/b")),
        (errors.InvalidError, lambda: pcl.AllocatorSettings(cluster_id=256)),
        (errors.InvalidError, lambda: pcl.AllocatorSettings(fixed={127: "db"})),
    ],
    "Clock.calibrate": [(errors.InvalidError, lambda: pcl.Clock.calibrate((1, 1), (2, 2)))],
    "DatapathConfig": [(errors.InvalidError, lambda: pcl.DatapathConfig(flows=1))],
    "Endpoint.from_json": [
        (errors.StateError, lambda: pcl.Endpoint.from_json("no json")),
        (errors.StateError, lambda: pcl.Endpoint.from_json('{"id": 1}')),
    ],
    "Ends": [
        (errors.UnitError, lambda: pcl.Ends("nowhere", 1, "10.0.0.1", 2)),
        (errors.InvalidError, lambda: pcl.Ends("10.0.0.2", 65536, "10.0.0.1", 2)),
        (errors.InvalidError, lambda: pcl.Ends("10.0.0.2", 1, "10.0.0.1", -1)),
        (errors.InvalidError, lambda: pcl.Ends("10.0.0.2", 1, "fd00::1", 2)),
        (errors.UnitError, lambda: pcl.Ends("10.0.0.2", 1, "10.0.0.1", 2, "XTP")),
    ],
    "FlowKey.of": [
        (errors.UnitError, lambda: pcl.FlowKey.of("nowhere", "10.0.0.1", 1, 2, 6)),
        (errors.InvalidError, lambda: pcl.FlowKey.of("10.0.0.2", "10.0.0.1", 65536, 2, 6)),
        (errors.InvalidError, lambda: pcl.FlowKey.of("10.0.0.2", "10.0.0.1", 1, -2, 6)),
        (errors.InvalidError, lambda: pcl.FlowKey.of("10.0.0.2", "10.0.0.1", 1, 2, 256)),
    ],
    "IPCache.assign": [
        (errors.UnitError, cached(lambda c: c.assign("10.0.0.0/99", 5))),
        (errors.InvalidError, cached(lambda c: c.assign("10.0.0.0/8"))),
        (errors.InvalidError, cached(lambda c: c.assign("10.0.0.0/8", -1))),
        (errors.InvalidError, cached(lambda c: c.assign("10.0.0.0/8", 1 << 40))),
    ],
    "IPCache.get": [(errors.UnitError, cached(lambda c: c.get("nowhere")))],
    "IPCache.lookup": [(errors.UnitError, cached(lambda c: c.lookup("nowhere")))],
    "IPCache.remove": [(errors.UnitError, cached(lambda c: c.remove("nowhere", "r")))],
    "IPCache.said_about": [(errors.UnitError, cached(lambda c: c.said_about("nowhere")))],
    "IPCache.update": [(errors.UnitError, cached(lambda c: c.update([("nowhere", "r", None)])))],
    "IPCache.upsert": [
        (errors.UnitError, cached(lambda c: c.upsert("nowhere", "r", None))),  # type: ignore[arg-type]
    ],
    "IdentityAllocator.allocate": [
        (errors.LabelError, allocated(lambda a: a.allocate([]))),
        (errors.LabelError, allocated(lambda a: a.allocate(["reserved:nobody"]))),
        (errors.LabelError, allocated(lambda a: a.allocate(["=x"]))),
    ],
    "IdentityAllocator.find": [(errors.LabelError, allocated(lambda a: a.find([])))],
    "IdentityAllocator.release": [
        (
            errors.NotFoundError,
            allocated(lambda a: a.release(pcl.Identity(300, pcl.Labels.parse(["k8s:a=b"])))),
        ),
    ],
    "Label": [(errors.LabelError, lambda: pcl.Label("", ""))],
    "Label.from_json": [(errors.LabelError, lambda: pcl.Label.from_json({}))],
    "Label.parse": [
        (errors.LabelError, lambda: pcl.Label.parse("")),
        (errors.LabelError, lambda: pcl.Label.parse("=x")),
    ],
    "Label.parse_selector": [(errors.LabelError, lambda: pcl.Label.parse_selector(""))],
    "LabelFilter.load": [
        (errors.PyCiliumError, lambda: pcl.LabelFilter.load("/nonexistent/filter.json")),
    ],
    "LabelFilter.parse": [(errors.LabelError, lambda: pcl.LabelFilter.parse("k8s:["))],
    "Labels.from_json": [(errors.LabelError, lambda: pcl.Labels.from_json([{}]))],
    "Labels.from_sorted_text": [
        (errors.LabelError, lambda: pcl.Labels.from_sorted_text("no semicolon")),
    ],
    "Labels.parse": [
        (errors.LabelError, lambda: pcl.Labels.parse(5)),  # type: ignore[arg-type]
        (errors.LabelError, lambda: pcl.Labels.parse(["="])),
    ],
    "Map.create": [
        (errors.InvalidError, lambda: pcl.Map.create(9999, "u4", "u4", 1)),  # type: ignore[arg-type]
        (errors.InvalidError, lambda: pcl.Map.create(pcl.MapType.HASH, "u4", "no dtype", 1)),
        (errors.InvalidError, lambda: pcl.Map.create(pcl.MapType.HASH, "u4", "O", 1)),
    ],
    "Map.from_id": [(errors.InvalidError, lambda: pcl.Map.from_id(-1))],
    "Nat": [
        (errors.UnitError, lambda: pcl.Nat("nowhere", pcl.PortProto(1, 2))),
        (errors.InvalidError, lambda: pcl.Nat("192.0.2.1", pcl.PortProto())),
    ],
    "Nat.allowed": [
        (errors.InvalidError, translated(lambda nat, flow: nat.allowed(flow, "fd00::1", 80))),
        (errors.InvalidError, translated(lambda nat, flow: nat.allowed(flow, "10.0.0.1", -1))),
    ],
    "Nat.bind": [
        (errors.InvalidError, translated(lambda nat, flow: nat.bind(flow, "10.0.0.1", 80, 1))),
        (errors.UnitError, translated(lambda nat, flow: nat.bind(flow, "nowhere", 80, 50000))),
    ],
    "Nat.release": [(errors.NotFoundError, translated(lambda nat, flow: nat.release(flow)))],
    "Program.from_id": [(errors.InvalidError, lambda: pcl.Program.from_id(1 << 32))],
    "Link.from_id": [(errors.InvalidError, lambda: pcl.Link.from_id(-1))],
    "MemoryStore.create": [(errors.InvalidError, stored(lambda s: s.create("", "x")))],
    "MemoryStore.put": [
        (errors.InvalidError, stored(lambda s: s.put("a\0b", "x"))),
        (errors.InvalidError, stored(lambda s: s.put("a", 5))),  # type: ignore[arg-type]
    ],
    "MemoryStore.write": [
        (errors.InvalidError, stored(lambda s: s.write({"a": "x", "": None}))),
        (errors.InvalidError, stored(lambda s: s.write({"a": 5}))),  # type: ignore[dict-item]
    ],
    "MemoryStore.session": [(errors.InvalidError, stored(lambda s: s.session(0)))],
    "ObjectSpec.doc": [
        (errors.NotFoundError, lambda: SPEC.doc("flw")),
        (errors.NotFoundError, lambda: SPEC.doc("flow", "expiry")),
    ],
    "ObjectSpec.load": [
        (errors.NotFoundError, lambda: SPEC.load(reuse={"flws": None})),  # type: ignore[dict-item]
    ],
    "ObjectSpec.open": [
        (errors.ObjectError, lambda: pcl.ObjectSpec.open("/nonexistent/x.bpf.o")),
        (errors.ObjectError, lambda: pcl.ObjectSpec.open(b"no object")),
    ],
    "ObjectSpec.resize": [
        (errors.NotFoundError, lambda: SPEC.resize("flws", 5)),
        (errors.InvalidError, lambda: SPEC.resize("flows", 0)),
        (errors.InvalidError, lambda: SPEC.resize("flows", 1 << 32)),
    ],
    "ObjectSpec.set_autocreate": [
        (errors.NotFoundError, lambda: SPEC.set_autocreate("flws", True)),
    ],
    "ObjectSpec.set_autoload": [(errors.NotFoundError, lambda: SPEC.set_autoload("main", True))],
    "ObjectSpec.type": [(errors.NotFoundError, lambda: SPEC.type("flw"))],
    "Party": [
        (errors.LabelError, lambda: pcl.Party(["="])),
        (errors.UnitError, lambda: pcl.Party(["a=b"], {"web": (80, "TPC")})),
        (errors.UnitError, lambda: pcl.Party(["a=b"], {"web": (0, pcl.Protocol.TCP)})),
        (errors.UnitError, lambda: pcl.Party(["a=b"], {"web": 80})),
    ],
    "PolicySettings": [
        (errors.InvalidError, lambda: pcl.PolicySettings(enforcement="sometimes")),
        (errors.InvalidError, lambda: pcl.PolicySettings(cluster_name="")),
    ],
    "PolicySettings.of_version": [
        (errors.InvalidError, lambda: pcl.PolicySettings.of_version("9.9")),
    ],
    "PortProto": [(errors.UnitError, lambda: pcl.PortProto(90, 80, pcl.Protocol.TCP))],
    "PortProto.parse": [
        (errors.UnitError, lambda: pcl.PortProto.parse("http")),
        (errors.UnitError, lambda: pcl.PortProto.parse("65536/TCP")),
        (errors.UnitError, lambda: pcl.PortProto.parse("90-80/TCP")),
    ],
    "Protocol.parse": [
        (errors.UnitError, lambda: pcl.Protocol.parse("IPX")),
        (errors.UnitError, lambda: pcl.Protocol.parse(999)),
    ],
    "Repository.add_endpoint": [
        (errors.LabelError, asked(lambda r: r.add_endpoint(1, ["="]))),
    ],
    "Repository.apply": [
        (errors.PolicyError, asked(lambda r: r.apply("kind: ["))),
        (errors.PolicyError, asked(lambda r: r.apply({"kind": "Pod"}))),
    ],
    "Repository.decide": [
        (
            errors.InvalidError,
            asked(lambda r: r.decide(["k8s:a=b"], ["k8s:c=d"], pcl.Direction.INGRESS, "http")),
        ),
    ],
    "Repository.delete": [
        (
            errors.NotFoundError,
            asked(lambda r: r.delete(pcl.policy.PolicyKey("CiliumNetworkPolicy", "a", "b"))),
        ),
    ],
    "Repository.diff": [(errors.PolicyError, asked(lambda r: r.diff("kind: [")))],
    "Repository.explain": [
        (errors.PolicyError, asked(lambda r: r.explain(["k8s:a=b"], ["k8s:c=d"], "80"))),
        (errors.LabelError, asked(lambda r: r.explain(["="], ["k8s:c=d"], "80/TCP"))),
    ],
    "Repository.governing": [(errors.LabelError, asked(lambda r: r.governing(["="])))],
    "Repository.identity": [(errors.NotFoundError, asked(lambda r: r.identity(4242)))],
    "Repository.policy": [(errors.NotFoundError, asked(lambda r: r.policy(9)))],
    "Repository.reachability": [
        (errors.InvalidError, asked(lambda r: r.reachability({}, ["http"]))),
    ],
    "Repository.remove_endpoint": [(errors.NotFoundError, asked(lambda r: r.remove_endpoint(9)))],
    "Repository.update_identities": [
        (errors.InvalidError, asked(lambda r: r.update_identities({0: ["k8s:a=b"]}))),
        (errors.LabelError, asked(lambda r: r.update_identities({300: ["="]}))),
    ],
    "Selector.parse": [
        (errors.InvalidError, lambda: pcl.Selector.parse({"matchLabels": 5})),
        (errors.InvalidError, lambda: pcl.Selector.parse({"matchExpressions": [{}]})),
    ],
    "cidr_labels": [(errors.UnitError, lambda: pcl.cidr_labels("nowhere"))],
    "object_path": [
        (errors.NotFoundError, lambda: pcl.object_path("endpiont")),
        (errors.NotFoundError, lambda: pcl.object_path("../endpoint")),
    ],
}

#: What only a kernel or a lab can refuse, and the test that does it.
ELSEWHERE = {
    **dict.fromkeys(
        ("Datapath", "Datapath.open"), "lab/test_datapath_restart.py::test_not_on_a_bpf_file_system"
    ),
    **dict.fromkeys(
        (
            "Datapath.add_endpoint", "Datapath.remove_endpoint", "Datapath.simulate",
            "Datapath.assign", "Datapath.unassign",
        ),
        "lab/test_datapath_endpoints.py::test_bad_input_is_refused_and_changes_nothing",
    ),
    "IPCacheTable": "unit/test_ipcache.py::test_a_table_needs_three_cells",
    "IPCacheTable.apply": "unit/test_ipcache.py::test_a_full_map_changes_nothing",
    **dict.fromkeys(
        ("Lab.host", "Node.pod"), "lab/test_lab_traffic.py::test_host_lookup",
    ),
    "Lab.node": "unit/test_net_lab_values.py::test_prefixes_of_a_node_that_are_refused",
    **dict.fromkeys(
        ("Lab.outside", "Lab.make_netns"),
        "lab/test_lab_lifecycle.py::test_name_is_unique_over_all_hosts",
    ),
    **dict.fromkeys(
        ("Link.from_pin", "Link.pin", "Link.keep"), "bpf/test_kernel_link.py::test_bad_pins"
    ),
    **dict.fromkeys(
        ("Link.update", "TcFilter.update"), "bpf/test_kernel_link.py::test_wrong_program_type"
    ),
    **dict.fromkeys(
        ("TcFilter.attach", "TcFilter.find", "attach_tc", "attach_xdp"),
        "bpf/test_kernel_link.py::test_bad_arguments",
    ),
    "attach_cgroup": "bpf/test_kernel_link.py::test_cgroup_refusals",
    "Map.from_spec": "bpf/test_kernel_map.py::test_impossible_maps_are_refused",
    **dict.fromkeys(
        ("Map.from_pin", "Map.pin", "Program.from_pin", "Program.pin"),
        "bpf/test_kernel_object.py::test_pins_of_maps_and_programs",
    ),
    **dict.fromkeys(
        (
            "Map.lookup", "Map.update", "Map.delete", "Map.__getitem__", "Map.__setitem__",
            "Map.get", "Map.pop", "Map.update_batch", "Map.delete_batch",
        ),
        "bpf/test_fake_kernel.py::MapMachine",
    ),
    "Map.open_inner": "bpf/test_kernel_map.py::test_maps_in_maps",
    **dict.fromkeys(
        ("Object.map", "Object.program"),
        "bpf/test_kernel_object.py::test_names_that_are_not_there",
    ),
    **dict.fromkeys(
        ("PolicyMap", "PolicyMap.allow", "PolicyMap.deny", "PolicyMap.remove", "PolicyMap.lookup",
         "PolicyMap.attach", "PolicyMap.replace"),
        "bpf/test_policy_map.py::test_what_it_refuses",
    ),
    "Program.run": "bpf/test_kernel_run.py::test_what_cannot_be_run_is_refused",
    **dict.fromkeys(
        ("RingBuffer", "RingBuffer.drain", "RingBuffer.drain_bytes", "RingBuffer.wait",
         "RingBuffer.records"),
        "bpf/test_kernel_ring.py::test_bad_arguments",
    ),
    **dict.fromkeys(
        ("SQLiteStore.put", "SQLiteStore.create", "SQLiteStore.session", "SQLiteStore.write"),
        "unit/test_store.py::test_bad_input_is_refused",
    ),
    "SQLiteStore": "unit/test_store.py::test_files_that_cannot_be_used",
    "ensure_bpffs": "bpf/test_kernel_bpffs.py::test_no_directory",
    **dict.fromkeys(
        ("probe", "Features.__getitem__", "Features.has", "Features.require"),
        "unit/test_probe.py::test_unknown_names_are_refused",
    ),
}  # fmt: skip

#: Any value of the type is right, or what is given comes from this library.
NOTHING_TO_REFUSE = {
    "After", "Before",  # `attach_tc` refuses what is there no anchor for
    "Clock", "Clock.fitting", "Clock.jiffies", "Clock.jiffies64",
    "ConnectResult", "Drift", "Endpoint", "Explanation", "Features", "Flow", "FlowEntry",
    "FlowEntry.decode", "FlowKey", "FlowKey.packed", "Hook", "Hook.rehearse", "Identity", "Link",
    "Map", "MapSpec", "MapSpec.create", "Metric", "Nat.back", "Nat.out", "Nat.quoted", "Node",
    "Object", "Outside",
    "Outside.add_route_to", "Pod", "Program", "ProgramSpec", "RunResult", "Server", "Simulation",
    "TcFilter",
    "Conntrack", "Conntrack.get", "Datapath.flows", "Lab", "Lab.leave_lan",
    "IPCache", "IPCache.listen",
    "IPCacheTable.drift", "IPCacheTable.follow", "IPCacheTable.plan", "IPCacheTable.sync",
    "IdentityAllocator", "IdentityAllocator.get", "IdentityAllocator.give_back",
    "IdentityAllocator.observe", "IdentityAllocator.poll", "IdentityAllocator.withhold",
    "Label.has_key", "Label.matches", "LabelFilter", "LabelFilter.keeps", "LabelFilter.split",
    "Labels", "Labels.find", "Labels.from_source", "Labels.get", "Labels.has", "Labels.merge",
    "Labels.without", "PortProto.contains", "Scope.of",
    "Selector", "Selector.matches", "Selector.names_key", "Selector.of",
    "Selector.with_requirement", "Selector.without_key",
    "Record", "Repository", "Repository.bandwidth", "Repository.derivation", "Repository.suggest",
    "Repository.undo", "ObjectSpec",
    *(f"{store}.{call}" for store in ("MemoryStore", "SQLiteStore")
      for call in ("delete", "end_session", "entries", "get", "renew_session", "session_alive",
                   "watch")),
    "MemoryStore.drop_watch", "MemoryStore.poll_watch", "SQLiteStore.changes",
    "TcFilter.keep", "http_reply",
}  # fmt: skip
#: Rooms with tables of their own of what they refuse, and protocols, which do nothing.
APART = {"loadbalancer", "loadbalancer.health", "loadbalancer.program"}
PROTOCOLS = {"MapLike", "Store"}


def public_functions() -> Iterator[str]:
    """Every function, method and constructor of the flat surface that takes an argument."""
    for room, names in pcl._EXPORTS.items():
        for name in names if room not in APART else ():
            found = getattr(pcl, name)
            if not inspect.isclass(found):
                if callable(found) and inspect.signature(found).parameters:
                    yield name
            elif name not in PROTOCOLS and not issubclass(found, Exception):
                yield from methods(name, found)


def methods(name: str, cls: type) -> Iterator[str]:
    for member, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        makes = member in ("__init__", "__new__")
        public = makes or not member.startswith("_") or member in ("__getitem__", "__setitem__")
        if not inspect.isfunction(function) or not public:
            continue
        arguments = len(inspect.signature(function).parameters)
        if arguments > (not isinstance(value, staticmethod)) and not (
            makes and issubclass(cls, enum.Enum)
        ):
            yield name if makes else f"{name}.{member}"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """By its own type of error, which derives from what a Python programmer would catch."""
    for kind, call in REFUSED[name]:
        with pytest.raises(kind) as caught:
            call()
        assert len(str(caught.value)) > 10


def test_every_public_function_is_in_a_table() -> None:
    """One that is new has to say what it refuses; one that is gone is taken out."""
    tables = [set(REFUSED), set(ELSEWHERE), NOTHING_TO_REFUSE]
    public = set(public_functions())
    listed = set[str]().union(*tables)
    assert sorted(public - listed) == []
    assert sorted(listed - public) == []
    assert sum(map(len, tables)) == len(listed), "a name is in two tables"


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_what_is_named_is_there(where: str) -> None:
    """The tests that the table names exist."""
    path, _, test = where.partition("::")
    assert re.search(rf"^(def|class) {test}\b", (TESTS / path).read_text(), re.MULTILINE)
