"""Links on devices and cgroups against the kernel, with real packets to show their effect."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyciliumlib import errors
from pyciliumlib.kernel.anchor import After, Anchor, Before, Head, Tail
from pyciliumlib.kernel.cgroup import attach_cgroup
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.kernel.link import Link, LinkInfo, program_id
from pyciliumlib.kernel.mounts import find_cgroup2
from pyciliumlib.kernel.object import Object
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.spec import ObjectSpec
from pyciliumlib.kernel.tc import Attached, attach_netkit, attach_tc, attached_tc, find_tc
from pyciliumlib.kernel.uapi import AttachType
from pyciliumlib.kernel.xdp import attach_xdp, attached_xdp
from pyciliumlib.net import NetNS
from tests.bpf.compiled import compile_bpf
from tests.expect import expect
from tests.scale import examples

SOURCE = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

/* What the programs ran as, each in its place: the order of the digits is the order of the runs. */
static __always_inline void ran(__u32 digit)
{
	__u32 order = 0, count = 1;
	__u64 *trace = bpf_map_lookup_elem(&hits, &order);
	__u64 *runs = bpf_map_lookup_elem(&hits, &count);

	if (!trace || !runs)
		return;
	*trace = *trace * 10 + digit;
	__sync_fetch_and_add(runs, 1);
}

SEC("tc") int tc_1(struct __sk_buff *skb) { ran(1); return -1; }
SEC("tc") int tc_2(struct __sk_buff *skb) { ran(2); return -1; }
SEC("tc") int tc_3(struct __sk_buff *skb) { ran(3); return -1; }
SEC("tc") int tc_drop(struct __sk_buff *skb) { ran(9); return 2; }
SEC("xdp") int xdp_pass(struct xdp_md *ctx) { ran(4); return XDP_PASS; }
SEC("xdp") int xdp_drop(struct xdp_md *ctx) { ran(5); return XDP_DROP; }
SEC("cgroup/connect4") int refuse_connect(struct bpf_sock_addr *ctx) { return 0; }
SEC("cgroup/connect4") int allow_connect(struct bpf_sock_addr *ctx) { return 1; }
"""


@pytest.fixture(scope="module")
def obj(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Object]:
    """The programs of SOURCE, loaded."""
    path = compile_bpf(SOURCE, tmp_path_factory.mktemp("link"))
    with ObjectSpec.open(path).load() as loaded:
        yield loaded


@pytest.fixture
def device() -> Iterator[str]:
    """This thread in a namespace of its own, on whose "lo" packets come back."""
    name = f"pcla-link-{os.getpid()}"
    with NetNS.create(name) as made:
        try:
            with made.enter():
                subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
                yield "lo"
        finally:
            made.delete()


@pytest.fixture
def veth(device: str) -> str:
    """One end of a veth pair in the namespace; the kernel runs native XDP there."""
    subprocess.run(
        "ip link add v0 type veth peer name v1 && ip link set v0 up", shell=True, check=True
    )
    return "v0"


