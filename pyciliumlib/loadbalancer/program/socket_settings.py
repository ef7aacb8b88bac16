"""How a balancer of sockets was made, for the process that goes on with it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from pyciliumlib.errors import LayoutError, StateError
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.program.loading import Sizes
from pyciliumlib.loadbalancer.saved import as_row


@frozen
class SocketSettings:
    """The arguments of a `SocketBalancer`, its namespace, and whose services its programs read.

    `netns` is the inode of the namespace, `shared` the kernel's number of another balancer's map
    of services, 0 for its own.
    """

    cgroup: str
    netns: int
    config: LoadBalancerConfig
    sizes: Sizes
    node: LocalNode | None
    shared: int

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "cgroup": self.cgroup,
            "netns": self.netns,
            "config": as_row(self.config),
            "sizes": as_row(self.sizes),
            "node": None if self.node is None else as_row(self.node),
            "shared": self.shared,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> SocketSettings:
        """What `to_json` gave; LayoutError for settings that only a later version knows."""
        try:
            return cls(
                row["cgroup"],
                row["netns"],
                LoadBalancerConfig(**row["config"]),
                Sizes(**row["sizes"]),
                None if row["node"] is None else LocalNode(**row["node"]),
                row["shared"],
            )
        except TypeError as error:
            raise LayoutError(
                f"the settings of the balancer of {row['cgroup']} are a later version's: {error}"
            ) from error

    def check(self, other: SocketSettings) -> None:
        """StateError if a balancer with other settings cannot take this one over."""
        if other.netns != self.netns:
            raise StateError(
                f"the balancer of {self.cgroup} is in another network namespace: open it there"
            )
        if other.cgroup != self.cgroup:
            raise StateError(
                f"the pin root is that of a balancer of {self.cgroup}, not of {other.cgroup}: take "
                "another pin_root"
            )
        if other.shared != self.shared:
            raise StateError(
                f"the balancer of {self.cgroup} reads other services: share the balancer that it "
                "shared before, or none if it shared none"
            )
