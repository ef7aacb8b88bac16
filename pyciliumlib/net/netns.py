"""Network namespaces: create, open, enter and delete them.

A namespace is a property of a *thread*. Nothing here moves a thread that it does not bring back,
and a socket stays for ever in the namespace in which it was made, whichever thread uses it later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket as _socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import (
    ClosedError,
    ExistsError,
    FeatureError,
    InvalidError,
    KernelError,
    NotFoundError,
)
from pyciliumlib.net import _syscalls

T = TypeVar("T")

#: Where iproute2 keeps named namespaces; `ip netns` and we see each other's.
RUN_DIR = Path("/run/netns")
_HERE = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


class NetNS(Closeable):
    """A network namespace, held by an open descriptor.

    Make one with `create`, `open`, `of_process` or `current`. `close()` lets go of the descriptor;
    `delete()` also removes the name, and the kernel frees the namespace when the last process,
    socket and descriptor in it is gone.

    >>> with NetNS.current() as here:
    ...     here.call(lambda: NetNS.current_inode()) == here.inode
    True
    """

    def __init__(self, fd: int, *, name: str | None = None, path: Path | None = None) -> None:
        """Own `fd`, an open descriptor of a network namespace."""
        self._fd = fd
        self.name = name
        self.path = path
        self.inode = os.fstat(fd).st_ino

    # -- making ------------------------------------------------------------------------------

    @classmethod
    def create(cls, name: str) -> NetNS:
        """Make a namespace called `name`, as `ip netns add` does.

        Raises `ExistsError` if the name is taken, `PrivilegeError` without CAP_SYS_ADMIN.
        """
        path = _path_of(name)
        _prepare_run_dir()
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
        except FileExistsError:
            raise ExistsError(
                f"network namespace {name!r} exists: delete it (ip netns del {name}) "
                "or take another name"
            ) from None
        try:
            in_new_thread(lambda: _unshare_onto(path))
            return cls(_open_fd(path), name=name, path=path)
        except BaseException:
            _remove(path)
            raise

    @classmethod
    def open(cls, name: str | os.PathLike[str]) -> NetNS:
        """Open a namespace by its name (`ip netns list`) or by a path that contains a slash.

        Raises `NotFoundError` if there is none, `InvalidError` if the file is something else.
        """
        text = os.fspath(name)
        if "/" in text:
            return cls(_open_fd(Path(text)), path=Path(text))
        path = _path_of(text)
        return cls(_open_fd(path), name=text, path=path)

    @classmethod
    def of_process(cls, pid: int) -> NetNS:
        """Open the namespace that process `pid` runs in."""
        path = Path(f"/proc/{pid}/ns/net")
        return cls(_open_fd(path), path=path)

    @classmethod
    def current(cls) -> NetNS:
        """Open the namespace of the calling thread."""
        return cls(_open_fd(Path(_HERE)))

    @staticmethod
    def current_inode() -> int:
        """The number that the kernel gives the calling thread's namespace."""
        return Path(_HERE).stat().st_ino

    # -- using -------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """The open descriptor; valid until `close()`."""
        if self._fd < 0:
            raise ClosedError(f"{self} is closed")
        return self._fd

    @contextlib.contextmanager
    def enter(self) -> Iterator[NetNS]:
        """Run the body of a `with` inside the namespace, in the calling thread.

        Other threads stay where they are. Do not `await` in the body: another task would run in
        this namespace. `/proc/sys/net` and netlink follow the thread; a mounted `/sys` does not.
        Python runs signal handlers in the main thread between any two steps, so there a Ctrl-C at
        the very moment of leaving can leave it inside: prefer `call` in the main thread.
        """
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _syscalls.setns(self.fd)
            yield self
        finally:
            try:
                _syscalls.setns(home)
            finally:
                os.close(home)

    @property
    def cookie(self) -> int:
        """The number by which BPF programs know the namespace.

        Raises FeatureError before Linux 5.14.
        """
        with self.socket(_socket.AF_INET, _socket.SOCK_DGRAM) as inside:
            try:
                raw = inside.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            except OSError as error:
                raise FeatureError(
                    error.errno or 0, "the kernel tells no namespace's cookie", "netns_cookie"
                ) from error
        return int.from_bytes(raw, sys.byteorder)

    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn()` inside the namespace in a thread of its own, and return what it returns.

        Unlike `enter` this leaves the calling thread alone altogether: signal handlers and an event
        loop that runs in it never see the other namespace.
        """
        fd = self.fd

        def inside() -> T:
            _syscalls.setns(fd)
            return fn()

        return in_new_thread(inside)

    def socket(self, family: int, kind: int, proto: int = 0) -> _socket.socket:
        """A socket that lives in the namespace and can be used from any thread."""
        return self.call(lambda: _socket.socket(family, kind, proto))

    # -- ending ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the descriptor; the namespace itself stays if it has a name or users."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def delete(self) -> None:
        """Remove the name and close. A name that is gone already is no error."""
        self.close()
        if self.name is not None:
            delete_netns(self.name)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<NetNS {self.name or self.path or 'current'} inode={self.inode}>"


def netns_names(prefix: str = "") -> tuple[str, ...]:
    """The names of all named namespaces that begin with `prefix`, sorted."""
    try:
        found = [path.name for path in RUN_DIR.iterdir()]
    except FileNotFoundError:
        return ()
    return tuple(sorted(name for name in found if name.startswith(prefix)))


def delete_netns(name: str) -> None:
    """Remove the name of a namespace, as `ip netns del` does; a missing one is no error.

    Processes and sockets that are still inside keep the namespace itself alive.
    """
    _remove(_path_of(name))


def every_netns() -> Iterator[NetNS]:
    """Every namespace that a process runs in or a mount keeps; each is closed after its turn.

    Those that go meanwhile, and those of other users when not root, are left out.
    """
    seen: set[int] = set()
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *_mounted()):
        try:
            if path.stat().st_ino in seen:
                continue
            netns = NetNS(_open_fd(path), path=path)
        except (OSError, NotFoundError, InvalidError):
            continue
        with netns:
            seen.add(netns.inode)
            yield netns


def _mounted() -> list[Path]:
    """Where namespaces are mounted: `ip netns`, container runtimes."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): id parent dev root MOUNTPOINT ...
        _, _, _, root, point = line.split(" ")[:5]
        if root.startswith("net:["):
            found.append(Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)))
    return found


def processes_in(inodes: set[int]) -> dict[int, int]:
    """The processes whose network namespace is among `inodes`: pid to inode.

    Processes that end meanwhile, and those of other users when not root, are left out.
    """
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        inode = netns_inode_of(int(process.name))
        if inode in inodes:
            found[int(process.name)] = inode
    return found


def netns_inode_of(pid: int) -> int:
    """The number of the namespace of a process; 0 if it is gone or another user's."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def in_new_thread(fn: Callable[[], T]) -> T:
    """Run `fn()` in a thread that ends with it, so that its namespace ends with it too."""
    outcome: Future[T] = Future()
    threading.Thread(
        target=settle, args=(outcome, fn), name="pyciliumlib-netns", daemon=True
    ).start()
    try:
        return outcome.result()
    finally:
        del outcome  # else an exception, its traceback and the future keep one another alive


def settle(outcome: Future[T], fn: Callable[[], T]) -> None:
    """Run `fn()` and put its result, or whatever it raises, into `outcome`."""
    try:
        outcome.set_result(fn())
    except BaseException as error:  # handed to whoever waits, KeyboardInterrupt included
        outcome.set_exception(error)


def _path_of(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name!r} is no name for a namespace: use up to 128 letters, digits and any of _.:-"
        )
    return RUN_DIR / name


def _open_fd(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"no network namespace at {path}: see `ip netns list`") from None
    except OSError as error:
        raise KernelError(error.errno or 0, f"cannot open the namespace {path}") from error
    if not _is_netns(fd):
        os.close(fd)
        raise InvalidError(f"{path} is no network namespace: it was deleted, or the path is wrong")
    return fd


def _is_netns(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _syscalls.CLONE_NEWNET
    except OSError:  # ENOTTY: a file of another kind
        return False


def _unshare_onto(path: Path) -> None:
    _syscalls.unshare_net()
    _syscalls.mount(_HERE, str(path), _syscalls.MS_BIND)


def _prepare_run_dir() -> None:
    """Make the directory a shared mount, as iproute2 does, under the lock that iproute2 takes.

    Shared means that other mount namespaces see names come and go; else a deleted namespace would
    be kept alive by a copy of its mount.
    """
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shared = _syscalls.MS_SHARED | _syscalls.MS_REC
        try:
            _syscalls.mount("", str(RUN_DIR), shared)
        except KernelError as error:
            if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
                raise
            _syscalls.mount(str(RUN_DIR), str(RUN_DIR), _syscalls.MS_BIND | _syscalls.MS_REC)
            _syscalls.mount("", str(RUN_DIR), shared)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    while path.exists():
        try:
            _syscalls.umount(str(path))
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted, or gone
                raise
            break
    deadline = time.monotonic() + 1.0
    while True:
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            # A mount that another mount namespace is just copying keeps the file busy for a moment.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise KernelError(error.errno or 0, f"cannot remove {path}") from error
            time.sleep(0.01)
        else:
            return
