"""The programs of a backend's side of DSR, and where at its device they hang."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import field, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import FeatureError, StateError
from pyciliumlib.kernel import Link, Object, ObjectSpec, Program
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.loadbalancer.backend import number
from pyciliumlib.loadbalancer.config import GENEVE_PORT
from pyciliumlib.loadbalancer.kinds import Acceleration
from pyciliumlib.loadbalancer.program.loading import HOOKS, Hook, adopt, attach_once
from pyciliumlib.net import NetNS
from pyciliumlib.resources import object_path
from pyciliumlib.types.ports import PORT_MAX

#: For how many flows there is one more place for new ones.
_PENDING: Final = 4
_RESTORE: Final = "restore"


@frozen
class DSRPrograms:
    """The two objects, one of them for XDP alone, over the same maps."""

    flows: int = field(default=65536, validator=number(1, 1 << 24, "flows"))
    geneve_port: int = field(default=GENEVE_PORT, validator=number(1, PORT_MAX, "geneve_port"))
    check_directors: bool = field(default=False, kw_only=True)

    def load(self, pins: Path | None = None) -> Object:
        """What runs at tc: `dsr_take_tc` and `dsr_restore_tc`; the caller closes it.

        With `pins` its maps are those that are pinned there, or will be.
        """
        return self._spec("loadbalancer_backend_tc").load(pins=pins)

    def load_xdp(self, loaded: Object) -> Object:
        """`dsr_take_xdp`, with the maps of the other one; the caller closes it."""
        spec = self._spec("loadbalancer_backend")
        shared = {name: loaded.maps[name] for name in spec.maps if not name.startswith(".")}
        return spec.load(reuse=shared)

    def _spec(self, name: str) -> ObjectSpec:
        spec = ObjectSpec.open(object_path(name))
        spec.resize("dsr_flows", self.flows)
        spec.resize("dsr_pending", max(64, self.flows // _PENDING))
        spec.config.update(
            {
                "check_directors": self.check_directors,
                "geneve_port": self.geneve_port,
                "jiffies_per_second": kernel_clock().hz,
            }
        )
        return spec


class DSRHooks:
    """The links of the two programs at one device; those that are pinned outlive their process."""

    def __init__(self, netns: NetNS, device: str, pins: Path | None) -> None:
        """`pins` is a directory of a bpffs."""
        self._netns, self._device, self._pins = netns, device, pins
        self._links: list[Link | TcFilter] = []

    @property
    def was(self) -> Hook | None:
        """Where an earlier process has packets taken; None if there was none."""
        if self._pins is None or not (self._pins / _RESTORE).exists():
            return None
        return next((hook for hook in Hook if (self._pins / str(hook)).exists()), None)

    def restore_with(self, program: Program) -> None:
        """Let answers go out by this program."""
        self._hang(
            _RESTORE,
            lambda: attach_once(program, self._device, "egress"),
            lambda pin: adopt(program, self._device, pin, "egress"),
        )

    def take_with(self, program_at: Callable[[Hook], Program], acceleration: Acceleration) -> Hook:
        """Let packets come in by the program for a hook: an earlier one's, or the best there is.

        Raises StateError if the earlier one is at a hook that `acceleration` does not mean.
        """
        *better, last = HOOKS[acceleration]
        if self.was is not None:
            if self.was not in HOOKS[acceleration]:
                raise StateError(
                    f"the backend's side at {self._device} takes packets at the hook {self.was}, "
                    f"and acceleration={acceleration.value!r} is another: close it first"
                )
            better, last = [], self.was
        for hook in better:
            with contextlib.suppress(FeatureError):
                self._take_at(hook, program_at(hook))
                return hook
        self._take_at(last, program_at(last))
        return last

    def _take_at(self, hook: Hook, program: Program) -> None:
        self._hang(
            str(hook),
            lambda: hook.attach(program, self._device),
            lambda pin: hook.adopt(program, self._device, pin),
        )

    def _hang(
        self,
        name: str,
        attach: Callable[[], Link | TcFilter],
        adopt: Callable[[Path], Link | TcFilter | None],
    ) -> None:
        pin = None if self._pins is None else self._pins / name
        link = (None if pin is None else adopt(pin)) or attach()
        self._links.append(link)
        if pin is not None:
            link.keep(pin)

    def close(self) -> None:
        """Let go of the links: they end, but those that are pinned."""
        for link in self._links:
            self._netns.call(link.close)

    def detach(self) -> None:
        """Take the programs off the device."""
        for link in self._links:
            self._netns.call(link.detach)
