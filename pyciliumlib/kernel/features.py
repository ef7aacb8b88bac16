"""What a kernel can do, as values: the features known here, and the answers to probes for them."""

from __future__ import annotations

import enum
import errno
import html
from collections.abc import Iterator, Mapping

import attrs

from pyciliumlib.errors import FeatureError, NotFoundError, PrivilegeError, nearest

HTML_ROWS = 200


class Support(enum.Enum):
    """Whether the kernel has a feature; UNKNOWN when the probe itself could not be made."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@attrs.frozen
class Feature:
    """One thing a kernel may have.

    `since` is the first release with it, `commit` the one that brought it (None: not known for
    sure). A `volatile` one belongs to the process or the machine's set-up, so its answer is never
    cached.
    """

    name: str
    group: str
    what: str
    since: tuple[int, int] | None = None
    commit: str | None = None
    volatile: bool = False

    @property
    def origin(self) -> str:
        """`Linux 6.6, commit e420bed02507`, as far as it is known."""
        if self.since is None:
            return ""
        release = f"Linux {self.since[0]}.{self.since[1]}"
        return f"{release}, commit {self.commit}" if self.commit else release


@attrs.frozen
class Answer:
    """What a probe found; `reason` says why it is not a plain yes, `errno` is the kernel's."""

    support: Support
    reason: str = ""
    errno: int = 0


@attrs.frozen(repr=False)
class Features(Mapping[str, Answer]):
    """The answers of `probe()`, by name: a mapping, printed as a table.

    features = probe()
    features.has("tcx")
    features.require("tcx", by="ordered attachment")
    """

    answers: Mapping[str, Answer]
    known: Mapping[str, Feature]

    def __getitem__(self, name: str) -> Answer:
        try:
            return self.answers[name]
        except KeyError:
            raise NotFoundError(
                f"there is no answer for feature {name!r}{nearest(name, self.known)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def has(self, name: str) -> bool:
        """Whether the kernel has it for sure; raises NotFoundError for an unknown name."""
        return self[name].support is Support.YES

    def require(self, *names: str, by: str = "this call") -> None:
        """Go on only if the kernel has all of `names`; `by` says what needs them.

        Raises FeatureError for the first that is missing, PrivilegeError where the probe was not
        allowed to find out.
        """
        for name in names:
            answer = self[name]
            if answer.support is Support.YES:
                continue
            feature = self.known[name]
            if answer.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(
                    answer.errno,
                    f"{by} needs {feature.what} ({name}), and probing for it needs CAP_BPF and "
                    "CAP_NET_ADMIN (or root)",
                )
            origin = f"; it exists since {feature.origin}" if feature.origin else ""
            reason = f": {answer.reason}" if answer.reason else ""
            verb = "lacks" if answer.support is Support.NO else "may lack"
            raise FeatureError(
                answer.errno or errno.EOPNOTSUPP,
                f"{by} needs {feature.what} ({name}), which this kernel {verb}{reason}{origin}",
                name,
            )

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in [_HEADINGS, *rows]) for i in range(len(_HEADINGS) - 1)]
        lines = []
        for row in [_HEADINGS, *rows]:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = {s: sum(a.support is s for a in self.answers.values()) for s in Support}
        return f"<Features {', '.join(f'{n} {s.value}' for s, n in counts.items() if n)}>"

    def _repr_html_(self) -> str:
        rows = self._rows()
        body = "".join(_html_row("td", row) for row in rows[:HTML_ROWS])
        left_out = len(rows) - HTML_ROWS
        if left_out > 0:
            body += f'<tr><td colspan="{len(_HEADINGS)}">{left_out} more</td></tr>'
        return f"<table>{_html_row('th', _HEADINGS)}{body}</table>"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for name, answer in self.answers.items():
            feature = self.known[name]
            note = f"{feature.what} ({answer.reason})" if answer.reason else feature.what
            rows.append((feature.group, name, answer.support.value, feature.origin, note))
        return rows


_HEADINGS = ("group", "feature", "here", "since", "what")


def _html_row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
