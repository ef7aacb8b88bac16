"""Network namespaces against the kernel."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyciliumlib import errors
from pyciliumlib.net import (
    Netlink,
    NetNS,
    NetNSWorker,
    delete_netns,
    netns_names,
    read_sysctl,
    write_sysctls,
)

NAME = f"pcle-ns-{os.getpid()}"


@pytest.fixture
def netns() -> Iterator[NetNS]:
    """A new namespace, deleted afterwards."""
    made = NetNS.create(NAME)
    yield made
    made.delete()


def test_create_open_delete() -> None:
    """A name leads to the same namespace until it is deleted; iproute2 sees it too."""
    with NetNS.create(NAME) as made:
        try:
            with NetNS.open(NAME) as again, NetNS.open(f"/run/netns/{NAME}") as by_path:
                assert made.inode == again.inode == by_path.inode != NetNS.current_inode()
            assert NAME in netns_names("pcle-")
            listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
            assert NAME in listed.stdout
        finally:
            delete_netns(NAME)
    delete_netns(NAME)
    assert NAME not in netns_names()
    with pytest.raises(errors.NotFoundError):
        NetNS.open(NAME)


def test_name_taken(netns: NetNS) -> None:
    """A second namespace of the name is refused, and the first is left alone."""
    with pytest.raises(errors.ExistsError, match="ip netns del"):
        NetNS.create(NAME)
    with NetNS.open(NAME) as again:
        assert again.inode == netns.inode


def test_enter_moves_this_thread_only(netns: NetNS) -> None:
    """Inside the body this thread is there, another is not; afterwards it is back."""
    home = NetNS.current_inode()
    elsewhere: list[int] = []
    with netns.enter():
        inside = NetNS.current_inode()
        # a child inherits its parent thread's namespace, so the other thread must exist already
        with NetNS.open(NAME) as same, same.enter():
            assert NetNS.current_inode() == inside
        assert NetNS.current_inode() == inside
    thread = threading.Thread(target=lambda: elsewhere.append(NetNS.current_inode()))
    thread.start()
    thread.join()
    assert (inside, NetNS.current_inode(), elsewhere) == (netns.inode, home, [home])


def test_enter_comes_back_after_an_exception(netns: NetNS) -> None:
    """An exception in the body does not leave the thread behind."""
    home = NetNS.current_inode()
    with pytest.raises(ZeroDivisionError), netns.enter():
        _ = 1 // 0
    assert NetNS.current_inode() == home


def test_call_returns_and_raises(netns: NetNS) -> None:
    """`call` gives back the result or the exception, and this thread never moves."""
    assert netns.call(NetNS.current_inode) == netns.inode
    with pytest.raises(ZeroDivisionError):
        netns.call(lambda: 1 // 0)


def test_worker_stays_inside(netns: NetNS) -> None:
    """A worker is one thread in the namespace, survives an exception, and can call itself."""
    worker = NetNSWorker(netns)
    assert worker.call(NetNS.current_inode) == netns.inode
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    assert worker.call(lambda: worker.call(threading.get_ident)) == worker.call(threading.get_ident)
    worker.close()
    worker.close()
    with pytest.raises(errors.ClosedError):
        worker.call(NetNS.current_inode)


def test_a_call_that_races_with_the_end_is_run_or_refused(netns: NetNS) -> None:
    """It never waits for a thread that has ended."""
    worker = NetNSWorker(netns)
    jobs = worker._jobs
    closing = threading.Thread(target=worker.close)

    class Slow:
        """Lets the end overtake a job that is about to be put."""

        get = jobs.get

        def put(self, job: object) -> None:
            if job is not None:
                closing.start()
                closing.join(0.2)
            jobs.put(job)  # type: ignore[arg-type]

    worker._jobs = Slow()  # type: ignore[assignment]
    answers: list[int] = []
    caller = threading.Thread(
        target=lambda: answers.append(worker.call(NetNS.current_inode)), daemon=True
    )
    caller.start()
    caller.join(2)
    closing.join()
    assert answers == [netns.inode]


def test_socket_stays_where_it_was_made(netns: NetNS) -> None:
    """A socket used from outside belongs to the namespace: its loopback is another one."""
    with Netlink(netns) as nl:
        nl.set_link("lo", up=True)
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("127.0.0.1", 0))
        port = inside.getsockname()[1]
        with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as friend:
            friend.sendto(b"x", ("127.0.0.1", port))
            inside.settimeout(1)
            assert inside.recv(10) == b"x"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"y", ("127.0.0.1", port))
            inside.settimeout(0.05)
            with pytest.raises(TimeoutError):
                inside.recv(10)


def test_sysctls_are_the_namespaces_own(netns: NetNS) -> None:
    """Writing changes the namespace, not the machine; a wrong name writes nothing."""
    outside = read_sysctl_here("ipv4/ip_default_ttl")
    write_sysctls(netns, {"ipv4/ip_default_ttl": 77})
    assert read_sysctl(netns, "ipv4/ip_default_ttl") == "77"
    assert read_sysctl_here("ipv4/ip_default_ttl") == outside != "77"
    with pytest.raises(errors.NotFoundError, match="ipv4/no_such"):
        write_sysctls(netns, {"ipv4/ip_default_ttl": 78, "ipv4/no_such": 1})
    assert read_sysctl(netns, "ipv4/ip_default_ttl") == "77"
    with pytest.raises(errors.KernelError):
        write_sysctls(netns, {"ipv4/ip_default_ttl": "many"})


def read_sysctl_here(name: str) -> str:
    """The machine's own value of a parameter."""
    with NetNS.current() as here:
        return read_sysctl(here, name)


