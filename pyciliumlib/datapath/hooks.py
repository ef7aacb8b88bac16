"""The slots in the packet's path for the user's own programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.programs import shared_maps
from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, nearest
from pyciliumlib.kernel import Object, ObjectSpec, ProgramType

#: Slot names and their numbers (`enum hook_slot` in `bpf/lib/hooks.h`).
SLOTS: Final = {"before-policy": 0, "after-policy": 1}


class Hook(Closeable):
    """A user's program in a slot; `close()` takes it out."""

    def __init__(self, slot: str, loaded: Object, remove: Callable[[], None]) -> None:
        self.slot = slot
        self._loaded = loaded
        self._remove = remove
        self._closed = False

    @property
    def maps(self) -> dict[str, object]:
        """The program's maps by name: its own, and those it shares with the datapath."""
        return dict(self._loaded.maps)

    def close(self) -> None:
        """Take the program out of the path; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._remove()
            self._loaded.close()


class Hooks:
    """Which program is in which slot.

    The first use of a slot switches the devices to programs that call slots; without any, slots
    cost nothing.
    """

    def __init__(
        self, programs: Callable[[], Object], enable: Callable[[], None], changes: Changes
    ) -> None:
        self._changes = changes
        self._programs = programs
        self._enable = enable
        self._used: dict[str, Hook] = {}

    def attach(
        self, slot: str, source: str | os.PathLike[str] | ObjectSpec, program: str | None = None
    ) -> Hook:
        """Put a program of an object file into a slot: "before-policy" or "after-policy".

        The object is built against `include_dir()`; maps of its that have the name of one of the
        datapath's are the datapath's. `program` names the one to use if there are several. It
        drops a packet by TC_ACT_SHOT. Raises NotFoundError, ExistsError (the slot is taken),
        VerifierError, MismatchError (a shared map is declared otherwise).
        """
        with self._changes:
            if slot not in SLOTS:
                raise NotFoundError(f"there is no slot {slot!r}{nearest(slot, SLOTS)}")
            if slot in self._used:
                raise ExistsError(f"slot {slot} has a program already; close that Hook first")
            spec = source.copy() if isinstance(source, ObjectSpec) else ObjectSpec.open(source)
            name = _choose(spec, program)
            kind = spec.programs[name].type
            if kind is not ProgramType.SCHED_CLS:
                raise InvalidError(f'program {name!r} is of kind {kind.name}; write SEC("tc")')
            return self._attach(slot, spec, name)

    def _attach(self, slot: str, spec: ObjectSpec, name: str) -> Hook:
        self._enable()
        programs = self._programs()
        shared = {n: m for n, m in shared_maps(programs).items() if n in spec.maps}
        for shared_name, shared_map in shared.items():
            spec.resize(shared_name, shared_map.max_entries)  # a header cannot know the sizes
        loaded = spec.load(reuse=shared)
        try:
            programs.maps["hooks"][SLOTS[slot]] = loaded.programs[name]
        except BaseException:
            loaded.close()
            raise
        hook = Hook(slot, loaded, lambda: self._remove(slot))
        self._used[slot] = hook
        return hook

    def close(self) -> None:
        """Empty every slot."""
        for hook in tuple(self._used.values()):
            hook.close()

    def _remove(self, slot: str) -> None:
        self._used.pop(slot, None)
        self._programs().maps["hooks"].delete(SLOTS[slot])


def _choose(spec: ObjectSpec, program: str | None) -> str:
    there = ", ".join(spec.programs) or "none"
    if program is None:
        if len(spec.programs) != 1:
            raise NotFoundError(f"object {spec.name!r}: say which program=; it has {there}")
        return next(iter(spec.programs))
    if program not in spec.programs:
        raise NotFoundError(
            f"object {spec.name!r} has no program {program!r}"
            f"{nearest(program, spec.programs)}; it has {there}"
        )
    return program
