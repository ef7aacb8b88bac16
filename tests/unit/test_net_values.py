"""The net room's checks and its translation of errors; no root needed."""

from __future__ import annotations

import errno

import pytest

from pyciliumlib import errors
from pyciliumlib.net import NetNS, check_ifname, delete_netns, read_sysctl
from pyciliumlib.net._errors import kernel_error
from pyciliumlib.net.link import check_mac


@pytest.mark.parametrize("name", ["e", "lxc-web", "a" * 15, "eth0.100"])
def test_device_name_accepted(name: str) -> None:
    """What the kernel takes is returned unchanged."""
    assert check_ifname(name) == name


@pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8, "a b", "a/b", "a:b", ".", "..", "veth%d"])
def test_device_name_refused(name: str) -> None:
    """What the kernel refuses, or would change, is refused with the rule."""
    with pytest.raises(errors.InvalidError, match="1 to 15 bytes"):
        check_ifname(name)


@pytest.mark.parametrize("mac", ["", "0a:58", "0a:58:0a:f4:01:0g", "01:00:5e:00:00:01", "x" * 17])
def test_mac_refused(mac: str) -> None:
    """A malformed or a multicast address is no device's."""
    with pytest.raises(errors.InvalidError, match="MAC"):
        check_mac(mac)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EPERM, errors.PrivilegeError),
        (errno.EEXIST, errors.ExistsError),
        (errno.ENODEV, errors.DeviceError),
        (errno.ESRCH, errors.NotFoundError),
        (errno.EADDRNOTAVAIL, errors.NotFoundError),
        (errno.EOPNOTSUPP, errors.FeatureError),
        (errno.EINVAL, errors.InvalidError),
        (errno.ENETUNREACH, errors.KernelError),
        (errno.EBUSY, errors.KernelError),
    ],
)
def test_errno_becomes_typed_error(code: int, expected: type[Exception]) -> None:
    """Each errno has its place in the tree, and the message says what was being done."""
    error = kernel_error(code, "adding a route")
    assert type(error) is expected
    assert "adding a route" in str(error)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-x", "a" * 129])
def test_namespace_name_refused(name: str) -> None:
    """A name that would leave the directory of namespaces is refused before anything is done."""
    with pytest.raises(errors.InvalidError, match="no name for a namespace"):
        NetNS.create(name)
    with pytest.raises(errors.InvalidError, match="no name for a namespace"):
        delete_netns(name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "ipv4/../../kernel/hostname"])
def test_sysctl_name_refused(name: str) -> None:
    """A parameter's name cannot lead out of /proc/sys/net."""
    with NetNS.current() as here, pytest.raises(errors.InvalidError, match="relative"):
        read_sysctl(here, name)


def test_open_what_is_no_namespace() -> None:
    """A missing name and a file of another kind are told apart."""
    with pytest.raises(errors.NotFoundError, match="ip netns list"):
        NetNS.open("pcle-no-such")
    with pytest.raises(errors.InvalidError, match="no network namespace"):
        NetNS.open("/proc/self/ns/uts")


def test_closed_namespace() -> None:
    """A closed one says so instead of using a number that may belong to another file by now."""
    here = NetNS.current()
    here.close()
    here.close()
    with pytest.raises(errors.ClosedError):
        here.call(lambda: None)
