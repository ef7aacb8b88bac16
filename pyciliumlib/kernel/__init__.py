"""The kernel's side: object files, maps, programs, links, rings and probes, over libbpf.

`ObjectSpec` reads an object file without a kernel; `ObjectSpec.load` makes an `Object` with live
`Map`s and `Program`s.
"""

from __future__ import annotations

from pyciliumlib.kernel.anchor import After, Anchor, Before, Head, Tail
from pyciliumlib.kernel.bpffs import ensure_bpffs, is_bpffs
from pyciliumlib.kernel.btf import Types
from pyciliumlib.kernel.cgroup import attach_cgroup
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.config import Config
from pyciliumlib.kernel.features import Answer, Feature, Features, Support
from pyciliumlib.kernel.kinds import MapType, ProgramType
from pyciliumlib.kernel.link import Link, LinkInfo
from pyciliumlib.kernel.map import Map
from pyciliumlib.kernel.mapinfo import MapInfo
from pyciliumlib.kernel.mapspec import MapSpec, ProgramSpec
from pyciliumlib.kernel.mounts import find_cgroup2
from pyciliumlib.kernel.object import Object
from pyciliumlib.kernel.pin import unpin
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.program import Program, ProgramInfo, RunResult
from pyciliumlib.kernel.record import Record
from pyciliumlib.kernel.ring import RingBuffer
from pyciliumlib.kernel.schema import codec_of_dtype
from pyciliumlib.kernel.spec import ObjectSpec
from pyciliumlib.kernel.tc import Attached, attach_netkit, attach_tc, attached_tc, find_tc
from pyciliumlib.kernel.uapi import AttachType
from pyciliumlib.kernel.values import possible_cpus
from pyciliumlib.kernel.wait import wait_for_programs
from pyciliumlib.kernel.xdp import attach_xdp, attached_xdp

__all__ = [
    "After",
    "Anchor",
    "Answer",
    "AttachType",
    "Attached",
    "Before",
    "Codec",
    "Config",
    "Feature",
    "Features",
    "Head",
    "Link",
    "LinkInfo",
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
    "RingBuffer",
    "RunResult",
    "Support",
    "Tail",
    "TcFilter",
    "Types",
    "attach_cgroup",
    "attach_netkit",
    "attach_tc",
    "attach_xdp",
    "attached_tc",
    "attached_xdp",
    "codec_of_dtype",
    "ensure_bpffs",
    "find_cgroup2",
    "find_tc",
    "is_bpffs",
    "possible_cpus",
    "probe",
    "unpin",
    "wait_for_programs",
]