def send_one() -> bool:
    """Send one datagram over lo; whether it came back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", receiver.getsockname())
        try:
            return receiver.recv(10) == b"x"
        except TimeoutError:
            return False


def trace_of_one(obj: Object) -> str:
    """The digits of the programs that one datagram met, in order."""
    obj.maps["hits"].update(0, 0)
    send_one()
    return str(obj.maps["hits"].lookup(0))


# --- tcx


@pytest.mark.parametrize(
    ("anchors", "order"),
    [
        ([Tail, Tail, Tail], "123"),
        ([Tail, Head, Head], "321"),
        ([Tail, Tail, lambda one, two: Before(two)], "132"),
        ([Tail, Tail, lambda one, two: After(one)], "132"),
        ([Tail, Tail, lambda one, two: Before(one)], "312"),
        ([Tail, Head, lambda one, two: After(one)], "213"),
    ],
)
def test_tcx_order(
    obj: Object, device: str, anchors: list[Callable[..., Anchor]], order: str
) -> None:
    """Programs run in the order that the anchors ask for, seen by a packet and by the query."""
    expect("tcx")
    programs = [obj.programs[name] for name in ("tc_1", "tc_2", "tc_3")]
    links: list[Link | TcFilter] = []
    for program, anchor in zip(programs, anchors, strict=True):
        where = anchor(*links) if len(links) == 2 and anchor not in (Head, Tail) else anchor()
        links.append(attach_tc(program, device, "ingress", anchor=where))
    try:
        assert trace_of_one(obj) == order
        expected = [
            Attached(program_id(programs[int(digit) - 1]), links[int(digit) - 1].info.id)
            for digit in order
        ]
        assert attached_tc(device, "ingress") == expected
    finally:
        for link in links:
            link.close()
    assert attached_tc(device, "ingress") == []


def test_anchor_by_program_and_id(obj: Object, device: str) -> None:
    """An anchor may name a program or its id in place of a link."""
    expect("tcx")
    one, two, three = (obj.programs[name] for name in ("tc_1", "tc_2", "tc_3"))
    with (
        attach_tc(one, device, "egress"),
        attach_tc(two, device, "egress", anchor=Before(one)),
        attach_tc(three, device, "egress", anchor=After(program_id(two))),
    ):
        found = [attached.prog_id for attached in attached_tc(device, "egress")]
    assert found == [program_id(two), program_id(three), program_id(one)]


@pytest.mark.parametrize(
    ("anchor", "error"),
    [
        (lambda obj: After(obj.programs["tc_2"]), errors.NotFoundError),
        (lambda obj: After(2**31 - 1), errors.NotFoundError),
        (lambda obj: Before(0), errors.InvalidError),
        (lambda obj: Before("tc_2"), errors.InvalidError),
        (lambda obj: "first", errors.InvalidError),
        (lambda obj: After(obj.programs["xdp_pass"]), errors.KernelError),
    ],
)
def test_bad_anchor(
    obj: Object, device: str, anchor: Callable[[Object], Anchor], error: type[Exception]
) -> None:
    """An anchor that cannot be met is a typed error, and nothing is attached."""
    expect("tcx")
    with pytest.raises(error):
        attach_tc(obj.programs["tc_1"], device, "ingress", anchor=anchor(obj))
    assert attached_tc(device, "ingress") == []


def test_same_program_twice(obj: Object, device: str) -> None:
    """A tcx hook takes a program once; the second time is an ExistsError."""
    expect("tcx")
    with attach_tc(obj.programs["tc_1"], device, "ingress"):
        with pytest.raises(errors.ExistsError, match="load it once more"):
            attach_tc(obj.programs["tc_1"], device, "ingress")


def test_update_to_a_program_that_is_there(obj: Object, device: str) -> None:
    """update() to a program of another link of the hook is refused and changes nothing."""
    expect("tcx")
    with (
        attach_tc(obj.programs["tc_1"], device, "ingress") as first,
        attach_tc(obj.programs["tc_2"], device, "ingress"),
    ):
        with pytest.raises(errors.ExistsError):
            first.update(obj.programs["tc_2"])
        assert trace_of_one(obj) == "12"


def test_hook_is_full(device: str, tmp_path: Path) -> None:
    """The 64th program of a hook is an ExhaustedError."""
    expect("tcx")
    source = "\n".join(
        f'SEC("tc") int p{i}(struct __sk_buff *skb) {{ return -1; }}' for i in range(64)
    )
    with ObjectSpec.open(compile_bpf(source, tmp_path)).load() as many:
        links = [attach_tc(many.programs[f"p{i}"], device, "ingress") for i in range(63)]
        try:
            with pytest.raises(errors.ExhaustedError, match="63 programs"):
                attach_tc(many.programs["p63"], device, "ingress")
        finally:
            for link in links:
                link.close()


# --- what tcx and clsact share


@pytest.fixture(params=["tcx", "clsact"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both ways of attaching a tc program."""
    expect(request.param)
    return str(request.param)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_attach_update_close(obj: Object, device: str, backend: str, direction: str) -> None:
    """A program is met while attached, its successor after update(), none after close()."""
    with attach_tc(obj.programs["tc_1"], device, direction, backend=backend) as link:
        assert link.attached
        assert trace_of_one(obj) == "1"
        link.update(obj.programs["tc_2"])
        assert trace_of_one(obj) == "2"
        assert link.info.prog_id == program_id(obj.programs["tc_2"])
        assert link.info.kind == backend
        assert link.info.ifindex == socket.if_nametoindex(device)
    assert trace_of_one(obj) == "0"


