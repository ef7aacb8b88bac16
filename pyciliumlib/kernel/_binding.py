"""The compiled binding, and libbpf's messages on their way to `logging`.

libbpf prints into a buffer of the calling thread (csrc/libbpf/log.c). `take_messages` empties
it; every call that may print is followed by it, so that C never calls into Python.
"""

from __future__ import annotations

import logging
from typing import Any

try:
    from pyciliumlib._libbpf import ffi as _ffi
    from pyciliumlib._libbpf import lib as _lib
except ImportError as error:
    raise ImportError(
        "pyciliumlib._libbpf is not there: it is compiled for Linux only; in a source tree "
        f"build it with `make build`, elsewhere install a wheel for this Python ({error})"
    ) from error

ffi: Any = _ffi
lib: Any = _lib

logger = logging.getLogger("pyciliumlib.libbpf")

_LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}

lib.pcl_log_init()


def take_messages(quiet: bool = False) -> str:
    """Hand this thread's messages to the logger and return the warnings among them.

    With `quiet` they are logged at DEBUG, for calls whose failure is an answer or becomes an
    exception that carries the text.
    """
    if not lib.pcl_log_pending():
        return ""
    size, lost = ffi.new("size_t *"), ffi.new("unsigned int *")
    text = lib.pcl_log_take(size, lost)
    records = ffi.unpack(text, size[0]) if text != ffi.NULL else b""
    lib.pcl_log_free(text)
    if lost[0]:
        logger.warning("%d messages of libbpf were lost: out of memory", lost[0])

    warnings = []
    for record in records.split(b"\0")[:-1]:
        level, message = int(record[:1]), record[1:].decode("utf-8", "replace")
        logger.log(
            logging.DEBUG if quiet else _LEVELS.get(level, logging.DEBUG), "%s", message.rstrip()
        )
        if level == 0:
            warnings.append(message)
    return "".join(warnings)


def follow_logger_level() -> None:
    """Gather libbpf's debug messages only where somebody listens: they are many."""
    lib.pcl_log_debug(logger.isEnabledFor(logging.DEBUG))