def test_netlink_in_a_running_event_loop(netns: NetNS) -> None:
    """A notebook's thread has a loop that runs; the client must not run its own in there."""

    async def inside_loop() -> int:
        with Netlink(netns) as nl:
            return nl.link("lo").ifindex

    assert asyncio.run(inside_loop()) == 1


def test_a_thousand_namespaces_leak_no_descriptor() -> None:
    """Making, using and deleting leaves no descriptor, thread or name behind."""
    for _ in range(3):  # whatever is made once and kept
        _make_use_delete()
    gc.collect()
    descriptors, threads = _descriptors(), threading.active_count()
    for _ in range(1000):
        _make_use_delete()
    gc.collect()
    assert (_descriptors(), threading.active_count()) == (descriptors, threads)
    assert netns_names("pcle-") == ()


def test_a_hundred_netlink_clients_leak_no_descriptor(netns: NetNS) -> None:
    """Each client has an event loop, a socket and a thread, and closes all three."""
    with Netlink(netns) as nl:
        nl.links()
    gc.collect()
    descriptors, threads = _descriptors(), threading.active_count()
    for _ in range(100):
        with Netlink(netns) as nl, pytest.raises(errors.DeviceError):
            nl.link("none")
    gc.collect()
    assert (_descriptors(), threading.active_count()) == (descriptors, threads)


def _make_use_delete() -> None:
    netns = NetNS.create(NAME)
    with netns.enter():
        pass
    netns.delete()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_forgotten_namespace_warns() -> None:
    """One that is garbage before `close()` warns and closes its descriptor."""
    before = _descriptors()
    with pytest.warns(ResourceWarning, match="never closed"):
        NetNS.current()
        gc.collect()
    assert _descriptors() == before


def test_without_privilege() -> None:
    """Another user is told which capability is missing, and no name is left."""
    script = (
        "import os\n"
        "from pyciliumlib.errors import PrivilegeError\n"
        "from pyciliumlib.net import NetNS\n"
        "from pyciliumlib.net._syscalls import unshare_net\n"
        "from pyciliumlib.lab import Lab\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for make in (unshare_net, lambda: NetNS.create('pcle-nobody'), Lab):\n"
        "    try:\n"
        "        make()\n"
        "    except PrivilegeError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("root" in line for line in lines)
    assert "CAP_SYS_ADMIN" in lines[0]
    assert netns_names("pcle-nobody") == ()
