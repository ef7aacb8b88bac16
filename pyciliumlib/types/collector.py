"""Python's cyclic garbage collector, kept from work that makes many values."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No cyclic garbage collection in the block.

    For work that makes values and no cycles: to look through all of them again and again while
    there come more of them is a quarter of the time of a large set.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
