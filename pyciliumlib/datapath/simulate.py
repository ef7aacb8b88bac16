"""What would become of a packet: the real programs on it, without a trace.

A second load of the programs shares the maps of policy, identity and endpoints with the datapath
and has flow tables, metrics, events and hook slots of its own. The packet's flow, if there is one,
is copied there first, so an established connection is seen as one; so are the users' programs and
their maps.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from pyciliumlib.conntrack import Clock
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.hook import Hook
from pyciliumlib.datapath.hooks import SLOTS
from pyciliumlib.datapath.node import NodeLike
from pyciliumlib.datapath.programs import SCRATCH, endpoint_spec, load_host, shared_maps
from pyciliumlib.errors import InvalidError, KernelError
from pyciliumlib.flow import (
    DropReason,
    Flow,
    FlowService,
    FlowType,
    Namer,
    ServiceNamer,
    TracePoint,
)
from pyciliumlib.flow.program import FlowStream

if TYPE_CHECKING:
    from pyciliumlib.datapath.endpoint import Endpoint
    from pyciliumlib.kernel import Object
    from pyciliumlib.kernel.program import Program

_TC_ACT_OK: Final = 0
_TC_ACT_SHOT: Final = 2
_TC_ACT_REDIRECT: Final = 7
_ETHERNET: Final = 14


class Outcome(enum.Enum):
    """Where the packet would go."""

    TO_ENDPOINT = "to-endpoint"
    TO_STACK = "to-stack"
    TO_HOST = "to-host"
    TO_NETWORK = "to-network"
    ANSWERED = "answered"
    DROPPED = "dropped"


#: Where what the programs tell of is going; what they only let pass is the stack's.
_OUTCOMES: Final = {
    TracePoint.TO_ENDPOINT: Outcome.TO_ENDPOINT,
    TracePoint.TO_HOST: Outcome.TO_HOST,
    TracePoint.TO_NETWORK: Outcome.TO_NETWORK,
}


@frozen
class Simulation:
    """What the programs did with a packet.

    `packet` is the frame as it would leave, `rules` the documents behind the policy entries that
    decided, `flows` the events that would have been told. Identities are 0 where none was looked
    up.
    """

    outcome: Outcome
    reason: DropReason | None
    packet: bytes
    src_identity: int
    dst_identity: int
    rules: tuple[str, ...]
    flows: tuple[Flow, ...]

    @property
    def allowed(self) -> bool:
        """Whether it would go on."""
        return self.outcome is not Outcome.DROPPED and self.reason is None

    @property
    def service(self) -> FlowService | None:
        """The service for which it would be translated, or is dropped."""
        return next((flow.service for flow in self.flows if flow.service), None)

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        head = f"{self.outcome.value}{why} (identity {self.src_identity} -> {self.dst_identity})"
        head += f" by {self.service}" if self.service else ""
        return "\n".join([head, *(f"  by {rule}" for rule in self.rules)])


class Simulator:
    """A second load of the endpoint programs with scratch maps; made at the first simulation."""

    def __init__(
        self,
        node: NodeLike,
        live: Object,
        config: DatapathConfig,
        clock: Clock,
        namer: Namer,
        services: ServiceNamer,
    ) -> None:
        self._node = node
        self._live = live
        self._clock = clock
        self._quiet = quiet = evolve(config, event_bytes=1 << 14, trace_every_packet=True)
        spec = endpoint_spec(quiet, clock, hooks=True)
        self._programs = spec.load(reuse=shared_maps(live, without=SCRATCH))
        self._host: Object | None = None
        self._flows = FlowStream(self._programs, spec.type("event").dtype, namer, services)

    def run(
        self, packet: bytes, at: Endpoint, from_stack: bool, hooks: Iterable[Hook]
    ) -> tuple[int, bytes, list[Flow]]:
        """The program's return value, the frame it left, and its events."""
        name = "to_endpoint" if from_stack else "from_endpoint"
        program = self._programs.programs[name]
        return self._run(program, packet, {"ifindex": at.ifindex}, hooks)

    def run_at_host(
        self, packet: bytes, ifindex: int, to_host: bool, hooks: Iterable[Hook]
    ) -> tuple[int, bytes, list[Flow]]:
        """The same at a device that leads out of the node."""
        if self._host is None:
            self._host = load_host(self._quiet, self._clock, self._programs, hooks=True)
        name = "to_host" if to_host else "from_host"
        return self._run(self._host.programs[name], packet, {"ifindex": ifindex}, hooks)

    def _run(
        self, program: Program, packet: bytes, context: Mapping[str, int], hooks: Iterable[Hook]
    ) -> tuple[int, bytes, list[Flow]]:
        if len(packet) < _ETHERNET:
            raise InvalidError(
                f"{len(packet)} bytes are no Ethernet frame; give the frame as the pod sends it"
            )
        self._copy_flows()
        try:
            with self._hooked(hooks):
                result = self._node.netns.call(lambda: program.run(packet, ctx=context))
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            raise InvalidError(
                f"the kernel runs no program on this frame of {len(packet)} bytes: it must hold "
                "the whole IP header, and be some hundred bytes smaller than a page"
            ) from error
        return result.retval, result.packet, self._flows.read()

    def close(self) -> None:
        """Unload it."""
        self._flows.close()
        if self._host is not None:
            self._host.close()
        self._programs.close()

    @contextlib.contextmanager
    def _hooked(self, hooks: Iterable[Hook]) -> Iterator[None]:
        """Meanwhile copies of the users' programs are in the slots."""
        slots = self._programs.maps["hooks"]
        with contextlib.ExitStack() as stack:
            for hook in hooks:
                copy = stack.enter_context(hook.rehearse(shared_maps(self._programs)))
                slots[SLOTS[hook.slot]] = copy.programs[hook.program]
                stack.callback(slots.delete, SLOTS[hook.slot])
            yield

    def _copy_flows(self) -> None:
        for name in ("flows", "pending", "fragments", "lb_affinity"):
            scratch = self._programs.maps[name]
            scratch.delete_batch(scratch.lookup_batch()[0])
            keys, values = self._live.maps[name].lookup_batch()
            if len(keys):
                scratch.update_batch(keys, values)


def _goes(last: Flow | None, untold: Outcome) -> Outcome:
    """Where the programs said last that it goes; `untold` where they said nothing."""
    point = last.point if last else None
    return untold if point is None else _OUTCOMES.get(point, Outcome.TO_STACK)


def summarise(retval: int, packet: bytes, flows: list[Flow], rules: tuple[str, ...]) -> Simulation:
    """The outcome of a run, from what the program returned and told."""
    last = flows[-1] if flows else None
    dropped = next((flow for flow in flows if flow.type is FlowType.DROP), None)
    if retval == _TC_ACT_SHOT:
        outcome = Outcome.DROPPED
    elif retval == _TC_ACT_REDIRECT:
        # what is answered is told of only where it is dropped as well
        outcome = Outcome.ANSWERED if dropped else _goes(last, Outcome.ANSWERED)
    else:
        outcome = _goes(last, Outcome.TO_STACK)
    shown = dropped or last
    return Simulation(
        outcome=outcome,
        reason=dropped.drop_reason if dropped else None,
        packet=packet,
        src_identity=shown.src_identity if shown else 0,
        dst_identity=shown.dst_identity if shown else 0,
        rules=rules,
        flows=tuple(flows),
    )
