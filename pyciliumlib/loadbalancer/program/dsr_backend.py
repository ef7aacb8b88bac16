"""The backend's side of DSR: what a node needs that serves behind a `LoadBalancer`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from pyciliumlib.errors import InvalidError, MapFullError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, ObjectSpec, attach_xdp
from pyciliumlib.kernel.xdp import XdpMode
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.resources import object_path
from pyciliumlib.types import Address, AddressLike, address_to_bytes, parse_address

_LOOPBACK = "lo"


class DSRBackend:
    """Takes the outer header off packets that a balancer sent here for a service's address.

    The addresses are put on the loopback device, so that servers that listen on any address take
    the connections and answer as the service. They are taken off again at the end, less those that
    were there before.

        with DSRBackend("eth0", ["203.0.113.10"], directors=["192.0.2.1"]):
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
        mode: XdpMode = "native",
    ) -> None:
        """Serve `addresses` at `device` of the calling thread's network namespace.

        With `directors` only packets that come from these are taken. `mode` is that of
        `attach_xdp`. Raises DeviceError, ExistsError, FeatureError, PrivilegeError.
        """
        served = _parsed(addresses, "addresses")
        allowed = None if directors is None else _parsed(directors, "directors")
        self.device, self.addresses = device, served
        self._resources = contextlib.ExitStack()
        try:
            netns = self._resources.enter_context(NetNS.current())
            spec = ObjectSpec.open(object_path("loadbalancer_backend"))
            spec.config["check_directors"] = allowed is not None
            self._object = self._resources.enter_context(spec.load())
            _fill(self._object.maps["lb_addresses"], served)
            _fill(self._object.maps["lb_directors"], allowed or ())
            netlink = self._resources.enter_context(Netlink(netns))
            there = {interface.ip for interface in netlink.addresses(_LOOPBACK)}
            for address in served:
                if address not in there:
                    self._put_on(netlink, address)
            link = attach_xdp(self._object.programs["loadbalancer_backend"], device, mode)
            self._resources.callback(link.close)
        except BaseException:
            self._resources.close()
            raise

    def _put_on(self, netlink: Netlink, address: Address) -> None:
        whole = f"{address}/{address.max_prefixlen}"
        netlink.add_address(_LOOPBACK, whole)
        self._resources.callback(netlink.delete_address, _LOOPBACK, whole)

    def metrics(self) -> Metrics:
        """Packets that were taken, and those dropped by reason."""
        return Metrics.read(self._object.maps["metrics"])

    def close(self) -> None:
        """Take the program off its device; a second call does nothing."""
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
