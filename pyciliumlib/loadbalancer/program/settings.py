"""How a balancer was made, for the process that goes on with it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from pyciliumlib.errors import LayoutError, StateError
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.program.loading import HOOKS, Hook, Sizes
from pyciliumlib.loadbalancer.saved import as_row


@frozen
class Settings:
    """The arguments of a `LoadBalancer`, its namespace's inode, and the hook that it came to."""

    device: str
    netns: int
    config: LoadBalancerConfig
    sizes: Sizes
    node: LocalNode | None
    hook: Hook | None = None

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "device": self.device,
            "netns": self.netns,
            "config": as_row(self.config),
            "sizes": as_row(self.sizes),
            "node": None if self.node is None else as_row(self.node),
            "hook": str(self.hook),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Settings:
        """What `to_json` gave; LayoutError for settings that only a later version knows."""
        try:
            return cls(
                row["device"],
                row["netns"],
                LoadBalancerConfig(**row["config"]),
                Sizes(**row["sizes"]),
                None if row["node"] is None else LocalNode(**row["node"]),
                Hook(row["hook"]),
            )
        except TypeError as error:
            raise LayoutError(
                f"the settings of the balancer of {row['device']} are a later version's: {error}"
            ) from error

    def goes_on_as(self, other: Settings) -> Hook:
        """The hook at which a balancer with other settings takes this one over.

        Raises StateError if it cannot.
        """
        if other.netns != self.netns:
            raise StateError(
                f"the balancer of {self.device} is in another network namespace: open it there"
            )
        if other.device != self.device:
            raise StateError(
                f"the pin root is that of a balancer of {self.device}, not of {other.device}: take "
                "another pin_root"
            )
        if self.hook is None or self.hook not in HOOKS[other.config.acceleration]:
            raise StateError(
                f"the balancer of {self.device} runs at the hook {self.hook}, and "
                f"acceleration={other.config.acceleration.value!r} is another: close it first"
            )
        return self.hook
