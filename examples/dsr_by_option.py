"""A Service whose backends have another port than it: packets carry the service in an IP option,
and the backends answer the clients themselves. Needs root.
"""

import contextlib
import functools

import pyciliumlib as pcl
from pyciliumlib.net import Netlink, write_sysctls

VIPS = ["203.0.113.11", "2001:db8:a::11"]
SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: web-service
  annotations:
    service.cilium.io/mode: "dsr"
spec:
  type: LoadBalancer
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
"""
SLICE = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{family}, labels: {{kubernetes.io/service-name: web-service}}}}
addressType: {family}
ports: [{{port: 8080}}]
endpoints: [{{addresses: ["{addresses[0]}"]}}, {{addresses: ["{addresses[1]}"]}}]
"""
# At tc, since the pods' devices leave checksums to each other. Translated, unless a service asks.
CONFIG = pcl.LoadBalancerConfig("maglev", "snat", "opt", mode_annotation=True)

with pcl.Lab() as lab, contextlib.ExitStack() as resources:
    node = lab.node()
    client, director, *backends = map(node.pod, ("client", "director", "red", "blue"))
    with Netlink(node.netns) as netlink:
        netlink.add_route(VIPS[0], via=director.ip4, dev=director.host_ifname)
        netlink.add_route(VIPS[1], via=director.ip6, dev=director.host_ifname)

    servers = []
    for backend in backends:
        read_option = functools.partial(pcl.DSRBackend, "eth0", VIPS, acceleration="disabled")
        resources.callback(backend.call(read_option).close)
        servers.append(backend.serve("8080/TCP"))

    write_sysctls(director.netns, {f"ipv{n}/conf/eth0/forwarding": 1 for n in (4, 6)})
    balance = functools.partial(pcl.LoadBalancer, "eth0", config=CONFIG)
    balancer = resources.enter_context(director.call(balance))
    slices = [
        SLICE.format(
            family=family, addresses=[getattr(backend, f"ip{number}") for backend in backends]
        )
        for family, number in (("IPv4", 4), ("IPv6", 6))
    ]
    read = pcl.read_services(
        SERVICE + "".join(slices), config=CONFIG, addresses={"default/web-service": VIPS}
    )
    print(*read.warnings)
    print(balancer.upsert(read.services[0]))
    placed = balancer.where(f"{client.ip4}:40000", f"{VIPS[0]}:80")
    print(placed.forwarding, "by", placed.dispatch, "to port", placed.backend.port)

    for vip in VIPS:
        answers = {client.connect(vip, "80/TCP").reply.decode().strip() for _ in range(20)}
        print(vip, "is answered by", *sorted(answers))
    peers = {request.peer for server in servers for request in server.requests}
    print("backends see the client:", peers == {client.ip4, client.ip6})
