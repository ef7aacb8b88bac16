"""Object files read without a kernel: types, codecs, records, config, and bad files."""

from __future__ import annotations

import copy
import enum
import ipaddress
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyciliumlib import errors
from pyciliumlib.kernel import MapType, ObjectSpec, ProgramType, codec_of_dtype
from pyciliumlib.kernel.btf import Kind, Types
from tests.bpf.compiled import compile_bpf

ADDR_H = Path(__file__).parents[2] / "bpf/lib/addr.h"

SOURCE = f"""
#include "{ADDR_H}"

enum color {{ RED = 1, BLUE = -2 }};
enum big {{ HUGE = 0x100000000ULL }};

struct point {{ __s16 x, y; }};
struct prefix {{ __u32 prefixlen; struct addr addr; }} __attribute__((packed, aligned(4)));
struct padded {{ __u32 prefixlen; struct addr addr; }};

struct DOC("all kinds") everything {{
	__u8 u8; __s8 s8; __u16 u16; __s16 s16;
	__u32 u32; __s32 s32; __u64 u64; __s64 s64;
	__be16 be16 DOC("in network order"); bool on; __u8 pad;
	__be32 be32; __be64 be64;
	enum color color; enum big big;
	struct addr addr;
	__u8 mac[6]; char name[10];
	__u16 ports[2]; __u8 grid[2][3];
	struct point point; struct point points[2];
	union {{ __u32 word; __u8 bytes[4]; }};
	union {{ __u8 first; __u32 wide; }} mixed;
	struct {{ __u32 inner; }};
}} __attribute__((packed));

struct gaps {{ __u8 a; __u32 b; }};
struct flags {{ __u32 low : 4; __u32 high : 28; }};

struct {{
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct prefix);
	__type(value, struct everything);
}} every SEC(".maps");

struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flags);
}} bits SEC(".maps");

struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gaps);
}} holes SEC(".maps");

struct {{
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct padded);
	__type(value, __u8);
}} loose SEC(".maps");

struct inner {{
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 7);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct gaps);
}};

struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
	__array(values, struct inner);
}} outer SEC(".maps");

const volatile __u16 limit DOC("packets a second") = 7;
const volatile bool enabled;
const volatile enum color paint = RED;
const volatile struct point origin = {{ .x = -1, .y = 2 }};

static __always_inline int body(struct __sk_buff *skb)
{{
	__u32 zero = 0;

	bpf_map_lookup_elem(&outer, &zero);
	bpf_map_lookup_elem(&bits, &zero);
	bpf_map_lookup_elem(&holes, &zero);
	if (enabled && paint == RED)
		return bpf_map_lookup_elem(&every, &(struct prefix){{}}) != NULL;
	return limit + origin.x + origin.y;
}}

SEC("tc") int plain(struct __sk_buff *skb) {{ return body(skb); }}
SEC("tcx/ingress") int tcx(struct __sk_buff *skb) {{ return body(skb); }}
SEC("xdp") int on_xdp(struct xdp_md *ctx) {{ return XDP_PASS; }}
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) {{ return 1; }}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("btf"))


@pytest.fixture
def spec(path: Path) -> ObjectSpec:
    return ObjectSpec.open(path)


VALUES: dict[str, Any] = {
    "u8": 255,
    "s8": -128,
    "u16": 65535,
    "s16": -1,
    "u32": 1 << 31,
    "s32": -5,
    "u64": (1 << 64) - 1,
    "s64": -(1 << 63),
    "be16": 0x1234,
    "on": True,
    "be32": 0x12345678,
    "be64": 0x123456789ABCDEF0,
    "color": -2,
    "big": 1 << 32,
    "addr": ipaddress.ip_address("10.0.0.1"),
    "mac": b"\x02\x00\x00\x00\x00\x01",
    "name": "eth0",
    "ports": (80, 443),
    "grid": (b"\x01\x02\x03", b"\x04\x05\x06"),
    "point": (1, -1),
    "points": ((1, 2), (3, 4)),
    "word": 7,
    "mixed": b"\x01\x00\x00\x00",
    "inner": 9,
}


def test_every_kind_of_member_round_trips(spec: ObjectSpec) -> None:
    """A struct with each kind of member comes back from its bytes as it went in."""
    codec = spec.type("everything")
    assert codec.decode(codec.encode(VALUES))._asdict() == {**VALUES, "pad": 0}


def test_bytes_are_those_of_c(spec: ObjectSpec) -> None:
    """The layout is the compiler's: numpy reads the same fields at the same places."""
    codec = spec.type("everything")
    row = np.frombuffer(codec.encode(VALUES), codec.dtype)[0]
    plain = {name: value for name, value in VALUES.items() if isinstance(value, (int, bool))}
    assert {name: row[name].item() for name in plain} == plain
    assert codec.dtype["be16"] == np.dtype(">u2") and codec.dtype["be64"] == np.dtype(">u8")
    assert codec.dtype["addr"] == np.dtype(("u1", (16,)))
    assert bytes(row["addr"]) == bytes(10) + b"\xff\xff\x0a\x00\x00\x01"
    assert (codec.size, codec.dtype.itemsize) == (124, 124)


