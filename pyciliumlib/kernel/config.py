"""The configuration of an object: its `const volatile` variables, set before it is loaded.

They live in `.rodata`, so the verifier knows their values and prunes what they switch off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from pyciliumlib.errors import InvalidError, NotFoundError, nearest
from pyciliumlib.kernel.codec import Codec


@frozen
class Variable:
    """Where a variable lies and what it says about itself (`DOC("...")` in C)."""

    name: str
    section: str
    offset: int
    codec: Codec
    doc: str = ""


class Config(Mapping[str, Any]):
    """Variables by name: `config["policy_enabled"] = True`; reading gives what will be loaded."""

    def __init__(self, variables: Mapping[str, Variable], sections: Mapping[str, bytes]) -> None:
        self._variables = dict(variables)
        self._defaults = dict(sections)
        self._values: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> Any:
        variable = self.variable(name)
        if name in self._values:
            return variable.codec.decode(self._values[name])
        default = self._defaults[variable.section]
        end = variable.offset + variable.codec.size
        return variable.codec.decode(default[variable.offset : end])

    def __setitem__(self, name: str, value: Any) -> None:
        """Raises NotFoundError for an unknown name, InvalidError for a value of another type."""
        variable = self.variable(name)
        try:
            self._values[name] = variable.codec.encode(value)
        except InvalidError as error:
            raise InvalidError(f"config {name!r} ({variable.codec.name}): {error}") from None

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several; all or, if one is wrong, none."""
        before = dict(self._values)
        try:
            for name, value in values.items():
                self[name] = value
        except (InvalidError, NotFoundError):
            self._values = before
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    def variable(self, name: str) -> Variable:
        try:
            return self._variables[name]
        except KeyError:
            raise NotFoundError(
                f"the object has no config variable {name!r}{nearest(name, self._variables)}; "
                f"it has {', '.join(sorted(self._variables)) or 'none'}"
            ) from None

    def doc(self, name: str) -> str:
        """What the C source says about a variable."""
        return self.variable(name).doc

    def copy(self) -> Config:
        same = Config(self._variables, self._defaults)
        same._values = dict(self._values)
        return same

    def sections(self) -> dict[str, bytes]:
        """The bytes of each section that differs from the object file's."""
        changed: dict[str, bytearray] = {}
        for name, data in self._values.items():
            variable = self._variables[name]
            section = changed.setdefault(
                variable.section, bytearray(self._defaults[variable.section])
            )
            section[variable.offset : variable.offset + len(data)] = data
        return {name: bytes(data) for name, data in changed.items()}

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.items())})"
