"""What a table needs of a map: met by a map of the kernel and by one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:  # importing numpy takes longer than the rest of the package
    import numpy as np
    import numpy.typing as npt

#: "any" creates or replaces, "new" refuses a key that exists, "exist" one that does not.
UpdateMode: TypeAlias = Literal["any", "new", "exist"]
#: A C-contiguous array of exactly the map's key or value dtype.
Column: TypeAlias = "npt.NDArray[Any]"


@runtime_checkable
class MapLike(Protocol):
    """A typed BPF map.

    Single keys and values are given as Python values (numbers, tuples, records, or a numpy
    scalar of the dtype); the batch calls take and give arrays of the dtypes.
    """

    @property
    def key_dtype(self) -> np.dtype[Any]: ...

    @property
    def value_dtype(self) -> np.dtype[Any]: ...

    @property
    def max_entries(self) -> int: ...

    def lookup(self, key: Any) -> Any:
        """The value of `key` (in a longest-prefix map: of the longest that covers it).

        Raises NotFoundError where there is none.
        """

    def update(self, key: Any, value: Any, mode: UpdateMode = "any") -> None:
        """Write one entry.

        Raises MapFullError where no room is left, ExistsError for mode "new" on a key that is
        there, NotFoundError for mode "exist" on one that is not.
        """

    def delete(self, key: Any) -> bool:
        """Remove one entry; False if it was not there."""

    def pop(self, key: Any, default: Any = ...) -> Any:
        """Remove one entry and return its value; `default`, or NotFoundError, if it was not there.

        What a program writes meanwhile is returned or stays.
        """

    def items(self) -> Iterable[tuple[Any, Any]]:
        """All entries; right also while others write and delete."""

    def update_batch(self, keys: Column, values: Column) -> int:
        """Create or replace many entries; how many were written."""

    def lookup_batch(self) -> tuple[Column, Column]:
        """All keys and values."""

    def delete_batch(self, keys: Column) -> int:
        """Remove many entries; how many were there."""

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...

    def __iter__(self) -> Iterator[Any]: ...