def test_drop(obj: Object, device: str, backend: str) -> None:
    """The verdict of the program counts: a packet it drops does not arrive."""
    with attach_tc(obj.programs["tc_drop"], device, "ingress", backend=backend):
        assert not send_one()
    assert send_one()


def test_auto_takes_tcx_where_there_is_one(obj: Object, device: str) -> None:
    """Left to itself attach_tc makes a tcx link, and a clsact filter on kernels without tcx."""
    with attach_tc(obj.programs["tc_1"], device, "ingress") as link:
        assert link.info.kind == ("tcx" if probe("tcx").has("tcx") else "clsact")
        assert trace_of_one(obj) == "1"


def test_order_needs_tcx(obj: Object, device: str) -> None:
    """Without tcx an anchor is an error, never a quiet attachment in some other order."""
    if probe("tcx").has("tcx"):
        pytest.skip("this kernel has tcx")
    for keywords in ({"anchor": Head()}, {"backend": "tcx"}):
        with pytest.raises(errors.FeatureError, match=r"Linux 6\.6, commit e420bed02507") as caught:
            attach_tc(obj.programs["tc_1"], device, "ingress", **keywords)
        assert caught.value.feature == "tcx"
    assert TcFilter.find(device, "ingress") is None


def test_update_loses_no_packet(obj: Object, device: str, backend: str) -> None:
    """While the program is replaced over and over, each packet meets exactly one program."""
    sent, updates = 3000, 0
    programs = itertools.cycle([obj.programs["tc_2"], obj.programs["tc_1"]])
    obj.maps["hits"].update(1, 0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        attach_tc(obj.programs["tc_1"], device, "ingress", backend=backend) as link,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)

        def send() -> None:  # in another thread: the sockets know their namespace
            for _ in range(sent):
                sender.sendto(b"x", receiver.getsockname())
                receiver.recv(10)

        thread = threading.Thread(target=send)
        thread.start()
        while thread.is_alive():
            link.update(next(programs))
            updates += 1
        thread.join()
    assert obj.maps["hits"].lookup(1) == sent
    assert updates > 5


def test_closed(obj: Object, device: str, backend: str) -> None:
    """close() is idempotent; everything else afterwards is a ClosedError."""
    link = attach_tc(obj.programs["tc_1"], device, "ingress", backend=backend)
    link.close()
    link.close()
    for use in (lambda: link.info, lambda: link.update(obj.programs["tc_2"]), link.detach):
        with pytest.raises(errors.ClosedError):
            use()


def test_keep_and_find(obj: Object, device: str, backend: str, bpffs: Path) -> None:
    """What was kept runs on after close(), is found, updated and detached by the next owner."""
    pin = bpffs / "link"
    with attach_tc(obj.programs["tc_1"], device, "ingress", backend=backend) as link:
        link.keep(pin)
        link.keep(pin)
    assert trace_of_one(obj) == "1"
    found = find_tc(device, "ingress", pin=pin)
    assert found is not None
    with found:
        found.update(obj.programs["tc_2"])
    assert trace_of_one(obj) == "2"
    again = find_tc(device, "ingress", pin=pin)
    assert again is not None
    again.detach()
    assert trace_of_one(obj) == "0"
    assert not pin.exists()
    assert find_tc(device, "ingress", pin=pin) is None


def test_find_on_another_hook(obj: Object, device: str, bpffs: Path) -> None:
    """A pinned link of another direction is refused: adopting it would leave a hook open."""
    expect("tcx")
    with attach_tc(obj.programs["tc_1"], device, "egress") as link:
        assert isinstance(link, Link)
        link.pin(bpffs / "link")
        with pytest.raises(errors.StateError, match="not on ingress"):
            find_tc(device, "ingress", pin=bpffs / "link")
        link.detach()


def test_device_vanishes(obj: Object, veth: str, backend: str) -> None:
    """When the device goes, the handle says so and still closes without an error."""
    link = attach_tc(obj.programs["tc_1"], veth, "ingress", backend=backend)
    subprocess.run(["ip", "link", "del", veth], check=True)
    assert not link.attached
    with pytest.raises(errors.DeviceError):
        link.update(obj.programs["tc_2"])
    link.close()


