"""Two directors before five backends: one director dies, and no connection breaks. Needs root."""

import collections
import contextlib
import functools
import socketserver
import threading

import pyciliumlib as pcl
from pyciliumlib.net import Netlink, write_sysctls

VIP = "203.0.113.10"
# XDP in the stack: the other ends of these devices run no XDP, as a driver's would need.
CONFIG = pcl.LoadBalancerConfig("maglev", "dsr", "ipip", acceleration="generic")


class Handler(socketserver.BaseRequestHandler):
    """Says which backend it is, and whom it sees, as often as it is asked."""

    def handle(self):
        while self.request.recv(100):
            self.request.sendall(f"{self.server.name} sees {self.client_address[0]}".encode())


def serve(backend):
    """Answer at the service's address in a backend's namespace."""
    server = backend.call(lambda: socketserver.ThreadingTCPServer((VIP, 80), Handler))
    server.name, server.daemon_threads = backend.name, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    resources.callback(server.server_close)
    resources.callback(server.shutdown)


def send_to(director):
    """What a router does that learns another way: from now on packets go to this director."""
    with Netlink(node.netns) as netlink:
        netlink.add_route(VIP, dev=director.host_ifname, via=director.ip4, replace=True)


with pcl.Lab() as lab, contextlib.ExitStack() as resources:
    node = lab.node()
    client, *directors = [node.pod(name) for name in ("client", "director-1", "director-2")]
    backends = [node.pod(f"backend-{number}") for number in range(1, 6)]

    # Each backend has the service's address, and takes off what the directors put around.
    for backend in backends:
        take_off = functools.partial(pcl.DSRBackend, "eth0", [VIP], acceleration="generic")
        side = backend.call(take_off)
        resources.callback(side.close)
        serve(backend)

    # Both directors get the same service, and know nothing of each other.
    web = pcl.Service("web", [f"{VIP}:80"], [f"{backend.ip4}:80" for backend in backends])
    balancers = []
    for director in directors:
        write_sysctls(director.netns, {"ipv4/conf/eth0/forwarding": 1})
        balancer = director.call(functools.partial(pcl.LoadBalancer, "eth0", config=CONFIG))
        resources.callback(balancer.close)
        print(director.name, balancer.upsert(web))
        balancers.append(balancer)

    send_to(directors[0])
    open_connections = [client.dial(VIP, "80/TCP") for _ in range(50)]
    answers = [connection.exchange().reply.decode() for connection in open_connections]
    print(collections.Counter(answers).most_common(1)[0][0].endswith(str(client.ip4)))
    print("backends that answer:", len(set(answers)))
    print("director-1:", balancers[0].where(f"{client.ip4}:40000", f"{VIP}:80"))

    balancers[0].close()
    send_to(directors[1])
    again = [connection.exchange().reply.decode() for connection in open_connections]
    print("the same backends by the other director:", again == answers)
    print("connections that director-2 knows:", len(list(balancers[1].connections())))
    for connection in open_connections:
        connection.close()
