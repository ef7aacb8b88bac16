"""Translation: the backends know nothing of the balancer and need nothing. Needs root."""

import functools

import pyciliumlib as pcl
from pyciliumlib.net import Netlink, write_sysctls

VIPS = ["203.0.113.20", "2001:db8:a::20"]
CONFIG = pcl.LoadBalancerConfig("maglev", "snat")

with pcl.Lab() as lab:
    node = lab.node()
    client, director, *backends = map(node.pod, ("client", "director", "red", "blue"))
    with Netlink(node.netns) as netlink:
        netlink.add_route(VIPS[0], via=director.ip4, dev=director.host_ifname)
        netlink.add_route(VIPS[1], via=director.ip6, dev=director.host_ifname)
    write_sysctls(director.netns, {f"ipv{n}/conf/eth0/forwarding": 1 for n in (4, 6)})
    servers = [backend.serve("8080/TCP") for backend in backends]
    shop = pcl.Service(
        "shop",
        [f"{VIPS[0]}:80", f"[{VIPS[1]}]:80"],
        [address for pod in backends for address in (f"{pod.ip4}:8080", f"[{pod.ip6}]:8080")],
    )

    with director.call(functools.partial(pcl.LoadBalancer, "eth0", config=CONFIG)) as balancer:
        print(balancer.upsert(shop))
        for vip in VIPS:
            answers = {client.connect(vip, "80/TCP").reply.decode().strip() for _ in range(20)}
            print(vip, "is answered by", *sorted(answers))
        peers = {request.peer for server in servers for request in server.requests}
        print("backends see the balancer:", peers == {director.ip4, director.ip6})

        with client.dial(VIPS[0], "80/TCP") as connection:
            connection.exchange()
            (known,) = (one for one in balancer.connections() if not one.closing)
            print("the client's port is known:", known.client.port == connection.local[1])
            print("to its backend it is", known.nat.address, "at one of", balancer.nat_ports)