def test_network_order_is_on_the_wire(spec: ObjectSpec) -> None:
    """`__be16` holds the host's value in Python and the network's bytes in memory."""
    codec = spec.type("everything")
    at = codec.dtype.fields["be16"][1]  # type: ignore[index]
    assert codec.encode(VALUES)[at : at + 2] == b"\x12\x34"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u8": 256}, r"everything\.u8: 256 does not fit u8"),
        ({"s8": -129}, r"everything\.s8: -129 does not fit s8"),
        ({"u16": 1.5}, r"everything\.u16: 1\.5 is no integer"),
        ({"be16": 65536}, r"everything\.be16: 65536 does not fit u16"),
        ({"on": 2}, r"everything\.on: 2 is no bool"),
        ({"color": "REDD"}, r'everything\.color: enum color has no \'REDD\' \(did you mean "RED"'),
        ({"addr": "10.0.0"}, r"everything\.addr: '10\.0\.0' is no address"),
        ({"mac": b"short"}, r"everything\.mac: 5 bytes do not fill u8\[6\]"),
        ({"mac": "020000"}, r"everything\.mac: '020000' is not 6 bytes"),
        ({"name": "much too long"}, r"everything\.name: .* longer than char\[10\]"),
        ({"ports": (1,)}, r"everything\.ports: 1 values do not fill u16\[2\]"),
        ({"ports": (1, 65536)}, r"everything\.ports: 65536 does not fit"),
        ({"point": {"x": 1}}, r"everything\.point: struct point lacks y"),
        ({"point": (1, 40000)}, r"everything\.point: point\.y: 40000 does not fit s16"),
        ({"u32_": 1}, r'has no field \'u32_\' \(did you mean "u32"\?\)'),
    ],
)
def test_what_does_not_fit_is_refused(
    spec: ObjectSpec, change: dict[str, Any], message: str
) -> None:
    """A value of another type or range is refused with the field's path; nothing is cut off."""
    with pytest.raises(errors.InvalidError, match=message):
        spec.type("everything").encode({**VALUES, **change})


def test_a_missing_field_is_refused_but_padding(spec: ObjectSpec) -> None:
    """Every field but padding must be given."""
    codec = spec.type("everything")
    with pytest.raises(errors.InvalidError, match="lacks u8, word"):
        codec.encode({k: v for k, v in VALUES.items() if k not in ("u8", "word")})


def test_records_are_values(spec: ObjectSpec) -> None:
    """Records are immutable, hashable, equal by value, short to read, copied and pickled."""
    point = spec.type("point").decode(struct.pack("=hh", 1, -2))
    assert (point.x, point.y, repr(point)) == (1, -2, "point(x=1, y=-2)")
    assert {point: "here"}[type(point)(x=1, y=-2)] == "here"
    assert point._replace(y=5) == (1, 5)
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point
    with pytest.raises(AttributeError):
        point.x = 3
    assert "pad" not in repr(spec.type("everything").zero())


def test_enums_are_int_enums(spec: ObjectSpec) -> None:
    """Named numbers are members, others stay numbers, and names can be written."""
    codec = spec.type("everything")
    row = codec.decode(codec.encode({**VALUES, "color": "RED", "big": 5}))
    assert row.color is spec.enums["color"](1) and isinstance(row.color, enum.IntEnum)
    assert row.color.name == "RED" and row.big == 5
    assert dict(spec.enums["color"].__members__) == {"RED": 1, "BLUE": -2}
    assert int(spec.enums["big"]["HUGE"]) == 1 << 32


def test_unions_take_any_member(spec: ObjectSpec) -> None:
    """A union shows its first member if that fills it, else bytes; any member can be written."""
    codec = spec.type("everything")
    row = codec.decode(
        codec.encode({**VALUES, "word": {"bytes": b"\x01\x00\x00\x00"}, "mixed": {"wide": 258}})
    )
    assert (row.word, row.mixed) == (1, b"\x02\x01\x00\x00")


