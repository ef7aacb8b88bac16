"""The maps of a kernel object, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pyciliumlib.errors import ExistsError, NotFoundError, nearest
from pyciliumlib.testing.fake_map import FakeMap

if TYPE_CHECKING:
    from pyciliumlib.kernel.mapspec import MapSpec


class FakeKernel(Mapping[str, FakeMap]):
    """A collection of `FakeMap`s by name.

    Maps are made on first use from the specs of a kernel object (`ObjectSpec.maps.values()`),
    which needs no root; one of a type that does not exist in memory is refused then.

    >>> kernel = FakeKernel()
    >>> kernel.add(FakeMap("hash", "u4", "u4", max_entries=8, name="services"))
    >>> kernel["services"].max_entries
    8
    """

    def __init__(self, specs: Iterable[MapSpec] = ()) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._maps: dict[str, FakeMap] = {}

    def add(self, map_: FakeMap) -> None:
        """Add a map under its name; raises ExistsError if it is taken."""
        if map_.name in self:
            raise ExistsError(f"there is a map {map_.name!r} already")
        self._maps[map_.name] = map_

    def __getitem__(self, name: str) -> FakeMap:
        if name not in self:
            raise NotFoundError(f"no map {name!r}{nearest(name, self)}")
        if name not in self._maps:
            self._maps[name] = FakeMap.from_spec(self._specs[name])
        return self._maps[name]

    def __contains__(self, name: object) -> bool:
        return name in self._maps or name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter({**self._specs, **self._maps})

    def __len__(self) -> int:
        return len({**self._specs, **self._maps})