def test_bad_arguments(obj: Object, device: str) -> None:
    """Arguments that can never be right are refused before anything is attached."""
    program = obj.programs["tc_1"]
    for keywords in (
        {"backend": "tc"},
        {"backend": "clsact", "anchor": Head()},
        {"backend": "clsact", "priority": 0},
        {"backend": "clsact", "handle": 0},
    ):
        with pytest.raises(errors.InvalidError):
            attach_tc(program, device, "ingress", **keywords)
    with pytest.raises(errors.InvalidError, match='use "ingress" or "egress"'):
        attach_tc(program, device, "both")
    for missing in ("nosuch", 2**31 - 1, 0, -1, ""):
        with pytest.raises(errors.DeviceError):
            attach_tc(program, missing, "ingress")
    with pytest.raises(errors.InvalidError):
        attach_tc(program, None, "ingress")


def test_wrong_program_type(obj: Object, device: str, backend: str) -> None:
    """An XDP program on a tc hook is refused with a hint at the type."""
    with pytest.raises(errors.KernelError, match="sched_cls"):
        attach_tc(obj.programs["xdp_pass"], device, "ingress", backend=backend)


def test_pod_device_in_another_namespace(obj: Object) -> None:
    """Devices are looked up in the caller's namespace: a link made inside works from outside."""
    expect("tcx")
    name = f"pcla-other-{os.getpid()}"
    with NetNS.create(name) as made:
        try:
            with made.enter():
                link = attach_tc(obj.programs["tc_1"], "lo", "ingress")
            link.update(obj.programs["tc_2"])
            link.close()
        finally:
            made.delete()


# --- clsact alone


def test_clsact_exists_and_replace(obj: Object, device: str) -> None:
    """A taken handle and priority is an error that names the program, unless replace is said."""
    one, two = obj.programs["tc_1"], obj.programs["tc_2"]
    first = TcFilter.attach(one, device, "ingress")
    with pytest.raises(errors.ExistsError, match="'tc_1'"):
        TcFilter.attach(two, device, "ingress")
    second = TcFilter.attach(two, device, "ingress", replace=True)
    assert trace_of_one(obj) == "2"
    first.close()  # not its program any more: it must not remove the other's
    assert trace_of_one(obj) == "2"
    second.close()
    assert trace_of_one(obj) == "0"


def test_clsact_priorities(obj: Object, device: str) -> None:
    """Filters run by ascending priority, and each closes only itself."""
    with TcFilter.attach(obj.programs["tc_1"], device, "ingress", priority=20):
        with TcFilter.attach(obj.programs["tc_2"], device, "ingress", priority=10):
            assert trace_of_one(obj) == "21"
        assert trace_of_one(obj) == "1"


def test_clsact_forgotten(obj: Object, device: str) -> None:
    """A forgotten filter warns and stays; kept ones do not warn."""
    filter_ = TcFilter.attach(obj.programs["tc_1"], device, "ingress")
    with pytest.warns(ResourceWarning, match="stays attached"):
        del filter_
        gc.collect()
    found = TcFilter.find(device, "ingress")
    assert found is not None
    found.detach()


# --- XDP


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_xdp_modes(obj: Object, veth: str, mode: str) -> None:
    """The program is where the mode says; auto is native on a driver that can."""
    expect("link_xdp")
    expect("xdp_veth")
    program = obj.programs["xdp_pass"]
    with attach_xdp(program, veth, mode) as link:
        where = "native" if mode == "auto" else mode
        assert attached_xdp(veth) == {where: program_id(program)}
        info = link.info
        assert info == LinkInfo(
            kind="xdp",
            id=info.id,
            prog_id=program_id(program),
            ifindex=socket.if_nametoindex(veth),
            attach_type=AttachType.XDP,
        )
    assert attached_xdp(veth) == {}


def test_xdp_packets(obj: Object, device: str) -> None:
    """Packets meet the XDP program, and after update() its successor."""
    expect("link_xdp")
    with attach_xdp(obj.programs["xdp_pass"], device, "generic") as link:
        assert trace_of_one(obj) == "4"
        link.update(obj.programs["xdp_drop"])
        assert not send_one()
    assert send_one()