@pytest.mark.parametrize(
    ("given", "length", "shown"),
    [
        ("10.0.0.0/8", 104, "10.0.0.0/8"),
        ("10.1.2.3", 128, "10.1.2.3/32"),
        ("0.0.0.0/0", 96, "0.0.0.0/0"),
        ("fd00::/64", 64, "fd00::/64"),
        ("::/0", 0, "::/0"),
        (ipaddress.ip_network("192.0.2.0/24"), 120, "192.0.2.0/24"),
        (ipaddress.ip_address("fd00::1"), 128, "fd00::1/128"),
        ((112, "10.2.0.0"), 112, "10.2.0.0/16"),
        ({"prefixlen": 8, "addr": "fd00::"}, 8, "fd00::/8"),
    ],
)
def test_prefix_keys_are_networks(spec: ObjectSpec, given: Any, length: int, shown: str) -> None:
    """The key {prefixlen, struct addr} is a network, IPv4 at 96 bits more."""
    codec = spec.maps["every"].key
    data = codec.encode(given)
    assert (int.from_bytes(data[:4], "little"), str(codec.decode(data))) == (length, shown)


def test_a_padded_prefix_is_no_network(spec: ObjectSpec) -> None:
    """A gap after prefixlen is part of what a trie compares, so such a key stays a struct."""
    codec = spec.type("padded")
    assert codec.decode(codec.encode((8, "10.0.0.0"))).prefixlen == 8
    with pytest.raises(errors.InvalidError, match="is no struct padded"):
        codec.encode("10.0.0.0/8")


def test_maps_are_described(spec: ObjectSpec) -> None:
    """Type, sizes, flags, pinning and the maps inside a map are read from the file."""
    every, outer = spec.maps["every"], spec.maps["outer"]
    assert (every.type, every.max_entries, every.flags) == (MapType.HASH, 10, 1)
    assert every.pinning and not outer.pinning
    assert (every.key.size, every.value.size) == (20, 124)
    assert outer.inner is not None
    assert (outer.inner.type, outer.inner.max_entries) == (MapType.LPM_TRIE, 7)
    assert outer.inner.value.decode(outer.inner.value.encode((1, 2))) == (1, 2)
    assert spec.maps[".rodata"].internal


def test_bit_fields_are_bytes_and_have_no_codec(spec: ObjectSpec) -> None:
    """A struct with bit-fields has no dtype: asking says so, and such a map takes bytes."""
    with pytest.raises(errors.ObjectError, match=r"flags\.low is a bit-field"):
        spec.type("flags")
    assert spec.maps["bits"].value.size == 4


def test_programs_are_described(spec: ObjectSpec) -> None:
    """Sections that libbpf 1.1 does not know (tcx/ingress) have their type too."""
    found = {name: (p.section, p.type, p.attach_type) for name, p in spec.programs.items()}
    assert found == {
        "plain": ("tc", ProgramType.SCHED_CLS, 0),
        "tcx": ("tcx/ingress", ProgramType.SCHED_CLS, 0),
        "on_xdp": ("xdp", ProgramType.XDP, 37),
        "connect4": ("cgroup/connect4", ProgramType.CGROUP_SOCK_ADDR, 10),
    }


def test_config_reads_writes_and_documents(spec: ObjectSpec) -> None:
    """Config starts at the file's values, takes typed ones and carries the C source's words."""
    config = spec.config
    assert dict(config) == {"limit": 7, "enabled": False, "paint": 1, "origin": (-1, 2)}
    assert config.doc("limit") == "packets a second" and config.doc("enabled") == ""
    config["limit"] = 65535
    config.update({"enabled": True, "paint": "BLUE", "origin": {"x": 3, "y": 4}})
    assert dict(config) == {"limit": 65535, "enabled": True, "paint": -2, "origin": (3, 4)}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("limt", 1, errors.NotFoundError, r'no config variable \'limt\' \(did you mean "limit"'),
        ("limit", 65536, errors.InvalidError, r"config 'limit' \(u16\): 65536 does not fit"),
        ("limit", "7", errors.InvalidError, "'7' is no integer"),
        ("enabled", "yes", errors.InvalidError, "'yes' is no bool"),
        ("origin", {"x": 1}, errors.InvalidError, "lacks y"),
    ],
)
def test_config_refuses(
    spec: ObjectSpec, name: str, value: Any, error: type[Exception], message: str
) -> None:
    """An unknown variable or a wrong value is refused, and an update with one changes nothing."""
    with pytest.raises(error, match=message):
        spec.config.update({"paint": "BLUE", name: value})
    assert spec.config["paint"] == 1


