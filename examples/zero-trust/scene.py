"""The scene of the zero-trust example: five pods, an API server, and the world outside."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

import pyciliumlib as pcl
from pyciliumlib.lab import Host, Server

HERE = Path(__file__).parent
NAMESPACE = "microservices"

#: Pod, namespace, labels, ports it serves.
PODS = (
    ("gateway", NAMESPACE, {"app": "gateway"}, ("8443/TCP",)),
    ("frontend", NAMESPACE, {"app": "frontend"}, ("3000/TCP",)),
    ("backend-api", NAMESPACE, {"app": "backend-api"}, ("8080/TCP",)),
    ("intruder", NAMESPACE, {"app": "intruder"}, ("9999/TCP",)),
    ("kube-dns", "kube-system", {"k8s-app": "kube-dns"}, ("53/UDP", "53/TCP")),
)
#: Who serves the Kubernetes API, an address that no pod has: policy names it by this label.
API_SERVER = ["reserved:kube-apiserver"]
#: Host outside, ports it serves.
OUTSIDERS = (("kube-apiserver", ("6443/TCP",)), ("world", ("443/TCP",)))


@frozen
class Scene:
    """The hosts by name, and the datapath that holds the pods to policy."""

    datapath: pcl.Datapath
    hosts: dict[str, Host]
    ports: dict[str, tuple[str, ...]]
    servers: tuple[Server, ...]


def build(lab: pcl.Lab, datapath: pcl.Datapath, node: object) -> Scene:
    """Make the pods and hosts, and let each of them serve its ports."""
    hosts: dict[str, Host] = {}
    ports: dict[str, tuple[str, ...]] = {}
    for name, namespace, labels, served in PODS:
        datapath.add_endpoint(name, labels, namespace=namespace)
        hosts[name] = lab.host(name)
        ports[name] = served
    for name, served in OUTSIDERS:
        hosts[name] = lab.outside(name, of=node)
        ports[name] = served
    for address in hosts["kube-apiserver"].addresses:
        datapath.assign(address, labels=API_SERVER)
    servers = tuple(hosts[name].serve(port) for name in hosts for port in ports[name])
    return Scene(datapath, hosts, ports, servers)
