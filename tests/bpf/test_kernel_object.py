"""Objects in the kernel: loading, reuse, pins, what is refused, and what is left behind."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import numpy as np
import pytest

from pyciliumlib import errors
from pyciliumlib.kernel import Map, MapType, Object, ObjectSpec, Program, unpin
from tests.bpf.compiled import compile_bpf
from tests.scale import examples

SOURCE = """
struct key { __u32 a; __u16 b; __u16 pad; };
struct value { __u64 packets; __u32 mark; __u32 flags; };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10);
	__type(key, struct key);
	__type(value, struct value);
} table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} calls SEC(".maps");

const volatile __u32 answer = 1;
__u64 runs;

SEC("tc") int main_prog(struct __sk_buff *skb)
{
	struct key key = { .a = skb->mark };
	struct value *value = bpf_map_lookup_elem(&table, &key);
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&counts, &zero);

	runs++;
	if (count)
		(*count)++;
	if (value)
		value->packets++;
	bpf_tail_call(skb, &calls, 0);
	return answer;
}

SEC("tcx/ingress") int tail(struct __sk_buff *skb) { return 42; }
SEC("?tc") int optional(struct __sk_buff *skb) { return 43; }
"""

BAD = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cells SEC(".maps");

SEC("tc") int good(struct __sk_buff *skb) { return 0; }

SEC("tc") int careless(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *cell = bpf_map_lookup_elem(&cells, &zero);

	return *cell; /* not compared with NULL */
}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("object"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> ObjectSpec:
    return ObjectSpec.open(compile_bpf(BAD, tmp_path_factory.mktemp("bad")), "bad")


@pytest.fixture
def spec(path: Path) -> ObjectSpec:
    return ObjectSpec.open(path)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pinned(folder: Path) -> list[str]:
    """The names in a bpffs but those that the kernel puts into its root."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".debug")


def test_one_spec_loads_often(spec: ObjectSpec) -> None:
    """Each load has maps of its own, with the config of its moment."""
    spec.config["answer"] = 5
    with spec.load() as first:
        spec.config["answer"] = 6
        spec.resize("table", 20)
        with spec.load() as second:
            assert first.program("main_prog").run(bytes(64)).retval == 5
            assert second.program("main_prog").run(bytes(64)).retval == 6
            assert (first.map("counts")[0], second.map("counts")[0]) == (1, 1)
            assert (first.map("table").info.max_entries, second.map("table").info.max_entries) == (
                10,
                20,
            )
            assert first.map(".bss")[0].runs == 1
            assert first.map(".rodata")[0].answer == 5


def test_programs_share_reused_maps(spec: ObjectSpec) -> None:
    """A reused map takes the place of the object's own and outlives it."""
    with spec.load() as owner:
        with spec.load(reuse={"counts": owner.map("counts")}) as guest:
            guest.program("main_prog").run(bytes(64))
            assert guest.map("counts").info.id == owner.map("counts").info.id
            assert guest.map("table").info.id != owner.map("table").info.id
        assert owner.map("counts")[0] == 1


def test_programs_fill_program_arrays(spec: ObjectSpec) -> None:
    """A tcx program and a tc one can be in the same program array."""
    with spec.load() as obj:
        calls, tail = obj.map("calls"), obj.program("tail")
        calls[0] = tail
        assert dict(calls.items()) == {0: tail.id} and len(calls) == 1
        assert obj.program("main_prog").run(bytes(64)).retval == 42
        del calls[0]
        assert obj.program("main_prog").run(bytes(64)).retval == 1
        with pytest.raises(errors.InvalidError, match="is no program"):
            calls[0] = obj.map("table")


def test_what_is_not_wanted_is_not_loaded(spec: ObjectSpec) -> None:
    """SEC("?tc") is off until asked for, and any program or map can be left out."""
    assert not spec.programs["optional"].autoload
    spec.set_autoload("optional", True)
    for name in ("main_prog", "tail"):
        spec.set_autoload(name, False)
    for name in ("table", "calls"):
        spec.set_autocreate(name, False)
    with spec.load() as obj:
        assert set(obj.programs) == {"optional"}
        assert {"table", "calls"}.isdisjoint(obj.maps) and "counts" in obj.maps
        with pytest.raises(errors.NotFoundError, match="no map 'table'"):
            obj.map("table")


