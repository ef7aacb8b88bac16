"""Label filters."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyciliumlib.errors import LabelError
from pyciliumlib.identity import FilterEntry, Label, LabelFilter


@pytest.mark.parametrize(
    ("entries", "label", "kept"),
    [
        ("", "k8s:app=web", True),
        ("", "k8s:io.kubernetes.pod.namespace=a", True),
        ("", "k8s:io.kubernetes.foo=a", False),
        ("", "k8s:my.k8s.io=a", True),
        ("!app", "k8s:app=web", False),
        ("!app", "k8s:my-app=web", True),
        ("!a app", "k8s:app=web", True),
        ("k8s:!app", "cni:app=web", True),
        ("k8s:!app", "k8s:app=web", False),
        ("id\\.", "k8s:id.x=1", True),
        ("id\\.", "k8s:app=web", False),
        ("id\\.", "k8s:io.kubernetes.pod.namespace=a", True),
        ("id\\.", "reserved:host", True),
        ("!x|pp", "k8s:app=web", True),
        ("!x|ap", "k8s:app=web", False),
        ("!(?i)APP", "k8s:app=web", False),
    ],
)
def test_user_entries(entries: str, label: str, kept: bool) -> None:
    """They join the defaults; the first include of the user drops what no include matches."""
    assert kept == LabelFilter.parse(entries).keeps(Label.parse(label))


@pytest.mark.parametrize("text", ["", "k8s:", "!", "k9s:app", "app["])
def test_entries_that_are_refused(text: str) -> None:
    """No pattern, an unknown source, no regular expression."""
    with pytest.raises(LabelError):
        FilterEntry.parse(text)


def test_a_file_replaces_the_defaults(tmp_path: Path) -> None:
    """Version 1 of the label-prefix file."""
    path = tmp_path / "prefixes.json"
    path.write_text(
        '{"version": 1, "valid-prefixes": [{"prefix": "app", "source": "k8s"},'
        ' {"prefix": "app.secret", "invert": true}]}'
    )
    labels = LabelFilter.load(path)
    assert labels.keeps(Label.parse("k8s:app=web"))
    assert not labels.keeps(Label.parse("k8s:app.secret=x"))
    assert not labels.keeps(Label.parse("k8s:io.kubernetes.pod.namespace=a"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 2, "valid-prefixes": [{"prefix": "a"}]}',
        '{"version": 1}',
        '{"version": 1, "valid-prefixes": ["a"]}',
        '{"version": 1, "valid-prefixes": [{"prefix": 1}]}',
        '{"version": 1, "valid-prefixes": [{"prefix": "a", "reverse": true}]}',
        '{"version": 1, "valid-prefixes": [{"prefix": "a", "source": "k9s"}]}',
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str) -> None:
    """Each is told by the name of the file."""
    path = tmp_path / "prefixes.json"
    path.write_text(text)
    with pytest.raises(LabelError, match=r"prefixes\.json"):
        LabelFilter.load(path)
    with pytest.raises(LabelError, match=r"missing\.json"):
        LabelFilter.load(tmp_path / "missing.json")
