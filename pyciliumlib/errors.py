"""Every exception that pyciliumlib raises on purpose.

    PyCiliumError
    ├── InvalidError(ValueError)            a value that can never be right
    │   ├── LabelError                      a label or a label selector
    │   ├── UnitError                       "10Mbit", "80/TCP" and the like
    │   ├── PolicyError                     a policy document; has .problems, one per field
    │   │   └── UnsupportedError            known to Cilium, not implemented here (yet)
    │   └── ServiceError                    a service document or config; has .problems as well
    ├── NotFoundError(KeyError)             no such map, endpoint, rule, config variable
    ├── ExistsError                         the name or address is taken
    ├── ExhaustedError                      no number is left: identities, endpoint ids
    ├── CheckError                          a backend's answer to a health check is a bad one
    ├── ClosedError                         used after close()
    ├── StateError                          pinned state that cannot be used
    │   ├── LockedError                     another process owns the pin root
    │   ├── LayoutError                     pinned by another layout version
    │   └── MismatchError                   a pinned map differs; has .differences
    ├── KernelError(OSError)                the kernel refused; keeps errno
    │   ├── PrivilegeError(PermissionError) not root, or which capability is missing
    │   ├── FeatureError                    this kernel lacks a feature; has .feature
    │   ├── MapFullError                    E2BIG or ENOSPC on a map update
    │   ├── VerifierError                   has .summary, .log and .source
    │   └── DeviceError                     no such device, or it vanished
    ├── ObjectError                         a BPF object file that cannot be used
    └── LabError                            a namespace, pod or process of the lab failed

A message says what failed, the likely cause and the mend.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence


class PyCiliumError(Exception):
    """The root of the tree."""


class InvalidError(PyCiliumError, ValueError):
    """A value that can never be right, wherever it is used."""


class LabelError(InvalidError):
    """A label, or a selector over labels, that does not parse."""


class UnitError(InvalidError):
    """A quantity, a port or a prefix that does not parse."""


class PolicyError(InvalidError):
    """A policy document that is refused.

    `problems` holds one line for each fault found, so that all can be mended in one go.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([message, *self.problems]))


class UnsupportedError(PolicyError):
    """A field that Cilium knows and this version does not implement; refused, never ignored."""


class ServiceError(InvalidError):
    """A Service or EndpointSlice document, or a load balancer's config, that is refused.

    `problems` holds one line for each fault found, so that all can be mended in one go.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([message, *self.problems]))


class NotFoundError(PyCiliumError, KeyError):
    """There is nothing of that name."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class ExistsError(PyCiliumError):
    """The name, number or address is taken already."""


class ExhaustedError(PyCiliumError):
    """A range of numbers is used up."""


class CheckError(PyCiliumError):
    """A backend answered a health check, and not as it should."""


class ClosedError(PyCiliumError):
    """The object was used after `close()`."""


class StateError(PyCiliumError):
    """Pinned or stored state that cannot be used as it is."""


class LockedError(StateError):
    """Another process owns this pin root."""


class LayoutError(StateError):
    """State written by a version whose layout differs from this one's."""


class MismatchError(StateError):
    """A pinned map is not the one that was asked for; `differences` lists every difference."""

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        self.differences = tuple(differences)
        super().__init__("\n  ".join([message, *self.differences]))


class KernelError(PyCiliumError, OSError):
    """The kernel refused a call; `errno` is the kernel's."""

    def __init__(self, errno_: int, message: str) -> None:
        OSError.__init__(self, errno_, message)
        self.message = message

    def __str__(self) -> str:
        name = os.strerror(self.errno) if self.errno else "unknown error"
        return f"{self.message} ({name})"


class PrivilegeError(KernelError, PermissionError):
    """Not root, or a capability is missing; the message names it."""


class FeatureError(KernelError):
    """This kernel lacks a feature that was asked for; `feature` names it."""

    def __init__(self, errno_: int, message: str, feature: str) -> None:
        super().__init__(errno_, message)
        self.feature = feature


class MapFullError(KernelError):
    """The map holds `max_entries` already."""


class VerifierError(KernelError):
    """The verifier rejected a program.

    `summary` is the verdict in one line, `source` the line of C it stopped at (if the object
    carries line information), `log` the whole log.
    """

    def __init__(self, errno_: int, program: str, summary: str, log: str, source: str = "") -> None:
        at = f"\n  at {source}" if source else ""
        super().__init__(errno_, f"program {program!r} was rejected: {summary}{at}")
        self.program = program
        self.summary = summary
        self.log = log
        self.source = source


class DeviceError(KernelError):
    """There is no such network device, or it vanished."""


class ObjectError(PyCiliumError):
    """A BPF object file that cannot be parsed or does not fit this library."""


class LabError(PyCiliumError):
    """A namespace, pod or process of the lab failed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known spelling, or an empty string.

    >>> nearest("toPort", ["toPorts", "toCIDR"])
    ' (did you mean "toPorts"?)'
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{match[0]}"?)' if match else ""