def test_a_reused_map_must_fit(spec: ObjectSpec) -> None:
    """Every difference of every map is listed at once, and an unknown name is refused."""
    other = np.dtype([("a", "<u4"), ("b", "<u2")])
    with (
        Map.create(MapType.LRU_HASH, other, "u8", 5) as table,
        Map.create(MapType.ARRAY, "u4", "u4", 2) as counts,
    ):
        with pytest.raises(errors.MismatchError) as caught:
            spec.load(reuse={"table": table, "counts": counts})
        assert caught.value.differences == (
            "table: type: lru_hash instead of hash",
            "table: key size: 6 instead of 8",
            "table: value size: 8 instead of 16",
            "table: max_entries: 5 instead of 10",
            "counts: value size: 4 instead of 8",
        )
        with pytest.raises(errors.NotFoundError, match=r'"table"'):
            spec.load(reuse={"tabel": table})


def test_pins_are_made_and_adopted(spec: ObjectSpec, bpffs: Path) -> None:
    """The first load pins its maps; the next finds them with what is in them."""
    with spec.load(pins=bpffs) as first:
        first.map("table")[(1, 2, 0)] = (3, 4, 5)
        ids = {name: m.info.id for name, m in first.maps.items()}
    assert pinned(bpffs) == ["calls", "counts", "table"]
    with spec.load(pins=bpffs) as second:
        assert second.map("table")[(1, 2, 0)].mark == 4
        again = {name: m.info.id for name, m in second.maps.items()}
        assert {name for name in ids if ids[name] == again[name]} == {"table", "counts", "calls"}


def test_a_pinned_map_must_fit(spec: ObjectSpec, bpffs: Path, tmp_path: Path) -> None:
    """Another layout of the same size is found by its fields, and nothing is loaded or pinned."""
    with spec.load(pins={"table": bpffs / "table"}):
        pass
    changed = SOURCE.replace("__u16 b; __u16 pad;", "__be16 b; __u16 c;").replace(
        "__u32 mark; __u32 flags;", "__u32 flags; __u32 mark;"
    )
    other = ObjectSpec.open(compile_bpf(changed, tmp_path))
    other.resize("table", 11)
    with pytest.raises(errors.MismatchError) as caught:
        other.load(pins=bpffs)
    assert caught.value.differences == (
        "table: max_entries: 10 instead of 11",
        "table: key.b: u16 at offset 4 instead of be16 at offset 4",
        "table: key.c: nothing instead of u16 at offset 6",
        "table: key.pad: u16 at offset 6 instead of nothing",
        "table: value.flags: u32 at offset 12 instead of u32 at offset 8",
        "table: value.mark: u32 at offset 8 instead of u32 at offset 12",
    )
    assert pinned(bpffs) == ["table"]
    with pytest.raises(errors.MismatchError, match=r"key\.b"):
        Map.from_pin(bpffs / "table", other.maps["table"])
    with Map.from_pin(bpffs / "table", spec.maps["table"]) as same:
        assert same.max_entries == 10


def test_a_pin_is_opened_with_its_types(spec: ObjectSpec, bpffs: Path) -> None:
    """Without a description, a pinned map is typed by the BTF in the kernel."""
    with spec.load(pins={"table": bpffs / "t"}) as obj:
        obj.map("table")[{"a": 1, "b": 2}] = {"packets": 1, "mark": 2, "flags": 3}
    with Map.from_pin(bpffs / "t") as m:
        assert m[{"a": 1, "b": 2}]._asdict() == {"packets": 1, "mark": 2, "flags": 3}
        assert m.key_dtype == spec.maps["table"].key.dtype


def test_failed_loads_leave_no_pins(bad: ObjectSpec, spec: ObjectSpec, bpffs: Path) -> None:
    """A rejected program, or a pin that cannot be made, leaves the folder as it was."""
    with pytest.raises(errors.VerifierError):
        bad.load(pins=bpffs)
    assert pinned(bpffs) == []
    before = open_files()
    with pytest.raises(errors.NotFoundError, match="no folder"):
        spec.load(pins={"counts": bpffs / "counts", "table": bpffs / "absent" / "table"})
    assert pinned(bpffs) == []
    assert open_files() == before


