"""libbpf's view of an object file: opened, walked, closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyciliumlib.errors import ObjectError
from pyciliumlib.kernel._binding import ffi, follow_logger_level, lib, take_messages
from pyciliumlib.kernel.btf import Types

_ELF_MACHINE_BPF: Final = 247


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Any]:
    """libbpf's handle of an object file, closed at the end of the block.

    libbpf keeps no reference to `data` beyond it: whoever loads takes the descriptors out.
    """
    _check_elf(data, name)
    follow_logger_level()
    # Map names begin with the object's name, and everything from the first dot on is the section.
    object_name = ffi.new("char[]", name.replace(".", "_").encode())
    options = ffi.new("struct bpf_object_open_opts *")
    options.sz = ffi.sizeof(options[0])
    options.object_name = object_name
    buffer = ffi.from_buffer(data)
    handle = lib.bpf_object__open_mem(buffer, len(data), options)
    code = ffi.errno
    messages = take_messages(quiet=handle == ffi.NULL)
    if handle == ffi.NULL:
        cause = messages.replace("libbpf: ", "").strip().replace("\n", "; ") or os.strerror(code)
        raise ObjectError(
            f"{name!r} cannot be used as a BPF object: {cause}; compile it with "
            "clang -target bpf -O2 -g"
        )
    try:
        yield handle
    finally:
        lib.bpf_object__close(handle)
        ffi.release(buffer)
        take_messages()


def map_name(handle: Any) -> str:
    """The C name of a map, or the section (`.rodata`) of an internal one."""
    name: str = ffi.string(lib.bpf_map__name(handle)).decode()
    return name[name.index(".") :] if lib.bpf_map__is_internal(handle) else name


def each_map(handle: Any) -> Iterator[Any]:
    found = lib.bpf_object__next_map(handle, ffi.NULL)
    while found != ffi.NULL:
        yield found
        found = lib.bpf_object__next_map(handle, found)


def each_program(handle: Any) -> Iterator[Any]:
    found = lib.bpf_object__next_program(handle, ffi.NULL)
    while found != ffi.NULL:
        yield found
        found = lib.bpf_object__next_program(handle, found)


def read_btf(handle: Any, name: str) -> Types:
    btf = lib.bpf_object__btf(handle)
    if btf == ffi.NULL:
        raise ObjectError(
            f"{name!r} has no BTF, so the types of its maps are unknown; compile it with -g "
            "(and strip it, if at all, with llvm-strip -g)"
        )
    size = ffi.new("__u32 *")
    data = lib.btf__raw_data(btf, size)
    if data == ffi.NULL:
        raise ObjectError(f"the BTF of {name!r} cannot be read: {os.strerror(ffi.errno)}")
    return Types.parse(bytes(ffi.buffer(data, size[0])))


def initial_value(found: Any) -> bytes:
    size = ffi.new("size_t *")
    data = lib.bpf_map__initial_value(found, size)
    return bytes(ffi.buffer(data, size[0])) if data != ffi.NULL else b""


def _check_elf(data: bytes, name: str) -> None:
    if data[:4] != b"\x7fELF" or len(data) < 64:
        raise ObjectError(f"{name!r} is no object file: it does not begin like an ELF file")
    order = {1: "little", 2: "big"}.get(data[5])
    if order != sys.byteorder:
        raise ObjectError(
            f"{name!r} was compiled for {order}-endian CPUs and this one is {sys.byteorder}-endian"
            "; compile it with -target bpf on this machine"
        )
    if int.from_bytes(data[18:20], sys.byteorder) != _ELF_MACHINE_BPF:
        raise ObjectError(f"{name!r} holds no BPF code; compile it with clang -target bpf")
