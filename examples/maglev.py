"""Maglev tables: even shares, small disruption, and the same pick on every node. Needs no root."""

import pyciliumlib as pcl

backends = [pcl.Backend(f"10.0.0.{host}", 8080) for host in range(1, 11)]
maglev = pcl.Maglev(16381)
table = maglev.build(backends)
print(table)
print("slots of each:", sorted(set(table.counts().values())))

# One backend goes: its own slots have to move, few others do.
print("one gone:", table.disruption(maglev.build(backends[:-1])))

# One counts double.
heavier = [pcl.Backend("10.0.0.1", 8080, weight=200), *backends[1:]]
for backend, slots in list(maglev.build(heavier).counts().items())[:3]:
    print(f"  {backend} has weight {backend.weight}: {slots} slots")

# A node that knows the backends in another order sends a client to the same one.
flow = pcl.FlowTuple("192.0.2.7", client_port=40000, service_port=80)
other_node = pcl.Maglev(16381).build(reversed(backends))
print(flow.client, "->", table.select(flow), "and", other_node.select(flow))