def test_copies_are_apart(spec: ObjectSpec) -> None:
    """What is adjusted in a copy is not in the first."""
    other = spec.copy()
    other.config["limit"] = 1
    other.resize("every", 99)
    other.set_autoload("on_xdp", False)
    other.set_autocreate("every", False)
    assert (spec.config["limit"], spec.maps["every"].max_entries) == (7, 10)
    assert spec.programs["on_xdp"].autoload and spec.maps["every"].autocreate
    assert (other.config["limit"], other.maps["every"].max_entries) == (1, 99)


def test_documentation_reaches_python(spec: ObjectSpec) -> None:
    """Texts of structs and members come from the C source through BTF."""
    assert spec.doc("everything") == "all kinds"
    assert spec.doc("everything", "be16") == "in network order"
    assert spec.doc("everything", "u8") == ""
    with pytest.raises(errors.NotFoundError, match="no member 'be61'"):
        spec.doc("everything", "be61")


@pytest.mark.parametrize("call", ["resize", "set_autocreate", "set_autoload", "type"])
def test_unknown_names_are_refused(spec: ObjectSpec, call: str) -> None:
    """An unknown map, program or struct names what was asked for."""
    calls: dict[str, Any] = {
        "resize": lambda: spec.resize("ever", 1),
        "set_autocreate": lambda: spec.set_autocreate("ever", False),
        "set_autoload": lambda: spec.set_autoload("plai", False),
        "type": lambda: spec.type("poin"),
    }
    with pytest.raises(errors.NotFoundError, match="did you mean"):
        calls[call]()


def test_impossible_sizes_are_refused(spec: ObjectSpec) -> None:
    """A map has at least one entry and at most 2**32 - 1."""
    for size in (0, -1, 1 << 32):
        with pytest.raises(errors.InvalidError):
            spec.resize("every", size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "no object file"),
        (lambda data: b"#!/bin/sh\n" + bytes(100), "no object file"),
        (lambda data: data[:5] + b"\x02" + data[6:], "big-endian"),
        (lambda data: data[:18] + b"\x3e\x00" + data[20:], "holds no BPF code"),
        (lambda data: data[:200], "cannot be used as a BPF object"),
    ],
)
def test_what_is_no_object_is_refused(path: Path, damage: Any, message: str) -> None:
    """Anything but a whole BPF object for this byte order is an ObjectError."""
    with pytest.raises(errors.ObjectError, match=message):
        ObjectSpec.open(damage(path.read_bytes()), "damaged")


def test_an_object_without_btf_is_refused(path: Path, tmp_path: Path) -> None:
    """Without -g there are no types; the message says so."""
    data = path.read_bytes().replace(b".BTF\0", b".XTF\0")
    with pytest.raises(errors.ObjectError, match="BTF"):
        ObjectSpec.open(data)
    with pytest.raises(errors.ObjectError, match="cannot read object file"):
        ObjectSpec.open(tmp_path / "absent.o")


def test_cut_btf_is_refused() -> None:
    """Damaged type information is an ObjectError, whatever is wrong with it."""
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
    integer = struct.pack("=III", 0, Kind.INT << 24, 4)
    for data in (b"", header, header[:10], b"\0" * 40, header + integer + b"\0"):
        with pytest.raises(errors.ObjectError, match="damaged"):
            Types.parse(data)


def test_types_that_refer_to_themselves_are_refused() -> None:
    """A typedef of itself in a hostile file ends in an error, not in an endless loop."""
    types = struct.pack("=III", 0, Kind.TYPEDEF << 24, 1)
    data = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + types + b"\0"
    with pytest.raises(errors.ObjectError, match="refers to itself"):
        Types.parse(data).resolve(1)


def test_codecs_of_dtypes() -> None:
    """Free-standing maps are typed by numpy dtypes, nested ones too."""
    inner = np.dtype([("x", "<i2"), ("y", ">u2")])
    layout = np.dtype({"names": ["a", "b"], "formats": ["u1", (inner, (2,))], "offsets": [0, 4]})
    codec = codec_of_dtype(layout)
    assert codec.decode(codec.encode((1, [(-1, 2), (3, 4)]))) == (1, ((-1, 2), (3, 4)))
    assert codec.dtype == layout
    row = np.zeros((), layout)[()]
    assert codec.encode(row) == bytes(12)
    with pytest.raises(errors.InvalidError, match="is not the dtype"):
        codec.encode(np.zeros((), inner)[()])
    with pytest.raises(errors.InvalidError, match="cannot hold"):
        codec_of_dtype("O")
