"""Backends that fail their checks serve nobody, until they are well again. Needs root."""

import asyncio
import collections
import contextlib
import os

import pyciliumlib as pcl
from pyciliumlib.kernel import find_cgroup2

VIP = "10.96.0.10"
OFTEN = pcl.HealthSettings(interval=0.2, timeout=0.5, fall=2, rise=2)


class App:
    """A server on port 8080 of a pod that says who it is, and how it is."""

    def __init__(self, pod):
        self.status = "200 OK"
        self.server = pod.serve("8080/TCP", reply=self.reply)
        self.name = pod.name

    def reply(self, request):
        if b"/healthz" in request:
            return pcl.http_reply("health", status=self.status)
        return self.name.encode()


def ask(client):
    """Which backends answer thirty connections."""
    replies = [client.connect(VIP, "80/TCP").reply.decode() for _ in range(30)]
    return sorted(collections.Counter(replies))


async def main(balancer, web, client, apps, make_socket):
    check = pcl.HTTPCheck("/healthz")
    async with pcl.HealthChecks(balancer, check, OFTEN, make_socket=make_socket) as health:
        events = health.events()
        print("at first:", *await asyncio.to_thread(ask, client))
        apps[0].status = "503 Service Unavailable"
        print(await anext(events))
        print("now:", *await asyncio.to_thread(ask, client))
        apps[0].status = "200 OK"
        print(await anext(events))
        apps[1].server.close()
        print(await anext(events))
        print(
            "in force:",
            *(f"{b} {b.state}" for b in balancer.in_force[web.key].backends),
            sep="\n  ",
        )


@contextlib.contextmanager
def own_cgroup():
    """A cgroup for this process, so that nobody else on this machine is balanced."""
    top = find_cgroup2()
    path = top / f"pcl-health-{os.getpid()}"
    path.mkdir()
    try:
        (path / "cgroup.procs").write_text(str(os.getpid()))
        yield path
    finally:
        (top / "cgroup.procs").write_text(str(os.getpid()))
        path.rmdir()


with own_cgroup() as cgroup, pcl.Lab() as lab:
    node = lab.node()
    client, *backends = [node.pod(name) for name in ("client", "red", "green", "blue")]
    apps = [App(backend) for backend in backends]
    web = pcl.Service("web", [f"{VIP}:80"], [f"{backend.ip4}:8080" for backend in backends])
    with (
        node.call(lambda: pcl.SocketBalancer(cgroup)) as balancer,
        pcl.NamespaceSockets(node.netns) as make_socket,  # checks are made from the node
    ):
        balancer.upsert(web)
        asyncio.run(main(balancer, web, client, apps, make_socket))
