"""Services at sockets: clients see the service alone, and are told when a backend goes. Root."""

import contextlib
import os
import socket

import pyciliumlib as pcl
from pyciliumlib.kernel import find_cgroup2

VIP = "10.96.0.10"
CONFIG = pcl.LoadBalancerConfig(socket_terminate=True)


@contextlib.contextmanager
def own_cgroup():
    """A cgroup for this process, so that nobody else on this machine is balanced."""
    top = find_cgroup2()
    path = top / f"pcl-sockets-{os.getpid()}"
    path.mkdir()
    try:
        (path / "cgroup.procs").write_text(str(os.getpid()))
        yield path
    finally:
        (top / "cgroup.procs").write_text(str(os.getpid()))
        path.rmdir()


def ask(connection):
    """Who is at the other end."""
    connection.sendall(b"who are you?")
    return connection.recv(100).decode().strip()


with own_cgroup() as cgroup, pcl.Lab() as lab:
    node = lab.node()
    client, *backends = [node.pod(name) for name in ("client", "red", "blue")]
    for backend in backends:
        backend.serve("8080/TCP")
        backend.serve("5353/UDP")
    web = pcl.Service("web", [f"{VIP}:80"], [f"{backend.ip4}:8080" for backend in backends])
    dns = pcl.Service("dns", [f"{VIP}:53/UDP"], [f"{backend.ip4}:5353/UDP" for backend in backends])
    outside = pcl.Service(
        "outside", [pcl.Frontend("0.0.0.0", 30080, type="NodePort")], web.backends
    )

    with node.call(lambda: pcl.SocketBalancer(cgroup, config=CONFIG)) as balancer:
        print(balancer.upsert(web, dns, outside))
        print(balancer.where(f"{VIP}:80", client.netns))

        # A connection to the service is one to a backend, from its first packet on.
        connection = client.call(lambda: socket.create_connection((VIP, 80), timeout=3))
        answered = ask(connection)
        print(answered in ("red", "blue"), "answers as", *connection.getpeername())

        # A resolver that is not connected believes answers of the address that it asked alone.
        with client.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
            resolver.sendto(b"who are you?", (VIP, 53))
            print("DNS answers from", *resolver.recvfrom(100)[1])

        # On the node, the NodePort is found at loopback too, and nobody else can take it.
        print("at loopback:", bool(node.connect("127.0.0.1", "30080/TCP")))
        with node.netns.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            try:
                server.bind(("0.0.0.0", 30080))
            except OSError as error:
                print("a server there:", error.strerror)

        # The backend goes: its client need not wait until nobody answers.
        left = [one for one in web.backends if one.address != lab.host(answered).ip4]
        print(balancer.upsert(web.with_backends(left)))
        with connection:
            try:
                connection.recv(100)
            except ConnectionAbortedError as error:
                print("its client:", error.strerror)
        with client.call(lambda: socket.create_connection((VIP, 80), timeout=3)) as connection:
            print("another one answers:", ask(connection) != answered)
    print("ended:", balancer.ended)
