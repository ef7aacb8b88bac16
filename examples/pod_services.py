"""Pods reach a service by their packets, under policy; a backend drains, and one goes. Root."""

import pyciliumlib as pcl

DOCUMENTS = """
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  clusterIP: 10.96.0.10
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{red}]}}, {{addresses: [{blue}]}}]
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: servers}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""
VIP = "10.96.0.10"

with pcl.Lab() as lab, pcl.Datapath(lab.node()) as dp:
    node = lab.nodes["n1"]
    client, stranger, red, blue = (node.pod(name) for name in ("client", "stranger", "red", "blue"))
    for pod in (client, stranger):
        dp.add_endpoint(pod.name, labels={"app": pod.name}, pod=pod)
    for pod in (red, blue):
        dp.add_endpoint(pod.name, labels={"app": "server"}, pod=pod)
        pod.serve("8080/TCP")
    dp.policy.apply(POLICY)

    read = pcl.read_services(DOCUMENTS.format(red=red.ip4, blue=blue.ip4))
    print(dp.services.apply(read.services))
    print(dp.services.where(f"{client.ip4}:40000", f"{VIP}:80"))

    # The client sees the service, policy sees the backend.
    print("client:", *sorted({client.connect(VIP, "80/TCP").reply.strip() for _ in range(20)}))
    print("stranger:", stranger.connect(VIP, "80/TCP", timeout=0.3))
    print(*(flow for flow in dp.flows() if flow.dropped and flow.service), sep="\n")

    # A connection outlives the draining of its backend; no other comes to it.
    with client.dial(VIP, "80/TCP") as connection:
        name = connection.exchange().reply.decode().strip()
        mine, other = (red, blue) if name == "red" else (blue, red)
        dp.services.drain(f"{mine.ip4}:8080")
        new = {client.connect(VIP, "80/TCP").reply.decode().strip() for _ in range(10)}
        print("drained, and answers:", connection.exchange().reply == f"{name}\n".encode())
        print("new connections go elsewhere:", new == {other.name})
        (entry,) = (entry for entry in dp.conntrack if entry.sport == connection.local[1])
        print(f"{entry.service[0]}:{entry.service[1]} is {name}:", entry.dst == mine.ip4)

    # Where nobody is left, the client is told at once.
    dp.services.upsert(read.services[0].with_backends([]))
    print("nobody is left:", client.connect(VIP, "80/TCP"))
