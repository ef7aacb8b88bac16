"""The kernel's side: object files, maps, programs, links, rings and probes, over libbpf.

`ObjectSpec` reads an object file without a kernel; `ObjectSpec.load` makes an `Object` with live
`Map`s and `Program`s.
"""

from __future__ import annotations

from pyciliumlib.kernel.btf import Types
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.config import Config
from pyciliumlib.kernel.kinds import MapType, ProgramType
from pyciliumlib.kernel.map import Map
from pyciliumlib.kernel.mapinfo import MapInfo
from pyciliumlib.kernel.mapspec import MapSpec, ProgramSpec
from pyciliumlib.kernel.object import Object
from pyciliumlib.kernel.pin import unpin
from pyciliumlib.kernel.program import Program, ProgramInfo, RunResult
from pyciliumlib.kernel.record import Record
from pyciliumlib.kernel.schema import codec_of_dtype
from pyciliumlib.kernel.spec import ObjectSpec
from pyciliumlib.kernel.values import possible_cpus

__all__ = [
    "Codec",
    "Config",
    "Map",
    "MapInfo",
    "MapSpec",
    "MapType",
    "Object",
    "ObjectSpec",
    "Program",
    "ProgramInfo",
    "ProgramSpec",
    "ProgramType",
    "Record",
    "RunResult",
    "Types",
    "codec_of_dtype",
    "possible_cpus",
    "unpin",
]
