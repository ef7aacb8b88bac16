"""The user's own programs in the packet's path: one drops, one counts, both see what is known."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from pyciliumlib import errors
from pyciliumlib.datapath import Outcome
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.lab import Lab
from pyciliumlib.resources import include_dir
from tests.bpf.compiled import compile_bpf
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene, apps, arrives, at

SOURCE = """
#include <lib/hooks.h>
#include <lib/endpoint.h>

const volatile __u16 closed_port = 81;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} packets SEC(".maps");

SEC("tc")
int drops(struct __sk_buff *skb)
{
	const struct hook_args *packet = hook_packet();

	return packet && packet->dport == bpf_htons(closed_port) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* Counts by both identities, if the source is one of the datapath's endpoints. */
SEC("tc")
int counts(struct __sk_buff *skb)
{
	const struct hook_args *packet = hook_packet();
	struct endpoint *source;
	__u64 key, one = 1, *count;

	if (!packet)
		return TC_ACT_UNSPEC;
	source = endpoint_lookup(&packet->src);
	if (!source || source->identity != packet->src_identity)
		return TC_ACT_UNSPEC;
	key = (__u64)packet->src_identity << 32 | packet->dst_identity;
	count = bpf_map_lookup_elem(&packets, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&packets, &key, &one, BPF_ANY);
	return TC_ACT_UNSPEC;
}

/* Drops what its own map names, and remembers in a variable how often this test asked it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u64);
} closed SEC(".maps");

__u64 asked;

SEC("tc")
int gate(struct __sk_buff *skb)
{
	const struct hook_args *packet = hook_packet();
	__u16 port;
	__u64 *refused;

	if (!packet)
		return TC_ACT_UNSPEC;
	asked += packet->sport == bpf_htons(40000);
	port = bpf_ntohs(packet->dport);
	refused = bpf_map_lookup_elem(&closed, &port);
	if (!refused)
		return TC_ACT_UNSPEC;
	__sync_fetch_and_add(refused, 1);
	return TC_ACT_SHOT;
}

SEC("xdp")
int of_another_kind(struct xdp_md *ctx)
{
	return XDP_PASS;
}
"""


@pytest.fixture(scope="module")
def obj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's object, built against the shipped headers."""
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("hooks"), include_dir())


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.no_policy()


@VERSIONS
@pytest.mark.smoke
def test_a_program_that_drops(scene: Scene, obj: Path, version: int) -> None:
    """Before policy, by a rule of its own, also under a connection; the reason says so."""
    with scenes.tcp_pair(scene.web, scene.api, version, 8181) as (near, far):
        assert arrives(near, far)
        with scene.dp.hooks.attach("before-policy", obj, "drops"):
            assert scene.verdict("web", "api", "81/TCP", version) == DropReason.HOOK
            assert scene.verdict("web", "api", "80/TCP", version) == OPEN
            assert scene.verdict("world", "api", "81/TCP", version) == DropReason.HOOK
            assert arrives(near, far)
        assert scene.verdict("web", "api", "81/TCP", version) == OPEN
        assert arrives(near, far) and arrives(far, near)


@VERSIONS
def test_configuration_of_the_users_program(scene: Scene, obj: Path, version: int) -> None:
    """A spec that was configured is taken as it is."""
    spec = ObjectSpec.open(obj)
    spec.config["closed_port"] = 80
    with scene.dp.hooks.attach("before-policy", spec, "drops"):
        assert scene.verdict("web", "api", "80/TCP", version) == DropReason.HOOK
        assert scene.verdict("web", "api", "81/TCP", version) == OPEN


@VERSIONS
@pytest.mark.smoke
def test_a_program_that_counts(scene: Scene, obj: Path, version: int) -> None:
    """After policy it sees both identities of what is allowed, and nothing of what is not."""
    scene.dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[apps("from", "web")]))
    ids = {name: endpoint.identity for name, endpoint in scene.dp.endpoints.items()}
    with scene.dp.hooks.attach("after-policy", obj, "counts") as hook:
        with scene.web.dial(scenes.at(scene.api, version), "53/UDP") as connection:
            for _ in range(5):
                assert connection.exchange().ok
        assert scene.verdict("db", "api", "80/TCP", version) == POLICY
        assert dict(hook.maps["packets"].items()) == {
            ids["web"] << 32 | ids["api"]: 5,
            ids["api"] << 32 | ids["web"]: 5,
        }


def test_both_slots_at_once(scene: Scene, obj: Path) -> None:
    """What the first drops the second does not see; endpoints added meanwhile are hooked too."""
    with (
        scene.dp.hooks.attach("before-policy", obj, "drops"),
        scene.dp.hooks.attach("after-policy", obj, "counts") as counting,
    ):
        scene.dp.add_endpoint("late", {"app": "late"})
        late = scene.dp.endpoints["late"].identity
        assert scene.verdict("late", "api", "81/TCP", 6) == DropReason.HOOK
        packets = counting.maps["packets"]
        assert not [key for key in packets if key >> 32 == late]
        assert scene.verdict("late", "api", "80/TCP", 6) == OPEN
        assert [key for key in packets if key >> 32 == late]
        scene.dp.remove_endpoint("late")


def programs(scene: Scene) -> set[int]:
    """The programs on the device of web, by tcx or clsact."""
    links = scene.dp.endpoints._devices._attachments[scene.web.ifindex]._links
    return scene.node.call(lambda: {link.info.prog_id for link in links.values()})


def test_slots_cost_nothing_before_and_after(scene: Scene, obj: Path) -> None:
    """The devices run programs that know of slots only while one is used."""
    before = programs(scene)
    with scene.dp.hooks.attach("after-policy", obj, "counts"):
        hooked = programs(scene)
        assert not before & hooked
        with scene.dp.hooks.attach("before-policy", obj, "drops"):
            assert programs(scene) == hooked
        assert programs(scene) == hooked
    assert programs(scene) == before
    with pytest.raises(errors.VerifierError):
        scene.dp.hooks.attach("after-policy", obj_that_the_verifier_rejects(obj.parent))
    assert programs(scene) == before


def obj_that_the_verifier_rejects(folder: Path) -> Path:
    (folder / "bad").mkdir(exist_ok=True)
    source = """
#include <lib/hooks.h>
SEC("tc") int reads(struct __sk_buff *skb) { return *(__u8 *)(long)skb->data; }
"""
    return compile_bpf(source, folder / "bad", include_dir())


def test_slots_are_a_mapping(scene: Scene, obj: Path) -> None:
    """By name, those in use; and drift tells of what was changed behind the datapath's back."""
    hooks = scene.dp.hooks
    assert not hooks and repr(hooks) == "<Hooks none>"
    with hooks.attach("after-policy", obj, "counts") as hook:
        assert dict(hooks) == {"after-policy": hook} and hook.program == "counts"
        for slot, words in (("before-policy", "is empty"), ("after-polcy", 'mean "after-policy"')):
            with pytest.raises(errors.NotFoundError, match=words):
                hooks[slot]
        assert not scene.dp.drift()
        scene.dp._programs.maps["hooks"].delete(1)
        assert "slot after-policy: holds program None" in str(scene.dp.drift())
    assert not hooks and not scene.dp.drift()
    assert repr(hook) == "<Hook after-policy: counts closed>"


@VERSIONS
def test_a_simulation_calls_copies(scene: Scene, obj: Path, version: int) -> None:
    """Of the program, its constants and its maps as they are now; the live ones see nothing."""
    spec = ObjectSpec.open(obj)
    spec.config["closed_port"] = 7777
    packet = functools.partial(tcp_syn, scene, version)
    with (
        scene.dp.hooks.attach("before-policy", spec, "drops"),
        scene.dp.hooks.attach("after-policy", obj, "gate") as gate,
    ):
        assert scene.dp.simulate(packet(80), at="web").outcome is Outcome.TO_ENDPOINT
        gate.maps["closed"][80] = 5
        before = [sorted(map(str, gate.maps[name].items())) for name in ("closed", ".bss")]
        for port, reason in ((7777, DropReason.HOOK), (80, DropReason.HOOK), (81, None)):
            assert scene.dp.simulate(packet(port), at="web").reason == reason
        assert before == [sorted(map(str, gate.maps[name].items())) for name in ("closed", ".bss")]
        assert scene.verdict("web", "api", "80/TCP", version) == DropReason.HOOK
        assert gate.maps["closed"][80] > 5
    assert scene.dp.simulate(packet(80), at="web").allowed


TELLS = """
#include <lib/hooks.h>
#include <lib/event.h>

/* Tells of each packet, on the datapath's own ring, what the datapath has no name for. */
SEC("tc")
int tells(struct __sk_buff *skb)
{
	struct work *work = work_get();

	if (!work)
		return TC_ACT_UNSPEC;
	work->event = (struct event_context){ .type = 77, .rule = 7 };
	event_send(skb);
	return TC_ACT_UNSPEC;
}
"""


def test_a_program_that_shares_every_map(scene: Scene, tmp_path: Path) -> None:
    """Whatever their sizes, also in a simulation, whose maps have others; what it tells on the
    datapath's ring is passed over, there and here."""
    obj = compile_bpf(TELLS, tmp_path, include_dir())
    scene.drain()
    with scene.dp.hooks.attach("before-policy", obj) as hook:
        assert set(hook.maps) <= set(scene.dp._programs.maps) | {".rodata"}
        before = scene.dp._flows.unknown
        assert scene.dp.simulate(tcp_syn(scene, 4, 80), at="web").outcome is Outcome.TO_ENDPOINT
        assert scene.dp._flows.unknown == before
        assert scene.verdict("web", "api", "80/TCP", 4) == OPEN
        assert list(scene.dp.flows())
        assert scene.dp._flows.unknown > before


def tcp_syn(scene: Scene, version: int, port: int) -> bytes:
    network = IP if version == 4 else IPv6
    ends = {"src": str(at(scene.web, version)), "dst": str(at(scene.api, version))}
    link = Ether(src=scene.web.mac, dst=scene.web.host_mac)
    return bytes(link / network(**ends) / TCP(sport=40000, dport=port))


def test_an_endpoint_whose_device_vanished_is_in_nobodys_way(scene: Scene, obj: Path) -> None:
    """The others are switched to and fro; what is missing is told by drift."""
    gone = scene.dp.add_endpoint("gone", {"app": "gone"})
    scene.node.netlink.delete_link(gone.ifindex)
    with scene.dp.hooks.attach("before-policy", obj, "drops"):
        assert scene.verdict("web", "api", "81/TCP", 4) == DropReason.HOOK
        assert "gone: its programs are not on device" in str(scene.dp.drift())
    assert scene.verdict("web", "api", "81/TCP", 4) == OPEN
    scene.dp.remove_endpoint("gone")
    assert not scene.dp.drift()


def test_refusals(scene: Scene, obj: Path, tmp_path: Path) -> None:
    """A slot takes one program, of the right kind, and says which there are."""
    held = scenes.descriptors()
    attach = scene.dp.hooks.attach
    with attach("after-policy", obj, "counts"):
        with pytest.raises(errors.ExistsError, match="after-policy"):
            attach("after-policy", obj, "drops")
    for program, kind, words in (
        (None, errors.NotFoundError, "drops, counts, gate"),
        ("count", errors.NotFoundError, 'did you mean "counts"'),
        ("of_another_kind", errors.InvalidError, "kind"),
    ):
        with pytest.raises(kind, match=words):
            attach("after-policy", obj, program)
    (tmp_path / "text.bpf.o").write_text("no object")
    with pytest.raises(errors.ObjectError):
        attach("after-policy", tmp_path / "text.bpf.o")
    assert scenes.descriptors() == held
    assert scene.verdict("web", "api", "80/TCP", 4) == OPEN


def test_a_shared_map_declared_otherwise(scene: Scene, tmp_path: Path) -> None:
    """An object that says something else about one of our maps is refused with the differences."""
    source = """
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 64);
	__type(key, __u32); __type(value, __u32); } ipcache SEC(".maps");
SEC("tc") int reads(struct __sk_buff *skb)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&ipcache, &zero) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
"""
    obj = compile_bpf("#include <linux/pkt_cls.h>\n" + source, tmp_path)
    with pytest.raises(errors.MismatchError, match="ipcache") as caught:
        scene.dp.hooks.attach("after-policy", obj)
    assert caught.value.differences


def test_closing_twice_and_late(scene: Scene, obj: Path) -> None:
    """A hook that is closed leaves the slot to the next one, whatever is closed again later."""
    first = scene.dp.hooks.attach("after-policy", obj, "counts")
    first.close()
    with scene.dp.hooks.attach("after-policy", obj, "counts") as second:
        first.close()
        assert scene.verdict("web", "api", "53/UDP", 4) == OPEN
        assert len(second.maps["packets"])


#: Headers whose includer has to define functions that they declare.
COMPLETED = {
    "path.h", "ends.h", "link_messages.h", "hook_call.h", "translate.h", "untranslated.h",
    "lb_nat_path.h", "outside.h",
}  # fmt: skip


@pytest.mark.parametrize("hook", ["", "#define PCL_TC\n"], ids=["XDP", "tc"])
def test_headers_compile_alone(tmp_path: Path, hook: str) -> None:
    """Each shipped header can be included first; those that say so by programs of tc alone."""
    quiet = '#pragma clang diagnostic ignored "-Wunused-function"\n'
    for header in sorted((include_dir() / "lib").glob("*.h")):
        if header.name in COMPLETED or (
            not hook and "#ifndef PCL_TC\n#error" in header.read_text()
        ):
            continue
        try:
            compile_bpf(f"{hook}{quiet}#include <lib/{header.name}>\n", tmp_path, include_dir())
        except subprocess.CalledProcessError:
            pytest.fail(f"lib/{header.name} cannot be included alone")
