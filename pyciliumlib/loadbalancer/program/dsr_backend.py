"""The backend's side of DSR: what a node needs that serves behind a `LoadBalancer`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import InvalidError, MapFullError, NotFoundError, StateError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, Program
from pyciliumlib.kernel.pinroot import PinLayout, PinRoot
from pyciliumlib.loadbalancer.config import GENEVE_PORT
from pyciliumlib.loadbalancer.kinds import Acceleration
from pyciliumlib.loadbalancer.program.dsr_programs import DSRHooks, DSRPrograms
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.types import Address, AddressLike, parse_address

_LAYOUT: Final = PinLayout("DSRBackend", "v1")
_LOOPBACK: Final = "lo"
#: Values of `dsr_addresses`, which programs do not read.
_SERVED: Final = 1
_PUT_ON: Final = 2  # on the loopback device, where it was not before


class DSRBackend(Closeable):
    """Lets this node serve behind balancers that send it packets as clients sent them (DSR).

    What comes for a service's address has its outer header or option taken off. Behind IP in IP
    servers listen on any address, and answer as the service: its addresses are put on the loopback
    device, and taken off again at the end, less those that were there before. Behind an option or
    Geneve they listen on the backend's own address and port, and their answers get the service's on
    their way out, which is to be by the same device.

        with DSRBackend("eth0", ["203.0.113.10"]):
            serve()

    In a network where clients ask for the service's address by ARP themselves, keep this node from
    answering: `net.ipv4.conf.all.arp_ignore=1`, `arp_announce=2`.
    Needs CAP_BPF and CAP_NET_ADMIN, or root. Least kernel: 5.10.
    """

    def __init__(
        self,
        device: str,
        addresses: Iterable[AddressLike],
        *,
        directors: Iterable[AddressLike] | None = None,
        acceleration: Acceleration | str = Acceleration.NATIVE,
        on_loopback: bool = True,
        geneve_port: int = GENEVE_PORT,
        flows: int = 65536,
        pin_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Serve `addresses` at `device` of the calling thread's network namespace.

        With `directors` only packets that come from these are taken: then none with an option,
        since those come from the clients' addresses. `acceleration` says where packets come in, as
        for `LoadBalancer`; answers go out at tc. Without `on_loopback` the addresses are not put
        there, as IP in IP alone needs. `flows` is how many connections by option or Geneve are
        remembered.

        Those are forgotten when this ends, and their answers go out as the node's own then. With
        `pin_root`, a directory below /sys/fs/bpf, all goes on without the process, and the next one
        takes it over with the same `pin_root`, with its own version's programs.

        Raises DeviceError, ExistsError where the device runs another, FeatureError, InvalidError,
        PrivilegeError; of a `pin_root` LockedError if another process has it, LayoutError for
        another version's, MismatchError for other `flows`, StateError for another device or hook.
        """
        self.device, self.addresses = device, _parsed(addresses, "addresses")
        allowed = None if directors is None else _parsed(directors, "directors")
        programs = DSRPrograms(flows, geneve_port, check_directors=allowed is not None)
        self._pins = None if pin_root is None else PinRoot(pin_root, _LAYOUT)
        self._resources = contextlib.ExitStack()
        self._closed = False
        try:
            self._netns = self._resources.enter_context(NetNS.current())
            links = self._pins.links if self._pins else None
            self._hooks = DSRHooks(self._netns, device, links)
            self._resources.callback(self._hooks.close)
            is_new = self._hooks.was is None
            maps = self._pins.maps if self._pins else None
            self._object = self._resources.enter_context(programs.load(maps))
        except BaseException:
            self._let_go()
            raise
        try:
            self._serve(allowed or (), on_loopback=on_loopback)
            self._hooks.restore_with(self._object.programs["dsr_restore_tc"])
            self.hook = self._hooks.take_with(
                lambda hook: self._program_at(hook, programs), Acceleration(acceleration)
            )
        except BaseException:
            if is_new:
                self.close()
            else:
                self._let_go()
            raise

    def _program_at(self, hook: Hook, programs: DSRPrograms) -> Program:
        if hook is Hook.TC:
            return self._object.programs["dsr_take_tc"]
        loaded = self._resources.enter_context(programs.load_xdp(self._object))
        return loaded.programs["dsr_take_xdp"]

    # ------------------------------------------------------------------ addresses

    def _serve(self, directors: Iterable[Address], *, on_loopback: bool) -> None:
        """Let the maps and the loopback device have what they should, whatever was before."""
        _hold(self._object.maps["dsr_directors"], dict.fromkeys(directors, _SERVED))
        ours = self._put_on()
        wanted = dict.fromkeys(self.addresses, _SERVED)
        with Netlink(self._netns) as netlink:
            there = {interface.ip for interface in netlink.addresses(_LOOPBACK)}
            for address in self.addresses if on_loopback else ():
                if address in ours or address not in there:
                    wanted[address] = _PUT_ON
        # first the map, so that what is put on is known to be, wherever this ends
        _hold(self._object.maps["dsr_addresses"], {**dict.fromkeys(ours, _PUT_ON), **wanted})
        with Netlink(self._netns) as netlink:
            for address, value in wanted.items():
                if value == _PUT_ON and address not in there:
                    netlink.add_address(_LOOPBACK, _whole(address))
        self._take_off(address for address in ours if wanted.get(address) != _PUT_ON)
        _hold(self._object.maps["dsr_addresses"], wanted)

    def _put_on(self) -> list[Address]:
        """The addresses that this, or the process before, put on the loopback device."""
        rows = self._object.maps["dsr_addresses"].items()
        return [parse_address(key) for key, value in rows if value == _PUT_ON]

    def _take_off(self, addresses: Iterable[Address]) -> None:
        with Netlink(self._netns) as netlink:
            for address in addresses:
                with contextlib.suppress(NotFoundError):
                    netlink.delete_address(_LOOPBACK, _whole(address))

    # ------------------------------------------------------------------ questions, life

    def metrics(self) -> Metrics:
        """Packets that were taken (ingress) and answers that were restored, and drops by reason."""
        return Metrics.read(self._object.maps["metrics"])

    def keep(self) -> None:
        """Close this handle and let all go on at the pin root.

        Raises StateError without a pin root: nothing would hold it.
        """
        if self._pins is None:
            raise StateError("this has no pin_root: nothing of it can outlive the process")
        self._let_go()

    def close(self) -> None:
        """Take the programs off their device, and the addresses off the loopback device.

        Connections by option or Geneve are forgotten. To let all go on, use `keep()`. A second call
        does nothing.
        """
        if self._closed:
            return
        self._hooks.detach()
        self._take_off(self._put_on())
        if self._pins is not None:
            self._pins.remove()
        self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        self._resources.close()
        if self._pins is not None:
            self._pins.close()

    def __repr__(self) -> str:
        return f"<DSRBackend at {self.device} for {', '.join(map(str, self.addresses))}>"


def _parsed(values: Iterable[AddressLike], what: str) -> tuple[Address, ...]:
    if isinstance(values, (str, bytes)):
        raise InvalidError(f"{what} {values!r}: write a list")
    return tuple(dict.fromkeys(map(parse_address, values)))


def _whole(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


def _hold(map_: Map, wanted: Mapping[Address, int]) -> None:
    """Let a map of addresses have these and no others."""
    if len(wanted) > map_.max_entries:
        raise MapFullError(errno.ENOSPC, f"{len(wanted)} addresses, {map_.max_entries} fit")
    for address, value in wanted.items():
        map_[address] = value
    for key in [key for key, _ in map_.items() if parse_address(key) not in wanted]:
        del map_[key]
