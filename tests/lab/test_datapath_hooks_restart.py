"""A user's program in a slot outlives its process as the datapath does, and the next one has it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyciliumlib.datapath import Datapath
from pyciliumlib.errors import ExistsError, NotFoundError
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.lab import Lab, Node, Pod
from pyciliumlib.resources import include_dir
from tests.bpf.compiled import compile_bpf
from tests.lab import scenes
from tests.lab.controller import controlled
from tests.lab.scenes import SILENCE, at

SOURCE = """
#include <lib/hooks.h>

const volatile __u16 closed_port = 81;

/* Packets by destination port; a name with more letters than the kernel keeps. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u64);
} packets_by_destination_port SEC(".maps");

__u64 packets;

SEC("tc")
int counts(struct __sk_buff *skb)
{
	const struct hook_args *args = hook_packet();
	__u64 one = 1, *count;
	__u16 port;

	if (!args)
		return TC_ACT_UNSPEC;
	packets++;
	port = bpf_ntohs(args->dport);
	count = bpf_map_lookup_elem(&packets_by_destination_port, &port);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&packets_by_destination_port, &port, &one, BPF_ANY);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int drops(struct __sk_buff *skb)
{
	const struct hook_args *args = hook_packet();

	return args && args->dport == bpf_htons(closed_port) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
"""
COUNTS = "packets_by_destination_port"
_serial = itertools.count()


@pytest.fixture(scope="module")
def obj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("hooks"), include_dir())


@pytest.fixture
def pin_root() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/pcl-hooks-{os.getpid()}-{next(_serial)}")
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Node, Pod, Pod]]:
    """A node with a client and a server of 80/TCP and 81/TCP."""
    with Lab() as lab:
        node = lab.node()
        web, api = node.pod("web"), node.pod("api")
        for port in ("80/TCP", "81/TCP"):
            api.serve(port)
        yield node, web, api


def opened(pin_root: Path, node: Node, web: Pod, api: Pod) -> Datapath:
    """A new datapath with the two endpoints."""
    dp = Datapath(node, pin_root=pin_root)
    for pod in (web, api):
        dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
    return dp


@pytest.mark.parametrize(
    "version", [pytest.param(4, id="ipv4", marks=pytest.mark.smoke), pytest.param(6, id="ipv6")]
)
def test_killed_with_programs_in_both_slots(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path, version: int
) -> None:
    """They go on while nobody is there, and the next process has them, with what they counted."""
    node, web, api = place
    target = at(api, version)
    hooks = {"before-policy": (obj, "drops"), "after-policy": (obj, "counts")}
    with controlled(pin_root, node, [web, api], [], hooks) as controller:
        assert web.connect(target, "80/TCP").ok
        controller.kill()
        assert web.connect(target, "81/TCP", timeout=SILENCE).error == "timeout"
        assert web.connect(target, "80/TCP").ok
        with Datapath.open(pin_root, node) as dp:
            assert {slot: hook.program for slot, hook in dp.hooks.items()} == {
                "before-policy": "drops",
                "after-policy": "counts",
            }
            assert not dp.drift(), str(dp.drift())
            counting = dp.hooks["after-policy"].maps
            before = counting[COUNTS][80]
            assert before >= 8 and counting[".bss"][0].packets >= before
            assert 81 not in counting[COUNTS]
            assert web.connect(target, "80/TCP").ok
            assert counting[COUNTS][80] > before
            assert web.connect(target, "81/TCP", timeout=SILENCE).error == "timeout"
            with pytest.raises(ExistsError):
                dp.hooks.attach("before-policy", obj, "drops")
            dp.hooks["before-policy"].close()
            assert web.connect(target, "81/TCP").ok and counting[COUNTS][81]


def test_what_was_taken_out_stays_out(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path
) -> None:
    """Of two hooks one is closed: the next process knows the other alone, until that goes too."""
    node, web, api = place
    dp = opened(pin_root, node, web, api)
    dp.hooks.attach("before-policy", obj, "drops")
    dp.hooks.attach("after-policy", obj, "counts")
    dp.hooks["before-policy"].close()
    dp.keep()
    dp = Datapath.open(pin_root, node)
    assert list(dp.hooks) == ["after-policy"]
    dp.hooks["after-policy"].close()
    dp.keep()
    dp = Datapath.open(pin_root, node)
    assert not dp.hooks and not dp.drift()
    assert dp._pins is not None and not list(dp._pins.directory("hooks").iterdir())
    assert web.connect(api.ip4, "81/TCP").ok
    dp.close()


def test_a_hook_that_was_kept_closes_nothing(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path
) -> None:
    """Its handle is the earlier process's: what `with` closes after `keep()` is gone from it."""
    node, web, api = place
    held = scenes.descriptors()
    dp = opened(pin_root, node, web, api)
    with dp.hooks.attach("before-policy", obj, "drops"):
        dp.keep()
    assert scenes.descriptors() == held
    with Datapath.open(pin_root, node) as dp:
        assert list(dp.hooks) == ["before-policy"]
        assert web.connect(api.ip4, "81/TCP", timeout=SILENCE).error == "timeout"
    assert scenes.descriptors() == held


def test_a_simulation_after_the_takeover(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path
) -> None:
    """The program and its configuration are known, and its maps see nothing of it."""
    node, web, api = place
    dp = opened(pin_root, node, web, api)
    spec = ObjectSpec.open(obj)
    spec.config["closed_port"] = 80
    spec.resize(COUNTS, 7)
    dp.hooks.attach("before-policy", spec, "drops")
    dp.hooks.attach("after-policy", spec, "counts")
    dp.keep()
    with Datapath.open(pin_root, node) as dp:
        counts = dp.hooks["after-policy"].maps[COUNTS]
        assert counts.max_entries == 7
        before = dict(counts.items())
        packet = bytes.fromhex(web.host_mac.replace(":", "") + web.mac.replace(":", "") + "0800")
        packet += bytes.fromhex("4500002800000000400600000000000000000000")[:12]
        packet += web.ip4.packed + api.ip4.packed + bytes.fromhex("9c40")
        rest = bytes.fromhex("00000000000000005002000000000000")
        for port, reason in ((80, DropReason.HOOK), (81, None)):
            simulated = dp.simulate(packet + port.to_bytes(2, "big") + rest, at="web")
            assert simulated.reason == reason
        assert dict(counts.items()) == before


@pytest.mark.parametrize(
    "cut",
    [
        lambda dp: dp._programs.maps["hooks"].delete(1),  # before the slot was written, or after
        lambda dp: dp._store.delete("hooks/after-policy"),
    ],
    ids=["no program in the slot", "no record"],
)
def test_a_change_cut_short(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path, cut: Callable[[Datapath], object]
) -> None:
    """What a process that died in the middle of attaching or closing has left is removed."""
    node, web, api = place
    dp = opened(pin_root, node, web, api)
    dp.hooks.attach("after-policy", obj, "counts")
    cut(dp)
    dp.keep()
    with Datapath.open(pin_root, node) as dp:
        assert not dp.hooks and not dp.drift()
        assert dp._pins is not None and not list(dp._pins.directory("hooks").iterdir())
        with dp.hooks.attach("after-policy", obj, "counts") as hook:
            assert web.connect(api.ip6, "80/TCP").ok and hook.maps[COUNTS][80]


def test_pins_that_somebody_removed(
    place: tuple[Node, Pod, Pod], obj: Path, pin_root: Path
) -> None:
    """A program whose maps cannot be found any more is told of, and stays in its slot."""
    node, web, api = place
    dp = opened(pin_root, node, web, api)
    dp.hooks.attach("before-policy", obj, "drops")
    assert dp._pins is not None
    pin = dp._pins.directory("hooks") / "before-policy" / COUNTS
    dp.hooks["before-policy"].maps[COUNTS].pin(moved := pin.with_name("elsewhere"))
    pin.unlink()
    dp.keep()
    held = scenes.descriptors()
    with pytest.raises(NotFoundError, match=COUNTS):
        Datapath.open(pin_root, node)
    assert scenes.descriptors() == held
    assert web.connect(api.ip4, "81/TCP", timeout=SILENCE).error == "timeout"
    moved.rename(pin)
    Datapath.open(pin_root, node).close()
