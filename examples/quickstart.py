"""Two pods under policy: explained, simulated, tried for real, observed. Needs root."""

import pyciliumlib as pcl

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""

with pcl.Lab() as lab, pcl.Datapath(lab.node()) as dp:
    web = dp.add_endpoint("web", labels={"app": "web"})
    api = dp.add_endpoint("api", labels={"app": "api"})
    dp.policy.apply(POLICY)

    print(dp.policy.explain(src=web, dst=api, port="8080/TCP"))
    print(dp.policy.explain(src=web, dst=api, port="9090/TCP"))

    lab.host("api").serve("8080/TCP")
    print("8080:", lab.host("web").connect(api.ip4, "8080/TCP"))
    print("9090:", lab.host("web").connect(api.ip6, "9090/TCP", timeout=0.3))

    for flow in dp.flows():
        if flow.protocol_name == "TCP":  # the pods' stacks send some ICMPv6 of their own
            print(flow)
