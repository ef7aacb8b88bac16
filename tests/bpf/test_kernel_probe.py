"""Feature probes against the kernel, and against what the kernel says of its own configuration."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyciliumlib.kernel.features import Support
from pyciliumlib.kernel.known_features import KNOWN
from pyciliumlib.kernel.probe import _cache, probe
from pyciliumlib.kernel.probe_bpf import SCHED_CLS, XDP, _helper, _map_type, _program_loads
from tests.expect import expect, kernel_release


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that ask the kernel, whatever other tests asked before."""
    for name in list(_cache):
        monkeypatch.delitem(_cache, name)


def test_all_features_get_an_answer(no_cache: None) -> None:
    """As root each probe is conclusive."""
    answers = probe()
    assert list(answers) == list(KNOWN)
    unknown = {name: a.reason for name, a in answers.items() if a.support is Support.UNKNOWN}
    assert unknown == {}


@pytest.mark.parametrize("name", [n for n, f in KNOWN.items() if f.group in ("program", "map")])
def test_what_this_kernel_should_have(name: str) -> None:
    """Programs, maps and batches come with the release; no configuration leaves one out."""
    expect(name)


@pytest.mark.parametrize("name", [n for n, f in KNOWN.items() if f.group == "helper"])
def test_helpers_by_release(name: str) -> None:
    """A helper is there from its release on, and not before (Debian and stable backport none)."""
    since = KNOWN[name].since
    assert since is not None
    assert probe(name).has(name) == (kernel_release() >= since)


@pytest.mark.parametrize(
    ("prog_type", "number", "support"),
    [
        (SCHED_CLS, 23, Support.YES),  # redirect
        (SCHED_CLS, 44, Support.NO),  # xdp_adjust_head: for XDP alone
        (XDP, 44, Support.YES),
        (XDP, 155, Support.NO),  # redirect_peer: for tc alone
        (SCHED_CLS, 1_000_000, Support.NO),
    ],
)
def test_helpers_by_program_type(prog_type: int, number: int, support: Support) -> None:
    """A helper that another type of program may call is a no for this one."""
    assert _helper(prog_type, number).support is support


def test_what_no_kernel_has() -> None:
    """Types beyond all that exist are a no, with the errno in the reason."""
    for answer in (_map_type(10_000), _program_loads(10_000, 0)):
        assert answer.support is Support.NO
        assert "EINVAL" in answer.reason


CONFIG = {
    "dev_vxlan": "CONFIG_VXLAN",
    "dev_geneve": "CONFIG_GENEVE",
    "dev_wireguard": "CONFIG_WIREGUARD",
    "dev_ipip": "CONFIG_NET_IPIP",
    "dev_veth": "CONFIG_VETH",
    "qdisc_fq": "CONFIG_NET_SCH_FQ",
    "clsact": "CONFIG_NET_SCH_INGRESS",
    "netkit": "CONFIG_NETKIT",
    "tcx": "CONFIG_NET_XGRESS",
}


@pytest.mark.parametrize("name", CONFIG)
def test_agrees_with_the_kernels_configuration(name: str) -> None:
    """Where the kernel shows its configuration, a device or hook is there just if it is built."""
    path = Path("/proc/config.gz")
    if not path.exists():
        pytest.skip("this kernel does not show its configuration")
    found = re.search(
        rf"^{CONFIG[name]}=([ym])$", gzip.decompress(path.read_bytes()).decode(), re.M
    )
    if found and found[1] == "m":
        pytest.skip("a module: there only if it is installed")
    assert probe(name).has(name) == bool(found)


def test_probes_leave_nothing_behind(no_cache: None) -> None:
    """All probes together leak no descriptor and do not move the caller to another namespace."""
    probe()  # imports and such
    _cache.clear()
    before = len(list(Path("/proc/self/fd").iterdir()))
    namespace = Path("/proc/self/ns/net").readlink()
    devices = sorted(Path("/sys/class/net").iterdir())
    probe()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert Path("/proc/self/ns/net").readlink() == namespace
    assert sorted(Path("/sys/class/net").iterdir()) == devices


UNPRIVILEGED = """
import os
from pyciliumlib.errors import PrivilegeError
from pyciliumlib.kernel.probe import _cache, probe

names = ("tcx", "map_lpm_trie", "helper_redirect_peer", "dev_veth", "cap_bpf")
os.seteuid(65534)
print([probe(name)[name].support.value for name in names])
try:
    probe("map_lpm_trie").require("map_lpm_trie")
except PrivilegeError as error:
    print(error.errno)
os.seteuid(0)
print([probe(name)[name].support.value for name in names])
"""


def test_unknown_is_not_cached() -> None:
    """Without privileges the answer is unknown, not no; with them it is asked anew."""
    expect("tcx")
    if Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() == "0":
        pytest.skip("unprivileged users may load programs here")
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines == [
        "['unknown', 'unknown', 'unknown', 'unknown', 'no']",
        "1",
        "['yes', 'yes', 'yes', 'yes', 'yes']",
    ]
