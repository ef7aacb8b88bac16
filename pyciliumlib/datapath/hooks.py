"""The slots in the packet's path for the user's own programs."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pyciliumlib.datapath.changes import Changes
from pyciliumlib.datapath.hook import Hook, as_in_file, from_pin, load_over, pin_path, present
from pyciliumlib.datapath.programs import Programs, shared_maps
from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, nearest
from pyciliumlib.kernel import Map, Object, ObjectSpec, Program, ProgramType
from pyciliumlib.store import Store

#: Slot names and their numbers (`enum hook_slot` in `bpf/lib/hooks.h`).
SLOTS: Final = {"before-policy": 0, "after-policy": 1}
_STORED: Final = "hooks/"


class Hooks(Mapping[str, Hook]):
    """The users' programs by their slots.

    While one is used, the devices run programs that call slots; without any, slots cost nothing.
    On a datapath with a pin root a hook outlives the process as the rest does: with its maps, and
    known to the next one.
    """

    def __init__(
        self,
        programs: Programs,
        use: Callable[[Object], None],
        changes: Changes,
        store: Store,
        pins: Path | None,
    ) -> None:
        """`use` switches the devices to other programs; `pins` is the directory for the hooks'."""
        self._programs = programs
        self._use = use
        self._changes = changes
        self._store = store
        self._pins = pins
        self._used: dict[str, Hook] = {}

    @property
    def programs(self) -> Object:
        """What the devices are to run."""
        return self._programs.hooked if self._used else self._programs.plain

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
            _check_slot(slot)
            if slot in self._used:
                raise ExistsError(f"slot {slot} has a program already; close that Hook first")
            spec = source.copy() if isinstance(source, ObjectSpec) else ObjectSpec.open(source)
            name = _choose(spec, program)
            kind = spec.programs[name].type
            if kind is not ProgramType.SCHED_CLS:
                raise InvalidError(f'program {name!r} is of kind {kind.name}; write SEC("tc")')
            return self._attach(slot, spec, name)

    def _attach(self, slot: str, spec: ObjectSpec, name: str) -> Hook:
        with ExitStack() as undo:
            loaded = load_over(spec, self._shared(spec))
            undo.callback(loaded.close)
            undo.callback(self._forget, slot)
            self._keep(slot, spec, name, loaded)
            if not self._used:
                undo.callback(self._use, self._programs.plain)
                self._use(self._programs.hooked)
            self._slots[SLOTS[slot]] = loaded.programs[name]
            undo.pop_all()
        return self._hook(slot, name, as_in_file(spec.data, spec.name, present(spec)), loaded)

    def _hook(self, slot: str, name: str, spec: ObjectSpec, loaded: Object) -> Hook:
        hook = Hook(slot, name, spec, loaded, lambda: self._remove(slot))
        self._used[slot] = hook
        return hook

    def _remove(self, slot: str) -> None:
        with self._changes:
            self._slots.delete(SLOTS[slot])
            self._forget(slot)
            del self._used[slot]
            if not self._used:
                self._use(self._programs.plain)

    @property
    def _slots(self) -> Map:
        return self._programs.maps["hooks"]

    def _shared(self, spec: ObjectSpec) -> dict[str, Map]:
        return {n: m for n, m in shared_maps(self._programs.plain).items() if n in spec.maps}

    # ------------------------------------------------------------------ over a restart

    def _keep(self, slot: str, spec: ObjectSpec, name: str, loaded: Object) -> None:
        """Pin the object's own maps, and write down what it is; then its slot may hold it."""
        if self._pins is None:
            return
        folder = self._pins / slot
        shutil.rmtree(folder, ignore_errors=True)  # of a change that a crash cut short
        folder.mkdir(parents=True)
        for map_name in loaded.maps.keys() - self._shared(spec).keys():
            loaded.maps[map_name].pin(pin_path(folder, map_name))
        record = {
            "program": name,
            "name": spec.name,
            "object": base64.b64encode(spec.data).decode(),
            "present": present(spec),
        }
        self._store.put(f"{_STORED}{slot}", json.dumps(record))

    def _forget(self, slot: str) -> None:
        self._store.delete(f"{_STORED}{slot}")
        if self._pins is not None:
            shutil.rmtree(self._pins / slot, ignore_errors=True)

    def restore(self) -> None:
        """Take over the hooks of an earlier process; what a crash left half done is removed."""
        for slot, number in SLOTS.items():
            entry = self._store.get(f"{_STORED}{slot}")
            program = self._slots.get(number)
            if entry is not None and program is not None and self._pins is not None:
                self._adopt(slot, program, json.loads(entry.value), self._pins / slot)
            else:
                self._slots.delete(number)
                self._forget(slot)

    def _adopt(self, slot: str, program: int, record: Mapping[str, Any], folder: Path) -> None:
        data = base64.b64decode(record["object"])
        spec = as_in_file(data, record["name"], record["present"])
        with ExitStack() as undo:
            maps = {
                name: undo.enter_context(Map.from_id(found.info.id, found.spec))
                for name, found in self._shared(spec).items()
            }
            for name in record["present"]:
                if name in spec.maps and name not in maps:
                    maps[name] = undo.enter_context(from_pin(folder, spec.maps[name]))
            programs = {record["program"]: undo.enter_context(Program.from_id(program))}
            undo.pop_all()
        self._hook(slot, record["program"], spec, Object(spec.name, maps, programs))

    def close(self) -> None:
        """Empty every slot."""
        for hook in tuple(self._used.values()):
            hook.close()

    def let_go(self) -> None:
        """Close the handles; programs that are pinned go on in their slots."""
        for hook in self._used.values():
            hook.let_go()
        self._used.clear()

    # ------------------------------------------------------------------ asking

    def drift(self) -> Iterator[str]:
        """How the slots differ from what is meant, in words."""
        for slot, number in SLOTS.items():
            held = self._slots.get(number)
            wanted = self._used[slot].program_id if slot in self._used else None
            if held != wanted:
                yield f"slot {slot}: holds program {held}, not {wanted}"

    def __getitem__(self, slot: str) -> Hook:
        _check_slot(slot)
        try:
            return self._used[slot]
        except KeyError:
            raise NotFoundError(f"slot {slot} is empty; attach() puts a program there") from None

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._used))

    def __len__(self) -> int:
        return len(self._used)

    def __repr__(self) -> str:
        return f"<Hooks {', '.join(self._used) or 'none'}>"


def _check_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise NotFoundError(f"there is no slot {slot!r}{nearest(str(slot), SLOTS)}")


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