@pytest.mark.parametrize(("first", "second"), [("native", "native"), ("native", "generic")])
def test_xdp_taken(obj: Object, veth: str, first: str, second: str) -> None:
    """A second program is refused, in any mode, by the name of the first."""
    expect("link_xdp")
    with attach_xdp(obj.programs["xdp_pass"], veth, first):
        with pytest.raises(errors.ExistsError, match="'xdp_pass'"):
            attach_xdp(obj.programs["xdp_drop"], veth, second)


def test_xdp_mode_not_supported(obj: Object, device: str) -> None:
    """A mode that the driver lacks is a FeatureError that names it."""
    expect("link_xdp")
    for mode in ("native", "offload"):
        with pytest.raises(errors.FeatureError, match="generic") as caught:
            attach_xdp(obj.programs["xdp_pass"], device, mode)
        assert caught.value.feature == f"xdp_{mode}"
    with pytest.raises(errors.InvalidError):
        attach_xdp(obj.programs["xdp_pass"], device, "fast")  # type: ignore[arg-type]
    with pytest.raises(errors.KernelError, match="no XDP program"):
        attach_xdp(obj.programs["tc_1"], device, "generic")


# --- cgroup


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of its own, without processes."""
    expect("cgroup2")
    path = find_cgroup2() / f"pcla-link-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


CONNECT = """
import pathlib, socket, sys
(pathlib.Path(sys.argv[1]) / "cgroup.procs").write_text("0")
try:
    socket.create_connection(("127.0.0.1", 1), timeout=1)
except PermissionError:
    print("refused by the program")
except ConnectionRefusedError:
    print("no listener")
"""


def connect_in(cgroup: Path) -> str:
    """How connect() ends for a process of the cgroup."""
    command = [sys.executable, "-c", CONNECT, str(cgroup)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_cgroup(obj: Object, device: str, cgroup: Path) -> None:
    """connect() of the cgroup's processes meets the program while it is attached."""
    expect("link_cgroup")
    with attach_cgroup(obj.programs["refuse_connect"], cgroup, "connect4") as link:
        assert connect_in(cgroup) == "refused by the program"
        assert link.info.kind == "cgroup"
        assert link.info.attach_type is AttachType.CGROUP_INET4_CONNECT
        assert link.info.cgroup_id == cgroup.stat().st_ino
        link.update(obj.programs["allow_connect"])
        assert connect_in(cgroup) == "no listener"
        link.update(obj.programs["refuse_connect"])
    assert connect_in(cgroup) == "no listener"


def test_cgroup_refusals(obj: Object, cgroup: Path, tmp_path: Path) -> None:
    """What is no cgroup, no hook or not the program's hook is a typed error."""
    program = obj.programs["refuse_connect"]
    for path, hook, error in (
        (cgroup / "nosuch", "connect4", errors.NotFoundError),
        (tmp_path, "connect4", errors.StateError),
        (cgroup, "conect4", errors.InvalidError),
        (cgroup, AttachType.XDP, errors.InvalidError),
        (cgroup, "connect6", errors.KernelError),
    ):
        with pytest.raises(error):
            attach_cgroup(program, path, hook)


# --- lifetimes


def test_pin(obj: Object, device: str, bpffs: Path) -> None:
    """A pinned link outlives its handle; unpinned and closed, it is gone."""
    expect("tcx")
    pin = bpffs / "link"
    with attach_tc(obj.programs["tc_1"], device, "ingress") as link:
        assert isinstance(link, Link)
        link.pin(pin)
        with pytest.raises(errors.StateError, match="unpin"):
            link.pin(bpffs / "second")
    assert trace_of_one(obj) == "1"
    with Link.from_pin(pin) as again:
        assert again.pinned == pin
        with Link.from_id(again.info.id) as third:
            assert third.info == again.info
            with pytest.raises(errors.StateError, match="no pin"):
                third.unpin()
        again.unpin()
        assert trace_of_one(obj) == "1"
    assert trace_of_one(obj) == "0"
    with pytest.raises(errors.NotFoundError):
        Link.from_pin(pin)