def test_pins_of_maps_and_programs(spec: ObjectSpec, bpffs: Path, tmp_path: Path) -> None:
    """Pins are taken once, opened by their kind, and removed; the wrong place says why."""
    with spec.load() as obj:
        table, program = obj.map("table"), obj.program("main_prog")
        table.pin(bpffs / "m")
        program.pin(bpffs / "p")
        with pytest.raises(errors.ExistsError, match="the name is taken"):
            program.pin(bpffs / "m")
        with pytest.raises(errors.KernelError, match="not in a bpffs"):
            table.pin(tmp_path / "m")
        program_id = program.id
    with Program.from_pin(bpffs / "p") as again:
        assert (again.id, again.name, again.run(bytes(64)).retval) == (program_id, "main_prog", 1)
    assert unpin(bpffs / "p") and not unpin(bpffs / "p")
    with pytest.raises(errors.NotFoundError, match="no program is pinned"):
        Program.from_pin(bpffs / "p")
    with pytest.raises(errors.StateError, match="pins no program but a map"):
        Program.from_pin(bpffs / "m")
    with pytest.raises(errors.KernelError):
        Map.from_pin(tmp_path)


def test_the_verifier_is_quoted(bad: ObjectSpec) -> None:
    """The error has the verdict in a line, the whole log and the line of C."""
    with pytest.raises(errors.VerifierError) as caught:
        bad.load()
    error = caught.value
    assert error.program == "careless"
    assert error.summary == "R0 invalid mem access 'map_value_or_null'"
    assert "return *cell;" in error.source
    if " @ " in error.log:  # since Linux 6.10 a log names the file of each line
        assert "test.bpf.c:" in error.source
    assert "processed" in error.log and "bpf_map_lookup_elem" in error.log
    assert error.summary in str(error) and isinstance(error, OSError)


def test_a_long_log_comes_whole(tmp_path: Path) -> None:
    """A log of many kilobytes is neither cut nor lost."""
    lines = "\n".join(f"\t*(volatile __u32 *)&skb->mark = {n};" for n in range(3000))
    source = f"""
    SEC("tc") int lengthy(struct __sk_buff *skb)
    {{
    {lines}
        return *(int *)(unsigned long)(skb->len & 0xff);
    }}
    """
    with pytest.raises(errors.VerifierError) as caught:
        ObjectSpec.open(compile_bpf(source, tmp_path)).load()
    assert caught.value.log.count("*(u32 *)(r1 +8) = ") >= 3000
    assert caught.value.log.startswith(("0:", "; SEC", "reg type", "func#0", "Live"))
    assert "invalid mem access" in caught.value.summary


def test_a_map_that_cannot_be_made_is_named(spec: ObjectSpec) -> None:
    """A map too large for the kernel says which it is."""
    spec.resize("table", (1 << 32) - 1)
    with pytest.raises(errors.KernelError, match=r"map 'table'"):
        spec.load()


