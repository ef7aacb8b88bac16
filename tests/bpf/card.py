"""A test run as with a network card that has summed up the packet."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from pyciliumlib.kernel import Program, ProgramType
from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.context import CONTEXTS, new_context

#: BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.16.
_CHECKSUM_COMPLETE = 4


def check_sum(program: Program, frame: bytes, ctx: Mapping[str, int] | None = None) -> None:
    """Run a tc program on a frame whose sum the card gave; afterwards it is the packet's still.

    The kernel compares them and fails the run where the sum did not follow what was changed.
    """
    kind = CONTEXTS[ProgramType.SCHED_CLS]
    context, given = new_context(kind, ctx or {}), ffi.from_buffer(frame)
    options = ffi.new("struct bpf_test_run_opts *")
    options.sz, options.repeat = ffi.sizeof(options[0]), 1
    options.data_in, options.data_size_in = given, len(frame)
    options.ctx_in, options.ctx_size_in = context, ffi.sizeof(context[0])
    options.flags = _CHECKSUM_COMPLETE
    error = -lib.bpf_prog_test_run_opts(program.fd, options)
    assert error in (0, errno.EINVAL), os.strerror(error)  # EINVAL: the kernel knows no such flag
