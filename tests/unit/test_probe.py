"""Feature probes without a kernel: the table of features, what answers say, how they print."""

from __future__ import annotations

import errno
import re

import pytest

from pyciliumlib import errors
from pyciliumlib.kernel import probe_bpf, probe_net, probe_system
from pyciliumlib.kernel.anchor import After, Before, Head, Tail, anchor_flags
from pyciliumlib.kernel.features import HTML_ROWS, Answer, Feature, Features, Support
from pyciliumlib.kernel.known_features import KNOWN
from pyciliumlib.kernel.mounts import _unescape
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.probe_bpf import judge

TCX = Feature("tcx", "hook", "ordered tc links", (6, 6), "e420bed02507")
NOVEL = Feature("novel", "hook", "a <script>alert(1)</script> hook")


def features(**answers: Answer) -> Features:
    return Features(answers, {"tcx": TCX, "novel": NOVEL})


def test_every_feature_has_one_probe() -> None:
    """Each known feature is probed in exactly one place, and no probe is without a feature."""
    probed = [*probe_bpf.PROBES, *probe_system.PROBES, *probe_net.PROBES]
    assert sorted(probed) == sorted(KNOWN)


@pytest.mark.parametrize("feature", KNOWN.values(), ids=lambda feature: feature.name)
def test_origins_are_well_formed(feature: Feature) -> None:
    """A commit is twelve hexadecimal digits and comes with a release."""
    if feature.commit is not None:
        assert re.fullmatch(r"[0-9a-f]{12}", feature.commit)
        assert feature.since is not None
    assert feature.what


def test_unknown_names_are_refused() -> None:
    """A misspelt feature is an error that names the nearest one, never a quiet no."""
    with pytest.raises(errors.NotFoundError, match='did you mean "netkit"'):
        probe("netkitt")
    answers = features(tcx=Answer(Support.YES))
    for ask in (answers.has, answers.require, answers.__getitem__):
        with pytest.raises(errors.NotFoundError, match='did you mean "tcx"'):
            ask("tcxx")
    with pytest.raises(errors.NotFoundError):
        answers.has("novel")  # known, and not asked for


def test_require_says_what_why_and_since_when() -> None:
    """The error names the caller, the feature, the kernel's reason and where the feature came."""
    answers = features(tcx=Answer(Support.NO, "link creation: EINVAL", errno.EINVAL))
    with pytest.raises(errors.FeatureError) as caught:
        answers.require("tcx", by="the datapath")
    assert caught.value.feature == "tcx"
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        "the datapath needs ordered tc links (tcx), which this kernel lacks: link creation: "
        "EINVAL; it exists since Linux 6.6, commit e420bed02507 (Invalid argument)"
    )


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(Support.NO), errors.FeatureError, "lacks"),
        (Answer(Support.UNKNOWN, "load: ENOMEM", errno.ENOMEM), errors.FeatureError, "may lack"),
        (Answer(Support.UNKNOWN, "load: EPERM", errno.EPERM), errors.PrivilegeError, "CAP_BPF"),
    ],
)
def test_require_fails_closed(answer: Answer, error: type[Exception], words: str) -> None:
    """Only a yes lets the caller go on; not being allowed to ask is told apart from a no."""
    answers = features(novel=Answer(Support.YES), tcx=answer)
    with pytest.raises(error, match=words):
        answers.require("novel", "tcx")
    assert not answers.has("tcx")
    answers.require("novel")


def test_table() -> None:
    """One aligned line a feature below the headings."""
    answers = features(tcx=Answer(Support.NO, "EINVAL"), novel=Answer(Support.YES))
    assert str(answers).splitlines() == [
        "group  feature  here  since                           what",
        "hook   tcx      no    Linux 6.6, commit e420bed02507  ordered tc links (EINVAL)",
        "hook   novel    yes                                   a <script>alert(1)</script> hook",
    ]
    assert repr(answers) == "<Features 1 yes, 1 no>"


def test_html_is_escaped() -> None:
    """Nothing of a feature's or a kernel's text becomes markup."""
    shown = features(novel=Answer(Support.NO, '"<b>&'))._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "&quot;&lt;b&gt;&amp;" in shown


def test_html_is_capped() -> None:
    """A long table is cut, and says by how much."""
    known = {f"f{i}": Feature(f"f{i}", "g", "w") for i in range(HTML_ROWS + 7)}
    shown = Features(dict.fromkeys(known, Answer(Support.YES)), known)._repr_html_()
    assert shown.count("<tr>") == 1 + HTML_ROWS + 1
    assert "7 more" in shown


@pytest.mark.parametrize(
    ("result", "support"),
    [
        (0, Support.YES),
        (17, Support.YES),
        (-errno.EINVAL, Support.NO),
        (-errno.EPERM, Support.UNKNOWN),
        (-errno.ENOMEM, Support.UNKNOWN),
        (-probe_bpf.ENOTSUPP, Support.UNKNOWN),
    ],
)
def test_judge(result: int, support: Support) -> None:
    """Only the errno that means "no such thing" is a no; the rest is inconclusive."""
    answer = judge(result, "attempt")
    assert answer.support is support
    assert answer.errno == max(0, -result)
    assert bool(answer.reason) == (result < 0)


def test_mount_points_are_unescaped() -> None:
    """/proc/self/mountinfo writes blanks and backslashes in octal."""
    assert _unescape(r"/mnt/a\040b\134c") == r"/mnt/a b\c"


class Program:
    fd = 7


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        (Head(), (8, 0)),
        (Tail(), (16, 0)),
        (Before(Program()), (8, 7)),
        (After(Program()), (16, 7)),
        (Before(42), (8 | 32, 42)),
        (After(42), (16 | 32, 42)),
    ],
)
def test_anchor_flags(anchor: Head | Tail | Before | After, expected: tuple[int, int]) -> None:
    """BPF_F_BEFORE, _AFTER and _ID as include/uapi/linux/bpf.h numbers them."""
    assert anchor_flags(anchor) == expected
