"""A CiliumLocalRedirectPolicy: what pods ask the cloud at its metadata address, a proxy on their
node answers; where there is none, the address is what it was. Needs root.
"""

import pyciliumlib as pcl

METADATA = "169.254.169.254"
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {name: metadata}
spec:
  redirectFrontend:
    addressMatcher: {ip: 169.254.169.254, toPorts: [{port: "80", protocol: TCP}]}
  redirectBackend:
    localEndpointSelector: {matchLabels: {app: metadata-proxy}}
    toPorts: [{port: "8080", protocol: TCP}]
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {{name: proxy-1, labels: {{app: metadata-proxy}}}}
spec: {{nodeName: n1, containers: [{{name: proxy, ports: [{{containerPort: 8080}}]}}]}}
status: {{podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: "{ready}"}}]}}
"""

with pcl.Lab() as lab:
    node = lab.node()
    client, proxy = node.pod("client"), node.pod("proxy")
    cloud = lab.outside("cloud", ip4=METADATA)
    cloud.serve("80/TCP")
    proxy.serve("8080/TCP")
    here = pcl.LocalNode("n1")

    def read(ready):
        pod = POD.format(address=proxy.ip4, ready=ready)
        return pcl.read_services(POLICY + pod, node=here).services

    with pcl.Datapath(node, config=pcl.DatapathConfig(local_node=here)) as dp:
        for pod in (client, proxy):
            dp.add_endpoint(pod.name, labels={"app": pod.name}, pod=pod)
        print(dp.services.apply(read(ready=True)))
        placed = dp.services.where(f"{client.ip4}:40000", f"{METADATA}:80")
        print(placed.backend, "by", placed.redirect)
        print("answers:", client.connect(METADATA, "80/TCP").reply.decode().strip())

        print(dp.services.apply(read(ready=False)))
        print(dp.services.where(f"{client.ip4}:40000", f"{METADATA}:80"))
        print("answers:", client.connect(METADATA, "80/TCP").reply.decode().strip())
