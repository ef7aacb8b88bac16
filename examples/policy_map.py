"""A policy on one device, alone: no endpoints, no YAML, no rest of the datapath. Needs root."""

import pyciliumlib as pcl

OFFICE = 5001  # any number: whoever sits behind this prefix

with pcl.Lab() as lab, pcl.PolicyMap() as policy:
    node = lab.node()
    server, client = node.pod("server"), lab.outside("client", of=node)
    server.serve("443/TCP")
    server.serve("22/TCP")

    # Everybody may come to 443, the office also to 22; the server itself may go anywhere.
    policy.ipcache.assign(f"{client.ip4}/32", OFFICE)
    policy.allow("ingress", port="443/TCP")
    policy.allow("ingress", identity=OFFICE, port="22/TCP")
    policy.allow("egress")
    node.call(lambda: policy.attach(server.host_ifname, facing="subject"))

    for address in server.addresses:
        for port in ("443/TCP", "22/TCP"):
            print(address, port, client.connect(address, port, timeout=0.3))

    policy.remove("ingress", OFFICE, "22/TCP")
    print("withdrawn:", client.connect(server.ip4, "22/TCP", timeout=0.3))
    print(policy.lookup("ingress", OFFICE, "22/TCP"))
    print(policy.metrics())
