"""What a lab leaves behind: nothing, however it ends."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyciliumlib import errors
from pyciliumlib.lab import Lab
from pyciliumlib.lab.state import STATE_DIR
from pyciliumlib.net import netns_names

SETUP = """
    import os, signal, subprocess, sys, time
    # a shell starts its background jobs with Ctrl-C ignored, and CI may run as one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pyciliumlib.lab import Lab
    lab = Lab()
    pod = lab.node().pod("web")
    pod.serve("80/TCP")
    sleeper = pod.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def ready(*more):
        print(lab.id, sleeper.pid, *more, flush=True)
"""


def child(script: str) -> subprocess.Popen[str]:
    """A process of its own that makes a lab and then does as `script` says."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SETUP) + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_of(lab_id: str) -> list[str]:
    """Namespaces and state of a lab that are still there."""
    state = [str(STATE_DIR / lab_id)] if (STATE_DIR / lab_id).exists() else []
    return [*netns_names(f"pcl-{lab_id}-"), *state]


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie (init reaps orphans when it likes)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_killed_lab_is_removed_by_the_next() -> None:
    """After kill -9 everything is still there; `cleanup_stale` removes it, programs included."""
    process = child("ready(); time.sleep(1000)")
    try:
        assert process.stdout is not None
        lab_id, sleeper = process.stdout.readline().split()
        assert lab_id not in Lab.cleanup_stale(), "the lab is alive"
        assert len(left_of(lab_id)) == 4  # node, pod, LAN, state
    finally:
        process.kill()
        process.communicate()
    assert len(left_of(lab_id)) == 4
    assert is_running(int(sleeper))
    assert lab_id in Lab.cleanup_stale()
    assert left_of(lab_id) == []
    assert eventually(lambda: not is_running(int(sleeper)))
    assert lab_id not in Lab.cleanup_stale()


def test_new_lab_removes_killed_one() -> None:
    """Nobody has to call anything: making the next lab is enough."""
    process = child("ready(); os.kill(os.getpid(), signal.SIGKILL)")
    out, _ = process.communicate(timeout=30)
    lab_id = out.split()[0]
    assert left_of(lab_id)
    with Lab():
        assert left_of(lab_id) == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("ready(); lab.close()", 0),
        ("ready(); lab.close(); lab.close()", 0),
        ("with lab: ready(); raise SystemExit(3)", 3),
        ("with lab: ready(); os.kill(os.getpid(), signal.SIGINT); time.sleep(1000)", -2),
        ("import threading\nwith lab: ready(); 1 / 0", 1),
    ],
    ids=["close", "close twice", "exit", "ctrl-c", "exception"],
)
def test_every_way_out(script: str, status: int) -> None:
    """However the block is left, nothing stays, and there is no warning about resources."""
    process = child(script)
    out, err = process.communicate(timeout=30)
    lab_id, sleeper = out.split()
    assert process.returncode == status, err
    assert left_of(lab_id) == []
    assert not is_running(int(sleeper))
    assert "ResourceWarning" not in err


def test_forgotten_lab_warns_at_exit() -> None:
    """A lab that nobody closed is closed at the end of the interpreter, with a warning."""
    out, err = child("import warnings; warnings.simplefilter('always'); ready()").communicate()
    lab_id, sleeper = out.split()
    assert "was never closed" in err
    assert left_of(lab_id) == []
    assert not is_running(int(sleeper))


