"""From an errno to the exception that says what to do."""

from __future__ import annotations

import errno

import pytest

from pyciliumlib.errors import FeatureError, InvalidError, KernelError, PrivilegeError
from pyciliumlib.kernel import failures
from pyciliumlib.kernel.failures import effective_capabilities, number_of, raise_for

NET_ADMIN, SYS_ADMIN, BPF = 1 << 12, 1 << 21, 1 << 39


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSYS, FeatureError, r"cannot load it: .* without bpf\(2\) \(CONFIG_BPF_SYSCALL\)"),
        (failures.ENOTSUPP, FeatureError, "this kernel does not do that"),
        (-errno.EOPNOTSUPP, FeatureError, "this kernel does not do that"),
        (-errno.EINVAL, KernelError, "cannot load it"),
        (errno.EPERM, PrivilegeError, "cannot load it: .*"),
    ],
)
def test_kinds(code: int, kind: type[KernelError], words: str) -> None:
    """Each is an OSError with the errno, whatever sign it came with."""
    with pytest.raises(kind, match=words) as caught:
        raise_for(code, "load it")
    assert isinstance(caught.value, OSError) and caught.value.errno == abs(code)


def test_without_bpf_the_feature_is_named() -> None:
    """So that who asked for something can tell that there is nothing at all."""
    with pytest.raises(FeatureError) as caught:
        raise_for(errno.ENOSYS, "load it")
    assert caught.value.feature == "bpf"


def test_a_hint_takes_the_place_of_the_guess() -> None:
    """Who calls knows better than the errno: a frozen map is no missing capability."""
    with pytest.raises(KernelError, match="cannot write: it is frozen") as caught:
        raise_for(errno.EPERM, "write", "it is frozen")
    assert not isinstance(caught.value, PrivilegeError)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (0, "CAP_BPF and CAP_NET_ADMIN are missing"),
        (BPF, "CAP_NET_ADMIN is missing"),
        (NET_ADMIN, "CAP_BPF is missing"),
        (BPF | NET_ADMIN, "CAP_SYS_ADMIN is missing"),
        (SYS_ADMIN, "a security module"),
    ],
)
def test_the_capability_that_is_missing(
    mask: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by what this thread has; where it has all, something else refuses."""
    held = effective_capabilities(f"Name:\tpython\nCapEff:\t{mask:016x}\n")
    monkeypatch.setattr(failures, "effective_capabilities", lambda: held)
    with pytest.raises(PrivilegeError, match=words):
        raise_for(errno.EPERM, "load it")


def test_numbers() -> None:
    """The kernel's are 32 bits wide."""
    assert [number_of(number) for number in (0, 1, (1 << 32) - 1)] == [0, 1, (1 << 32) - 1]
    for number in (-1, 1 << 32):
        with pytest.raises(InvalidError, match=str(number)):
            number_of(number)