def test_bad_pins(obj: Object, device: str, bpffs: Path, tmp_path: Path) -> None:
    """Pinning where it cannot be done is a typed error; a pin of something else is no link."""
    expect("tcx")
    with attach_tc(obj.programs["tc_1"], device, "ingress") as link:
        assert isinstance(link, Link)
        for path, error in (
            (tmp_path / "link", errors.KernelError),
            (bpffs / "nosuch" / "link", errors.NotFoundError),
        ):
            with pytest.raises(error):
                link.pin(path)
        assert link.pinned is None
        obj.maps["hits"].pin(bpffs / "map")
        with pytest.raises(errors.ExistsError):
            link.pin(bpffs / "map")
        with pytest.raises(errors.StateError, match="pins no link"):
            Link.from_pin(bpffs / "map")
    with pytest.raises(errors.NotFoundError):
        Link.from_id(2**31 - 1)


def test_survives_kill(obj: Object, device: str, bpffs: Path) -> None:
    """A process that is killed leaves what it kept attached, and only that."""
    expect("tcx")
    with attach_tc(obj.programs["tc_1"], device, "ingress") as link:
        assert isinstance(link, Link)
        link.pin(bpffs / "kept")
        child = os.fork()
        if child == 0:  # the child owns a second, unkept link and a kept one, and dies at once
            attach_tc(obj.programs["tc_2"], device, "ingress")
            attach_tc(obj.programs["tc_3"], device, "ingress").keep(bpffs / "child")
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert trace_of_one(obj) == "13"
        Link.from_pin(bpffs / "child").detach()
        link.detach()


def test_forgotten_link(obj: Object, device: str) -> None:
    """A forgotten link warns and is detached."""
    expect("tcx")
    link = attach_tc(obj.programs["tc_1"], device, "ingress")
    with pytest.warns(ResourceWarning):
        del link
        gc.collect()
    assert attached_tc(device, "ingress") == []


def test_no_descriptor_leaks(obj: Object, device: str) -> None:
    """Attaching, being refused a thousand times, and closing leave no descriptor behind."""
    expect("tcx")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(25):
        with attach_tc(obj.programs["tc_1"], device, "ingress") as link:
            for _ in range(40):
                with pytest.raises(errors.ExistsError):
                    attach_tc(obj.programs["tc_1"], device, "ingress")
                with Link.from_id(link.info.id):
                    pass
    assert len(list(descriptors.iterdir())) == before


def test_a_thousand_filters_and_pins_leak_nothing(obj: Object, device: str, bpffs: Path) -> None:
    """clsact attached and removed, a link pinned, opened and unpinned: as many as before."""
    program = obj.programs["tc_1"]
    TcFilter.attach(program, device, "ingress").close()
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(examples(1000)):
        TcFilter.attach(program, device, "ingress").close()
    assert TcFilter.find(device, "ingress") is None
    with attach_xdp(obj.programs["xdp_pass"], device) as link:
        for _ in range(examples(1000)):
            link.pin(bpffs / "link")
            Link.from_pin(bpffs / "link").close()
            link.unpin()
        assert link.attached
    assert len(list(descriptors.iterdir())) == before
    assert not (bpffs / "link").exists()


def test_netkit(obj: Object, device: str) -> None:
    """Programs of both sides of a netkit pair, attached to its primary device."""
    expect("netkit", config="CONFIG_NETKIT")
    from pyroute2 import IPRoute  # iproute2 learnt of netkit later than the kernels did

    with IPRoute() as route:
        route.link("add", ifname="nk-test", kind="netkit")
    with (
        attach_netkit(obj.programs["tc_1"], "nk-test") as primary,
        attach_netkit(obj.programs["tc_1"], "nk-test", peer=True) as peer,
    ):
        assert primary.info.attach_type is AttachType.NETKIT_PRIMARY
        assert peer.info.attach_type is AttachType.NETKIT_PEER
        assert primary.info.kind == peer.info.kind == "netkit"


def test_no_netkit(obj: Object, device: str) -> None:
    """Without netkit the error says what is missing and since when there is one."""
    if probe("netkit").has("netkit"):
        pytest.skip("this kernel has netkit")
    with pytest.raises(errors.FeatureError, match=r"Linux 6\.7, commit 35dfaad7188c") as caught:
        attach_netkit(obj.programs["tc_1"], device)
    assert caught.value.feature == "netkit"
