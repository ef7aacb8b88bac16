"""A live program of the kernel, and its test-run."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from pyciliumlib.errors import DeviceError, InvalidError, NotFoundError
from pyciliumlib.kernel import pin
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.context import CONTEXTS, ContextValue, new_context, read_context
from pyciliumlib.kernel.failures import ENOTSUPP, number_of, raise_for
from pyciliumlib.kernel.kinds import ProgramType
from pyciliumlib.kernel.resource import Resource

if TYPE_CHECKING:
    from typing_extensions import Self

_ETHERNET_HEADER = 14
# A program may grow the packet: room for any outer headers, and beyond the largest test packet.
_ROOM_TO_GROW = 4096


@attrs.frozen
class ProgramInfo:
    """A program as the kernel reports it.

    `name` is cut to 15 characters by the kernel. `run_time_ns` and `run_cnt` count while
    `kernel.bpf_stats_enabled` is 1. Instructions are counted in bytes for code, in number for
    `verified_insns` (0 before Linux 5.16).
    """

    id: int
    type: ProgramType
    name: str
    tag: str
    load_time_ns: int
    jited_size: int
    translated_size: int
    verified_insns: int
    run_time_ns: int
    run_cnt: int
    map_count: int


@attrs.frozen
class RunResult:
    """What a test-run gave: the return value, the packet and context as the program left them.

    `duration_ns` is the mean over the repeats. `ctx` is empty where none was asked for.
    """

    retval: int
    packet: bytes
    ctx: Mapping[str, ContextValue]
    duration_ns: int


class Program(Resource):
    """A program of the kernel."""

    __slots__ = ("type",)

    def __init__(self, fd: int, name: str, type: ProgramType) -> None:
        """Takes over the descriptor `fd`."""
        super().__init__(fd, name)
        self.type = type

    @classmethod
    def from_pin(cls, path: pin.PathLike) -> Self:
        """The program that is pinned at `path`; raises NotFoundError."""
        return cls._adopt(pin.open_pin(path, "program"), f"program pinned at {path}")

    @classmethod
    def from_id(cls, program_id: int) -> Self:
        """The program with this number; raises NotFoundError. Needs CAP_SYS_ADMIN."""
        fd: int = lib.bpf_prog_get_fd_by_id(number_of(program_id))
        take_messages(quiet=True)
        if fd == -errno.ENOENT:
            raise NotFoundError(f"the kernel has no program number {program_id} (any more)")
        if fd < 0:
            raise_for(fd, f"open program number {program_id}")
        return cls._adopt(fd, f"program number {program_id}")

    @classmethod
    def _adopt(cls, fd: int, what: str) -> Self:
        with Resource(fd, what) as held:
            info = _read_info(fd)
            return cls(held.release(), info.name, info.type)

    @property
    def info(self) -> ProgramInfo:
        """What the kernel says about it now."""
        return _read_info(self.fd)

    @property
    def id(self) -> int:
        return self.info.id

    @property
    def tag(self) -> str:
        """A hash of the instructions, as 16 hexadecimal digits."""
        return self.info.tag

    def pin(self, path: pin.PathLike) -> None:
        """Pin it at `path` in a bpffs; raises ExistsError if the name is taken."""
        pin.pin(self.fd, path, self._what())

    def run(
        self,
        packet: bytes = b"",
        ctx: Mapping[str, Any] | bytes | None = None,
        *,
        repeat: int = 1,
        out_size: int | None = None,
    ) -> RunResult:
        """Run it on a packet that is sent nowhere (BPF_PROG_TEST_RUN).

        `packet` begins with the Ethernet header; `ctx` sets fields of `__sk_buff` or `xdp_md`
        (`{"mark": 1, "ifindex": 3}`; the device must be in this network namespace), or is the
        raw context of a SYSCALL program. `repeat` runs it that often on the same buffer, which
        the kernel does not restore in between; `out_size` is the room for the packet afterwards.

        Raises InvalidError, DeviceError for an unknown ifindex, FeatureError for a program type
        that cannot be test-run, KernelError. Least kernel: 4.12; with `ctx` 5.2 (tc), 5.15 (XDP).
        """
        kind = CONTEXTS.get(self.type)
        if kind is not None and len(packet) < _ETHERNET_HEADER:
            raise InvalidError(
                f"a packet of {len(packet)} bytes for {self._what()}; "
                f"it begins with an Ethernet header of {_ETHERNET_HEADER} bytes"
            )
        if repeat < 1:
            raise InvalidError(f"repeat={repeat}; run it at least once")

        options = ffi.new("struct bpf_test_run_opts *")
        options.sz = ffi.sizeof(options[0])
        options.repeat = repeat
        packet_in, packet_out = ffi.from_buffer(packet), None
        if packet:
            size = len(packet) + _ROOM_TO_GROW if out_size is None else out_size
            packet_out = bytearray(size)
            options.data_in, options.data_size_in = packet_in, len(packet)
            options.data_out, options.data_size_out = ffi.from_buffer(packet_out), size

        context: Any = None
        if isinstance(ctx, bytes):
            context = ffi.new("char[]", len(ctx))
            ffi.buffer(context)[:] = ctx
        elif kind is not None and (ctx or self.type != ProgramType.XDP):
            # XDP programs take a context since 5.15 only, so not unless it is asked for.
            context = self._new_context(ctx or {}, len(packet))
        elif ctx:
            raise InvalidError(f"a {self.type.name} program takes its context as bytes")
        if context is not None:
            in_size = ffi.sizeof(context) if isinstance(ctx, bytes) else ffi.sizeof(context[0])
            options.ctx_in, options.ctx_size_in = context, in_size
            if self.type != ProgramType.SYSCALL:  # which writes into ctx_in
                options.ctx_out, options.ctx_size_out = context, in_size

        err = lib.bpf_prog_test_run_opts(self.fd, options)
        take_messages(quiet=True)
        if err:
            self._raise_for_run(-err, options, ctx)
        return RunResult(
            retval=options.retval,
            packet=bytes(packet_out[: options.data_size_out]) if packet_out else b"",
            ctx={} if kind is None or context is None else read_context(kind, context),
            duration_ns=options.duration,
        )

    def _new_context(self, values: Mapping[str, Any], packet_size: int) -> Any:
        if self.type == ProgramType.XDP:
            values = {"data_end": packet_size, **values}
        return new_context(CONTEXTS[self.type], values)

    def _raise_for_run(self, code: int, options: Any, ctx: Any) -> NoReturn:
        doing = f"test-run {self._what()}"
        if code == errno.ENOSPC:
            raise InvalidError(
                f"cannot {doing}: the packet grew to {options.data_size_out} bytes; "
                "pass a larger out_size"
            )
        if code == errno.ENODEV:
            raise DeviceError(code, f"cannot {doing}: this namespace has no such device: {ctx}")
        if code in (ENOTSUPP, errno.EOPNOTSUPP):
            raise_for(code, doing, f"programs of type {self.type.name} cannot be test-run")
        hint = "the packet or a field of ctx is not acceptable" if code == errno.EINVAL else ""
        raise_for(code, doing, hint)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self._fd}"
        return f"<Program {self.name!r} {self.type.name.lower()} {state}>"


def _read_info(fd: int) -> ProgramInfo:
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof(info[0]))
    err = lib.bpf_obj_get_info_by_fd(fd, info, size)
    if err:
        raise_for(err, f"ask about the program of descriptor {fd}")
    return ProgramInfo(
        id=info.id,
        type=ProgramType(info.type),
        name=ffi.string(info.name).decode(),
        tag=bytes(info.tag).hex(),
        load_time_ns=info.load_time,
        jited_size=info.jited_prog_len,
        translated_size=info.xlated_prog_len,
        verified_insns=info.verified_insns,
        run_time_ns=info.run_time_ns,
        run_cnt=info.run_cnt,
        map_count=info.nr_map_ids,
    )
