"""Programs run on packets that are sent nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.kernel import Object, ObjectSpec, ProgramType
from tests.bpf.compiled import compile_bpf
from tests.expect import kernel_release

SOURCE = """
SEC("tc") int echo(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	skb->cb[0] = skb->cb[0] + skb->cb[4];
	skb->mark = mark + 1;
	skb->priority = skb->ifindex;
	return skb->len;
}

SEC("tc") int grow(struct __sk_buff *skb)
{
	return bpf_skb_change_tail(skb, skb->len + 100, 0);
}

SEC("xdp") int shrink(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, 10) ? XDP_ABORTED : XDP_TX;
}

SEC("xdp") int queue(struct xdp_md *ctx)
{
	return ctx->rx_queue_index + ctx->ingress_ifindex * 10;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return 1; }
"""


@pytest.fixture(scope="module")
def obj(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Object]:
    spec = ObjectSpec.open(compile_bpf(SOURCE, tmp_path_factory.mktemp("run")))
    with spec.load() as loaded:
        yield loaded


PACKET = bytes(range(64))


def test_tc_context_goes_in_and_out(obj: Object) -> None:
    """Fields of __sk_buff are set by name and come back as the program left them."""
    result = obj.program("echo").run(PACKET, {"mark": 7, "cb": [1, 2, 3, 4, 5], "ifindex": 1})
    assert (result.retval, result.packet) == (64, PACKET)
    assert (result.ctx["mark"], result.ctx["cb"], result.ctx["priority"]) == (8, (6, 2, 3, 4, 5), 1)


def test_the_packet_comes_back_longer(obj: Object) -> None:
    """A packet that grows is returned whole; too little room is an error, not a cut packet."""
    result = obj.program("grow").run(PACKET)
    assert (result.retval, len(result.packet), result.packet[:64]) == (0, 164, PACKET)
    with pytest.raises(errors.InvalidError, match="grew to 164 bytes"):
        obj.program("grow").run(PACKET, out_size=100)


def test_xdp_packets_and_context(obj: Object) -> None:
    """XDP takes and returns packets, and a context where it is asked for."""
    result = obj.program("shrink").run(PACKET)
    assert (result.retval, result.packet, result.ctx) == (3, PACKET[10:], {})
    if kernel_release() < (5, 14):  # 47316f4a3053
        pytest.skip("test runs of XDP take a context since Linux 5.14")
    result = obj.program("queue").run(PACKET, {"ingress_ifindex": 1, "rx_queue_index": 0})
    assert result.retval == 10 and result.ctx["ingress_ifindex"] == 1


def test_repeat_measures(obj: Object) -> None:
    """A repeated run reports the mean time of one."""
    assert 0 < obj.program("echo").run(PACKET, repeat=1000).duration_ns < 1_000_000


@pytest.mark.parametrize(
    ("program", "arguments", "error", "message"),
    [
        ("echo", {"packet": b"short"}, errors.InvalidError, "Ethernet header"),
        ("echo", {"packet": PACKET, "repeat": 0}, errors.InvalidError, "at least once"),
        ("echo", {"packet": PACKET, "ctx": {"marc": 1}}, errors.InvalidError, '"mark"'),
        ("echo", {"packet": PACKET, "ctx": {"len": 1}}, errors.InvalidError, "cannot set"),
        ("echo", {"packet": PACKET, "ctx": {"mark": -1}}, errors.InvalidError, "mark"),
        ("echo", {"packet": PACKET, "ctx": {"mark": "x"}}, errors.InvalidError, "mark"),
        ("echo", {"packet": PACKET, "ctx": {"cb": [0] * 6}}, errors.InvalidError, "cb"),
        (
            "echo",
            {"packet": PACKET, "ctx": {"ifindex": 99999}},
            errors.DeviceError,
            "no such device",
        ),
        ("queue", {"packet": PACKET, "ctx": {"mark": 1}}, errors.InvalidError, "xdp_md"),
        ("connect4", {}, errors.FeatureError, "cannot be test-run"),
        ("connect4", {"ctx": {"mark": 1}}, errors.InvalidError, "as bytes"),
    ],
)
def test_what_cannot_be_run_is_refused(
    obj: Object,
    program: str,
    arguments: Mapping[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """Each wrong argument has its own error."""
    with pytest.raises(error, match=message):
        obj.program(program).run(**arguments)


def test_programs_describe_themselves(obj: Object) -> None:
    """Type, name, id and tag are the kernel's."""
    echo, shrink = obj.program("echo"), obj.program("shrink")
    assert (echo.type, shrink.type) == (ProgramType.SCHED_CLS, ProgramType.XDP)
    assert (echo.info.name, echo.info.type, echo.info.id) == ("echo", echo.type, echo.id)
    assert len(bytes.fromhex(echo.tag)) == 8 and echo.tag != shrink.tag


def test_run_statistics_are_counted(obj: Object) -> None:
    """With kernel.bpf_stats_enabled the kernel counts runs and their time."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        echo = obj.program("echo")
        first = echo.info
        echo.run(PACKET, repeat=100)
        after = echo.info
    finally:
        switch.write_text(before)
    assert after.run_cnt - first.run_cnt == 100
    assert after.run_time_ns > first.run_time_ns
