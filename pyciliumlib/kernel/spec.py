"""What an object file holds, read without a kernel and without root."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pyciliumlib.errors import InvalidError, NotFoundError, ObjectError, nearest
from pyciliumlib.kernel.btf import Kind
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.mapspec import MapSpec, ProgramSpec
from pyciliumlib.kernel.objectfile import opened, read_btf
from pyciliumlib.kernel.reader import Reader
from pyciliumlib.kernel.schema import Schema

if TYPE_CHECKING:
    from pyciliumlib.kernel.map import Map
    from pyciliumlib.kernel.object import Object

__all__ = ["MapSpec", "ObjectSpec", "ProgramSpec"]


class ObjectSpec:
    """An object file: maps, programs, config, enums and types.

    It may be adjusted (`config`, `resize`, `set_autoload`, `set_autocreate`) and loaded as often
    as wanted; each load makes new maps and programs.

        spec = ObjectSpec.open("endpoint.bpf.o")
        spec.config["policy_enabled"] = True
        with spec.load() as obj:
            obj.programs["from_endpoint"].run(packet)
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._data = data
        with opened(data, name) as handle:
            self.btf = read_btf(handle, name)
            self._schema = Schema(self.btf)
            reader = Reader(handle, self._schema)
            self._maps = reader.maps()
            self._programs = reader.programs()
            self.config = reader.config()
        self.enums: Mapping[str, type[enum.IntEnum]] = {
            type_.name: self._schema.enum(type_.id)
            for type_ in self.btf
            if type_.kind in (Kind.ENUM, Kind.ENUM64) and type_.name
        }

    @classmethod
    def open(cls, source: str | os.PathLike[str] | bytes, name: str | None = None) -> ObjectSpec:
        """Read an object file, given by its path or as its bytes.

        `name` is used in messages; by default the file's. Raises ObjectError for what is no BPF
        object with BTF for this CPU's byte order.
        """
        if isinstance(source, bytes):
            return cls(source, name or "object")
        path = Path(source)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ObjectError(f"cannot read object file {path}: {error.strerror}") from error
        return cls(data, name or path.name.partition(".")[0])

    @property
    def maps(self) -> Mapping[str, MapSpec]:
        return self._maps

    @property
    def programs(self) -> Mapping[str, ProgramSpec]:
        return self._programs

    def type(self, name: str) -> Codec:
        """The codec of the struct called `name`: its dtype, and its values as records."""
        return self._schema.codec(self.btf.find(name, Kind.STRUCT).id)

    def doc(self, struct: str, member: str = "") -> str:
        """What the C source says about a struct or one of its members (`DOC("...")`)."""
        type_ = self.btf.find(struct, Kind.STRUCT)
        if not member:
            return self.btf.doc(type_.id)
        names = [m.name for m in type_.members]
        if member not in names:
            raise NotFoundError(f"struct {struct} has no member {member!r}{nearest(member, names)}")
        return self.btf.doc(type_.id, names.index(member))

    def resize(self, map_name: str, max_entries: int) -> None:
        """Give a map another size before it is loaded."""
        if max_entries <= 0 or max_entries >= 1 << 32:
            raise InvalidError(f"map {map_name!r} cannot have {max_entries} entries")
        spec = find(self._maps, map_name, "map")
        self._maps[map_name] = attrs.evolve(spec, max_entries=max_entries)

    def set_autocreate(self, map_name: str, create: bool) -> None:
        """Whether a map is made at all; a program that uses one that is not fails to load."""
        spec = find(self._maps, map_name, "map")
        self._maps[map_name] = attrs.evolve(spec, autocreate=create)

    def set_autoload(self, program_name: str, load: bool) -> None:
        """Whether a program is loaded."""
        spec = find(self._programs, program_name, "program")
        self._programs[program_name] = attrs.evolve(spec, autoload=load)

    def copy(self) -> ObjectSpec:
        """A second description, adjusted on its own."""
        same = object.__new__(ObjectSpec)
        same.__dict__.update(self.__dict__)
        same._maps = dict(self._maps)
        same._programs = dict(self._programs)
        same.config = self.config.copy()
        return same

    def load(
        self,
        *,
        reuse: Mapping[str, Map] | None = None,
        pins: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> Object:
        """Load it into the kernel.

        `reuse`: maps that take the place of the object's own, by name. `pins`: a folder of a bpffs
        in which every map that is not reused is pinned under its name, or the path for each map
        that is to be pinned; a map that is pinned there already is adopted.
        Raises VerifierError, MismatchError (listing every difference to a reused or pinned map),
        PrivilegeError, FeatureError, KernelError. Nothing stays behind after a failure.
        """
        from pyciliumlib.kernel.object import load  # the live side builds on this one

        return load(self, reuse or {}, pins)

    @property
    def data(self) -> bytes:
        """The bytes of the object file."""
        return self._data

    def __repr__(self) -> str:
        return f"ObjectSpec({self.name!r}, maps={list(self.maps)}, programs={list(self.programs)})"


def find(known: Mapping[str, Any], name: str, what: str) -> Any:
    """`known[name]`; raises NotFoundError that names the nearest."""
    try:
        return known[name]
    except KeyError:
        raise NotFoundError(f"the object has no {what} {name!r}{nearest(name, known)}") from None
