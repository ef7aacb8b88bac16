"""The kernel layer alone, with a BPF object of your own: XDP that drops TCP to port 80. Needs root.

Build the object once, by `make examples` or by hand:

    clang -O2 -g -target bpf -I /usr/include/$(uname -m)-linux-gnu -c drop80.bpf.c -o drop80.bpf.o

`drop80.py FILE` takes it from elsewhere than `build/examples`.
"""

import sys
from pathlib import Path

import pyciliumlib as pcl

BUILT = Path(__file__).parents[2] / "build" / "examples" / "drop80.bpf.o"
# Needs neither root nor a kernel.
spec = pcl.ObjectSpec.open(sys.argv[1] if len(sys.argv) > 1 else BUILT)
spec.config["port"] = 80
print(spec)

with pcl.Lab() as lab, spec.load() as loaded:
    node = lab.node()
    client, server = node.pod("client"), node.pod("server")
    for port in ("80/TCP", "443/TCP"):
        server.serve(port)

    program = loaded.programs["xdp_drop_tcp_port_80"]
    with server.call(lambda: pcl.attach_xdp(program, "eth0", mode="native")) as link:
        print(link)
        for port in ("80/TCP", "443/TCP"):
            print(port, client.connect(server.ip4, port, timeout=0.3))
        print("ping", client.ping(server.ip6))

    # One record a CPU; as numpy columns they add up in one call.
    values = loaded.maps["counters"].lookup_batch()[1]
    print("dropped", values["dropped"].sum(), "passed", values["passed"].sum())

    # A packet of your own through the program, on no device at all.
    result = program.run(bytes(64), repeat=100_000)
    print(f"XDP action {result.retval}, {result.duration_ns} ns a run")
