"""The backend's side of DSR: what a node needs that serves behind a `LoadBalancer`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from types import TracebackType
from typing import Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import FeatureError, InvalidError, MapFullError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, Object, ObjectSpec
from pyciliumlib.loadbalancer.backend import number
from pyciliumlib.loadbalancer.config import GENEVE_PORT
from pyciliumlib.loadbalancer.kinds import Acceleration
from pyciliumlib.loadbalancer.program.loading import HOOKS, Hook, attach_once
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.resources import object_path
from pyciliumlib.types import Address, AddressLike, address_to_bytes, parse_address
from pyciliumlib.types.ports import PORT_MAX

_LOOPBACK: Final = "lo"
#: Of the flows, how many may be new ones.
_PENDING: Final = 4


@frozen
class DSRPrograms:
    """The two objects, one of them for XDP alone, over the same maps."""

    flows: int = field(default=65536, validator=number(1, 1 << 24, "flows"))
    geneve_port: int = field(default=GENEVE_PORT, validator=number(1, PORT_MAX, "geneve_port"))
    check_directors: bool = field(default=False, kw_only=True)

    def load(self) -> Object:
        """What runs at tc: `dsr_take_tc` and `dsr_restore_tc`; the caller closes it."""
        return self._spec("loadbalancer_backend_tc").load()

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


class DSRBackend:
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
    ) -> None:
        """Serve `addresses` at `device` of the calling thread's network namespace.

        With `directors` only packets that come from these are taken: then none with an option,
        since those come from the clients' addresses. `acceleration` says where packets come in, as
        for `LoadBalancer`; answers go out at tc. Without `on_loopback` the addresses are not put
        there, as IP in IP alone needs. `flows` is how many connections by option or Geneve are
        remembered. Raises DeviceError, ExistsError, FeatureError, InvalidError, PrivilegeError.
        """
        served = _parsed(addresses, "addresses")
        allowed = None if directors is None else _parsed(directors, "directors")
        self.device, self.addresses = device, served
        self._programs = DSRPrograms(flows, geneve_port, check_directors=allowed is not None)
        self._resources = contextlib.ExitStack()
        try:
            netns = self._resources.enter_context(NetNS.current())
            self._object = self._resources.enter_context(self._programs.load())
            _fill(self._object.maps["dsr_addresses"], served)
            _fill(self._object.maps["dsr_directors"], allowed or ())
            if on_loopback:
                self._put_on_loopback(netns)
            self._attach_restoring()
            self.hook = self._attach_taking(Acceleration(acceleration))
        except BaseException:
            self._resources.close()
            raise

    def _attach_restoring(self) -> None:
        link = attach_once(self._object.programs["dsr_restore_tc"], self.device, "egress")
        self._resources.callback(link.close)

    def _attach_taking(self, acceleration: Acceleration) -> Hook:
        """Where packets come in: the first of the hooks that the device can."""
        *better, last = HOOKS[acceleration]
        for hook in better:
            with contextlib.suppress(FeatureError):
                self._attach_taking_at(hook)
                return hook
        self._attach_taking_at(last)
        return last

    def _attach_taking_at(self, hook: Hook) -> None:
        program = self._object.programs["dsr_take_tc"]
        with contextlib.ExitStack() as stack:
            if hook is not Hook.TC:
                loaded = stack.enter_context(self._programs.load_xdp(self._object))
                program = loaded.programs["dsr_take_xdp"]
            stack.callback(hook.attach(program, self.device).close)
            self._resources.push(stack.pop_all())

    def _put_on_loopback(self, netns: NetNS) -> None:
        netlink = self._resources.enter_context(Netlink(netns))
        there = {interface.ip for interface in netlink.addresses(_LOOPBACK)}
        for address in self.addresses:
            if address not in there:
                whole = f"{address}/{address.max_prefixlen}"
                netlink.add_address(_LOOPBACK, whole)
                self._resources.callback(netlink.delete_address, _LOOPBACK, whole)

    def metrics(self) -> Metrics:
        """Packets that were taken (ingress) and answers that were restored, and drops by reason."""
        return Metrics.read(self._object.maps["metrics"])

    def close(self) -> None:
        """Take the programs off their device; a second call does nothing.

        Connections by option or Geneve are forgotten, so their answers go out as the node's own.
        """
        self._resources.close()

    def __enter__(self) -> DSRBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DSRBackend at {self.device} for {', '.join(map(str, self.addresses))}>"


def _parsed(values: Iterable[AddressLike], what: str) -> tuple[Address, ...]:
    if isinstance(values, (str, bytes)):
        raise InvalidError(f"{what} {values!r}: write a list")
    return tuple(dict.fromkeys(map(parse_address, values)))


def _fill(map_: Map, addresses: tuple[Address, ...]) -> None:
    if len(addresses) > map_.max_entries:
        raise MapFullError(errno.ENOSPC, f"{len(addresses)} addresses, {map_.max_entries} fit")
    if addresses:
        data = np.frombuffer(b"".join(map(address_to_bytes, addresses)), map_.key_dtype.base)
        keys = data.reshape(-1, 16) if map_.key_dtype.shape else data
        map_.update_batch(keys, np.ones(len(addresses), map_.value_dtype))
