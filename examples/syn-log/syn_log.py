"""Events of a BPF program of your own: one by one, by asyncio, and as a numpy array.

Build the object once by `make examples`; `syn_log.py FILE` takes it from elsewhere. Needs root.
"""

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pyciliumlib as pcl

BUILT = Path(__file__).parents[2] / "build" / "examples" / "syn_log.bpf.o"
spec = pcl.ObjectSpec.open(sys.argv[1] if len(sys.argv) > 1 else BUILT)
attempt = spec.type("attempt")  # the C struct: its numpy layout, and its values as records


async def first(ring: pcl.RingBuffer) -> None:
    async for event in ring:
        print("asyncio:", attempt.decode(event.tobytes()))
        return


with pcl.Lab() as lab, spec.load() as loaded:
    node = lab.node()
    client, server = node.pod("client"), node.pod("server")
    server.serve("80/TCP")
    program, maps = loaded.programs["log_syn"], loaded.maps

    with (
        server.call(lambda: pcl.attach_tc(program, "eth0", "ingress")),
        pcl.RingBuffer(maps["attempts"], attempt.dtype, lost=maps["lost"]) as ring,
    ):
        client.connect(server.ip4, "80/TCP", source_port=40000)
        for event in ring.records(timeout=0.2):
            print("one by one:", attempt.decode(event.tobytes()))

        client.connect(server.ip6, "81/TCP", source_port=40001)
        asyncio.run(first(ring))

        for port in (80, 80, 81, 82, 80):
            client.connect(server.ip4, f"{port}/TCP")
        events = ring.drain()  # in one call, however many there are
        print("numpy:", len(events), "attempts by port", Counter(events["dport"].tolist()))
        print("lost:", ring.dropped)