def test_interrupted_close_can_be_finished() -> None:
    """Ctrl-C during `close` leaves a lab that the next `close` finishes."""
    lab = Lab()
    lab.node().pod("web")
    remove, lab._state.remove = lab._state.remove, _interrupt
    with pytest.raises(KeyboardInterrupt):
        lab.close()
    assert (STATE_DIR / lab.id).exists()
    lab._state.remove = remove
    lab.close()
    assert left_of(lab.id) == []


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_fork_does_not_remove_the_parents_lab() -> None:
    """A forked child that closes or forgets the lab leaves the parent's alone."""
    process = child(
        """
        pid = os.fork()
        if pid == 0:
            lab.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert pod.connect(pod.ip4, "80/TCP"), "the parent's server is gone"
        ready()
        lab.close()
        """
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert left_of(out.split()[0]) == []


def test_daemon_in_a_pod_is_killed() -> None:
    """A program that left its session and its parent dies with the lab all the same."""
    with Lab() as lab:
        pod = lab.node().pod("web")
        started = pod.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"], check=True)
        pid = int(started.stdout)
        assert eventually(lambda: is_running(pid))
    assert eventually(lambda: not is_running(pid))


def test_failed_pod_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last step of making a pod fails, the first ones are undone."""
    with Lab() as lab:
        node = lab.node()
        before = node.netlink.links(), left_of(lab.id)

        def fail(*_: object, **__: object) -> None:
            raise errors.KernelError(5, "as if")

        with monkeypatch.context() as patched:
            patched.setattr(node.netlink, "add_neighbour", fail)
            with pytest.raises(errors.KernelError, match="as if"):
                node.pod("web")
        assert (node.netlink.links(), left_of(lab.id)) == before
        assert node.pods == {}
        web = node.pod("web")
        assert web.ip4 == node.cidr4[2], "the address was not given back"


def test_name_is_unique_over_all_hosts() -> None:
    """A second host of a name is refused whatever it is, and changes nothing."""
    with Lab() as lab:
        node = lab.node()
        node.pod("web")
        before = left_of(lab.id)
        for again in (lambda: node.pod("web"), lambda: lab.node("web"), lambda: lab.outside("n1")):
            with pytest.raises(errors.ExistsError, match="unique"):
                again()
        with pytest.raises(errors.ExistsError):
            lab.outside("lan")
        assert left_of(lab.id) == before


def test_address_is_reused_by_another_pod() -> None:
    """A closed pod's device is gone at once, and its addresses serve the next pod."""
    with Lab() as lab:
        node = lab.node()
        web, old = node.pod("web"), node.pod("old")
        old.serve("80/TCP")
        assert web.connect(old.ip4, "80/TCP").reply == b"old\n"
        with pytest.raises(errors.ExistsError):
            node.pod("new", ip4=old.ip4)
        old.close()
        old.close()
        assert old.host_ifname not in [link.name for link in node.netlink.links()]
        assert web.connect(old.ip4, "80/TCP", timeout=0.2).error == "unreachable"
        new = node.pod("new", ip4=old.ip4, ip6=old.ip6)
        new.serve("80/TCP")
        for address in new.addresses:
            assert web.connect(address, "80/TCP").reply == b"new\n"
        with pytest.raises(errors.ClosedError):
            old.connect(web.ip4, "80/TCP")


def test_outside_host_comes_and_goes() -> None:
    """A closed host outside takes its routes along; one for a single node is unknown elsewhere."""
    with Lab() as lab:
        one, two = lab.node(), lab.node()
        world = lab.outside("world", of=one, ip4="203.0.113.7", ip6="2001:db8:7::1")
        assert one.ping(world.ip4) and one.ping(world.ip6)
        assert two.ping(world.ip4, timeout=0.2).error == "unreachable"
        world.close()
        assert one.ping(world.ip4, timeout=0.2).error == "unreachable"
        again = lab.outside("world", ip4="203.0.113.7", ip6="2001:db8:7::1")
        three = lab.node()
        assert all(node.ping(again.ip6) for node in (one, two, three))


def test_two_labs_at_once() -> None:
    """Labs share names and addresses and never meet."""
    with Lab() as first, Lab() as second:
        pods = [lab.node().pod("web") for lab in (first, second)]
        assert pods[0].ip4 == pods[1].ip4
        with pods[0].serve("80/TCP"):
            assert pods[0].connect(pods[0].ip4, "80/TCP")
            assert pods[1].connect(pods[1].ip4, "80/TCP").error == "refused"


def test_programs() -> None:
    """Output, status, failure, timeout and a program that does not exist."""
    with Lab() as lab:
        pod = lab.node().pod("web")
        assert pod.run(["cat"], input="hi").stdout == "hi"
        assert pod.run(["ping", "-c1", "-W1", pod.ip4]).returncode == 0
        assert pod.run(["false"]).returncode == 1
        with pytest.raises(errors.LabError, match="status 3: oh no"):
            pod.run(["sh", "-c", "echo oh no >&2; exit 3"], check=True)
        with pytest.raises(errors.LabError, match="did not end within"):
            pod.run(["sleep", "1000"], timeout=0.1)
        with pytest.raises(errors.LabError, match="is it installed"):
            pod.run(["no-such-program"])
        with pytest.raises(errors.LabError, match="empty"):
            pod.run([])
        stubborn = pod.popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        time.sleep(0.05)
        pod.close()
        assert stubborn.returncode == -signal.SIGKILL


def test_closed_lab() -> None:
    """A closed lab and its hosts say so."""
    with Lab() as lab:
        node = lab.node()
    for act in (lab.node, lambda: node.pod("web"), lambda: node.run(["true"])):
        with pytest.raises(errors.ClosedError):
            act()


def test_labs_leak_no_descriptor_and_no_thread() -> None:
    """Thirty labs with pods, servers, programs and probes end as they began."""
    _whole_lab()
    gc.collect()
    before = _descriptors(), threading.active_count()
    for _ in range(30):
        _whole_lab()
    gc.collect()
    assert (_descriptors(), threading.active_count()) == before


def _whole_lab() -> None:
    with Lab() as lab:
        node = lab.node()
        web, api = node.pod("web"), node.pod("api")
        lab.outside("world")
        api.serve("80/TCP")
        assert web.connect(api.ip4, "80/TCP")
        web.popen(["sleep", "1000"])


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_pods_on_one_node() -> None:
    """A pod costs less than 60 ms of CPU, and neither a thread nor a lasting netlink socket."""
    with Lab() as lab:
        node = lab.node()
        node.pod("first")
        descriptors, threads = _descriptors(), threading.active_count()
        start = time.process_time()
        pods = [node.pod(f"p{number}") for number in range(60)]
        each = (time.process_time() - start) / len(pods)
        assert threading.active_count() == threads
        assert _descriptors() - descriptors == len(pods)  # each holds its namespace
        assert pods[0].ping(pods[-1].ip4) and pods[-1].ping(pods[0].ip6)
        assert each < 0.06
