"""Questions to a set of rules before it meets a packet. Needs no root."""

from pyciliumlib.policy import HTTPRequest, Party, Repository
from pyciliumlib.policy.analysis import Connection, suggest
from pyciliumlib.types import Protocol


def pod(app: str) -> Party:
    labels = [f"k8s:app={app}", "k8s:io.kubernetes.pod.namespace=shop"]
    return Party([*labels, "k8s:io.cilium.k8s.policy.cluster=default"], name=app)


web, api, db = pods = [pod(app) for app in ("web", "api", "db")]
rules = Repository()
rules.update_identities({1000 + n: party.labels for n, party in enumerate(pods)})
rules.apply("""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET}]}
""")

# Who reaches whom on a port, and what a proxy would say to a request?
print(rules.reachability(pods, "80/TCP"))
print("api is reached by", rules.reachability(pods, "80/TCP").who_can_reach("api"))
print("DELETE:", rules.explain(web, api, "80/TCP", http=HTTPRequest("DELETE", "/1")).verdict)

# What would this change open and close?
change = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: apl}}]
    toPorts: [{ports: [{port: "5432", protocol: TCP}]}]
"""
print(rules.diff(change, [api, db]))

# It has a typing error, which lint finds once it is there.
rules.apply(change)
for finding in rules.lint():
    print(finding)

# The least policy for what was seen on the wire.
print(suggest([Connection(api, db, Protocol.TCP, 5432)]))
