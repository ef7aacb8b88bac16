"""A node that closes its ports: tried under an audit first, then in force. Needs root."""

import pyciliumlib as pcl

CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: edge-nodes}
spec:
  nodeSelector: {matchLabels: {role: edge}}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "22", protocol: TCP}]}]
  - fromEndpoints: [{matchLabels: {app: monitor}}]
    toPorts: [{ports: [{port: "9100", protocol: TCP}]}]
"""
CONFIG = pcl.DatapathConfig(
    host_firewall=True,
    devices=("eth0",),
    local_node=pcl.LocalNode("n1", labels={"role": "edge"}),
)

with pcl.Lab() as lab, pcl.Datapath(node := lab.node(), config=CONFIG) as dp:
    world = lab.outside("world", of=node)
    dp.add_endpoint("monitor", labels={"app": "monitor"})
    clients = (world, lab.host("monitor"))
    for port in ("22/TCP", "9100/TCP"):
        node.serve(port)

    def attempt(title: str) -> None:
        for client in clients:
            for address in (node.ip4, node.ip6):
                found = [client.connect(address, f"{p}/TCP", timeout=0.3).ok for p in (22, 9100)]
                print(f"{title}: {client.name} by IPv{address.version}: 22 and 9100 {found}")

    attempt("open")
    dp.host.audit()  # nobody is locked out while the policy is tried
    dp.policy.apply(CLOSED)
    attempt("audit")
    would = {(f.src_name, f.dport) for f in dp.flows() if f.verdict.value == "AUDIT"}
    print("would be dropped:", sorted(would))
    dp.host.audit(False)
    attempt("closed")
    print(dp.policy.explain(world.ip4, dp.host.endpoint, "9100/TCP").missing[0])
