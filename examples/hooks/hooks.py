"""Programs of your own in the packet's path: one counts by identity, one drops by its own rule.

Build the objects once, by `make examples` or by hand, where H is `pyciliumlib.include_dir()`:

    clang -O2 -g -target bpf -I H -I /usr/include/$(uname -m)-linux-gnu \\
        -c count.bpf.c -o count.bpf.o

`hooks.py FOLDER` takes them from elsewhere than `build/examples`. Needs root.
"""

import sys
from pathlib import Path

import pyciliumlib as pcl

BUILT = Path(__file__).parents[2] / "build" / "examples"
objects = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT

with pcl.Lab() as lab, pcl.Datapath(lab.node()) as dp:
    client = dp.add_endpoint("client", labels={"app": "client"})
    server = dp.add_endpoint("server", labels={"app": "server"})
    for port in ("22/TCP", "80/TCP", "8080/TCP"):
        lab.host("server").serve(port)

    with (
        dp.hooks.attach("before-policy", objects / "low_ports.bpf.o"),
        dp.hooks.attach("after-policy", objects / "count.bpf.o") as counting,
    ):
        for port in ("22/TCP", "80/TCP", "8080/TCP"):
            print(port, lab.host("client").connect(server.ip6, port, timeout=0.3))
        for identity, per_cpu in counting.maps["bytes_by_identity"].items():
            print(f"identity {identity} sent {sum(per_cpu)} bytes")

    print("80/TCP without the hooks:", lab.host("client").connect(server.ip6, "80/TCP"))
    for flow in dp.flows():
        if flow.drop_reason is pcl.DropReason.HOOK:
            print(flow)