def test_messages_of_libbpf_are_logged(
    bad: ObjectSpec,
    spec: ObjectSpec,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """libbpf prints nothing itself: its words go to logging, those of an exception as DEBUG."""
    with caplog.at_level(logging.DEBUG, "pyciliumlib.libbpf"):
        with spec.load():
            pass
        assert any("main_prog" in record.message for record in caplog.records)
        caplog.clear()
        with pytest.raises(errors.VerifierError):
            bad.load()
        assert any("careless" in record.message for record in caplog.records)
        assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_threads_load_side_by_side(bad: ObjectSpec, spec: ObjectSpec) -> None:
    """Loads in several threads do not mix up their maps or their logs."""
    failures: list[str] = []

    def work(number: int) -> None:
        mine = spec.copy()
        mine.config["answer"] = number
        for _ in range(5):
            with mine.load() as obj:
                if obj.program("main_prog").run(bytes(64)).retval != number:
                    failures.append("another thread's config")
            try:
                bad.load()
            except errors.VerifierError as error:
                if error.log.count("processed") != 1:
                    failures.append("another thread's log")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_loading_leaks_nothing(path: Path, bad: ObjectSpec) -> None:
    """A thousand times open, load and close leave as many descriptors as before."""
    ObjectSpec.open(path).load().close()
    gc.collect()
    before = open_files()
    for _ in range(examples(1000)):
        with Map.create(MapType.HASH, "u4", "u4", 1) as m:
            m[1] = 1
    for _ in range(examples(1000)):
        ObjectSpec.open(path).load().close()
    for _ in range(examples(100)):
        with pytest.raises(errors.VerifierError):
            bad.load()
    assert open_files() == before


def test_pins_leak_nothing(spec: ObjectSpec, bpffs: Path) -> None:
    """Pinned, opened again and unpinned many times, one by one and with the object."""
    with spec.load() as loaded:
        before = open_files()
        for _ in range(examples(300)):
            loaded.maps["table"].pin(bpffs / "table")
            loaded.programs["tail"].pin(bpffs / "tail")
            Map.from_pin(bpffs / "table", loaded.maps["table"].spec).close()
            Program.from_pin(bpffs / "tail").close()
            assert unpin(bpffs / "table") and unpin(bpffs / "tail")
        for _ in range(examples(100)):
            spec.load(pins=bpffs).close()
            spec.load(pins=bpffs).close()  # which adopts them
            for name in pinned(bpffs):
                unpin(bpffs / name)
        assert open_files() == before and pinned(bpffs) == []


def test_names_that_are_not_there(spec: ObjectSpec) -> None:
    """The error names the nearest one, of maps and of programs, loaded or not."""
    with spec.load() as loaded:
        for call in (
            lambda: loaded.map("tabel"),
            lambda: loaded.program("tial"),
            lambda: spec.load(reuse={"tabel": loaded.map("table")}),
            lambda: spec.load(pins={"tabel": "/nowhere"}),
        ):
            with pytest.raises(errors.NotFoundError, match="did you mean"):
                call()


def test_closed_things_say_so(spec: ObjectSpec) -> None:
    """Everything after close() is a ClosedError, and closing twice is fine."""
    obj = spec.load()
    table, program = obj.map("table"), obj.program("tail")
    obj.close()
    obj.close()
    for call in (
        lambda: table[(1, 2, 0)],
        lambda: table.lookup_batch(),
        lambda: table.info,
        lambda: program.run(bytes(64)),
        lambda: program.id,
    ):
        with pytest.raises(errors.ClosedError, match="was closed"):
            call()


def test_a_forgotten_object_warns(spec: ObjectSpec) -> None:
    """What was never closed is closed by the collector, with a ResourceWarning that names it."""
    before = open_files()
    with pytest.warns(ResourceWarning) as caught:
        obj: Object | None = spec.load()
        assert obj is not None
        obj = None
        gc.collect()
    assert {str(warning.message) for warning in caught} >= {
        "map 'table' was never closed",
        "program 'tail' was never closed",
    }
    assert open_files() == before


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from pyciliumlib import errors
from pyciliumlib.kernel import Map, MapType, ObjectSpec
data = Path(sys.argv[1]).read_bytes()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
spec = ObjectSpec.open(data)  # needs no privilege
for call in (spec.load, lambda: Map.create(MapType.HASH, "u4", "u4", 1)):
    try:
        call()
    except errors.PrivilegeError as error:
        assert isinstance(error, PermissionError)
        print(error)
"""


def test_without_privileges_the_capability_is_named(path: Path) -> None:
    """As nobody, the file can be read, and loading says which capability is missing."""
    result = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("CAP_BPF and CAP_NET_ADMIN are missing") == 2


def test_the_description_of_a_live_map(spec: ObjectSpec) -> None:
    """What the kernel reports agrees with what was asked for."""
    with spec.load() as obj:
        info = obj.map("table").info
        assert attrs.asdict(
            info, filter=lambda a, _: a.name in ("name", "key_size", "max_entries")
        ) == {
            "name": "table",
            "key_size": 8,
            "max_entries": 10,
        }
        assert info.memory is None or info.memory > 0
