"""Clients outside reach pods by a NodePort and by a LoadBalancer's address, under policy. Root."""

import pyciliumlib as pcl

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - fromCIDR: [{client}/32]
    toPorts: [{{ports: [{{port: "8080", protocol: TCP}}]}}]
"""
VIP = "198.51.100.10"
CONFIG = pcl.DatapathConfig(node_port=True, devices=("eth0",))

with pcl.Lab() as lab, pcl.Datapath(lab.node("edge"), config=CONFIG) as dp:
    node = lab.nodes["edge"]
    client, stranger = lab.outside("client"), lab.outside("stranger")
    for host in (client, stranger):
        host.run(["ip", "route", "add", VIP, "via", node.ip4], check=True)
    red, blue = (node.pod(name) for name in ("red", "blue"))
    for pod in (red, blue):
        dp.add_endpoint(pod.name, labels={"app": "web"}, pod=pod)
    servers = [pod.serve("8080/TCP") for pod in (red, blue)]

    frontends = [
        pcl.Frontend("0.0.0.0", 30080, type="NodePort"),
        pcl.Frontend(VIP, 80, type="LoadBalancer"),
    ]
    web = pcl.Service("web", frontends, [f"{red.ip4}:8080", f"{blue.ip4}:8080"])
    print(dp.services.upsert(web))
    dp.policy.apply(POLICY.format(client=client.ip4))

    # Policy sees the client and the pod's port, whatever the frontend.
    for address, port in ((node.ip4, 30080), (VIP, 80)):
        names = {client.connect(address, f"{port}/TCP").reply.strip() for _ in range(20)}
        print(f"{address}:{port}:", *sorted(names))
        print("  the stranger:", stranger.connect(address, f"{port}/TCP", timeout=0.3))
    print("the pods saw:", *{str(request.peer) for s in servers for request in s.requests})
    print(next(flow for flow in dp.flows() if flow.dropped and flow.service))

    # A source range of the service refuses it before policy is asked.
    dp.services.upsert(pcl.Service(web.name, frontends, web.backends, source_ranges=["10.0.0.0/8"]))
    print("not in the ranges:", client.connect(VIP, "80/TCP", timeout=0.3))
    print("but by its NodePort:", client.connect(node.ip4, "30080/TCP").ok)
