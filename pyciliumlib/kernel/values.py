"""What is special about the values of some maps: one for each CPU, or another map or program."""

from __future__ import annotations

from typing import Any

from pyciliumlib.errors import InvalidError
from pyciliumlib.kernel._binding import lib
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.resource import Resource


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    return int(lib.libbpf_num_possible_cpus())


class PerCpuCodec(Codec):
    """One value for each possible CPU: a tuple. The kernel rounds each up to 8 bytes."""

    def __init__(self, value: Codec, cpus: int) -> None:
        self.value = value
        self.cpus = cpus
        self._stride = (value.size + 7) // 8 * 8
        size = self._stride * cpus
        super().__init__(f"{value.name} per CPU", size, f"{size}s", value.dtype)

    def load(self, item: Any) -> tuple[Any, ...]:
        size, stride = self.value.size, self._stride
        return tuple(
            self.value.decode(item[at : at + size]) for at in range(0, stride * self.cpus, stride)
        )

    def store(self, value: Any) -> bytes:
        if not isinstance(value, (tuple, list)) or len(value) != self.cpus:
            raise InvalidError(f"a per-CPU map takes a list of {self.cpus} values, not {value!r}")
        return b"".join(self.value.encode(part).ljust(self._stride, b"\0") for part in value)


class HandleCodec(Codec):
    """A map or program in a map: written as the object, read back as its id."""

    plain = True

    def __init__(self, what: str, kind: type[Resource]) -> None:
        super().__init__(what, 4, "I", "u4")
        self._kind = kind

    def load(self, item: int) -> int:
        return item

    def store(self, value: Any) -> int:
        if not isinstance(value, self._kind):
            raise InvalidError(f"{value!r} is no {self.name}; pass the open {self.name} itself")
        return value.fd


class NoEntryCodec(Codec):
    """The key of a ring buffer, which has none."""

    def __init__(self) -> None:
        super().__init__("no key", 0, "0s", ("u1", (0,)))

    def load(self, item: bytes) -> bytes:
        return item

    def store(self, value: Any) -> bytes:
        raise InvalidError("a ring buffer has no entries; read it with RingBuffer")
