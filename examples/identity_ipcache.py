"""Identities and the ipcache, alone: numbers for labels, addresses for numbers. Needs no root."""

import tempfile
from pathlib import Path

import pyciliumlib as pcl
from pyciliumlib.testing import FakeMap

with tempfile.TemporaryDirectory() as directory:
    # A file makes the numbers outlive the process; several processes may share it.
    with (
        pcl.SQLiteStore(Path(directory) / "identities.sqlite") as store,
        pcl.IdentityAllocator(store) as identities,
    ):
        web = identities.allocate(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"])
        again = identities.allocate(["k8s:io.kubernetes.pod.namespace=shop", "k8s:app=web"])
        print("the same labels, the same number:", web.id == again.id)
        office = identities.allocate(pcl.cidr_labels("198.51.100.0/24"))
        print("a prefix has a number of this node alone:", hex(office.id))

        # Any number of sources may speak of a prefix; the longest prefix decides.
        cache = pcl.IPCache(identities)
        cache.assign("10.0.1.7", web.id)
        cache.assign("198.51.100.0/24", office.id)
        for address in ("10.0.1.7", "198.51.100.9", "203.0.113.1"):
            print(f"{address}: {cache.lookup(address) or 'the world'}")

    # The same table fills a map in the kernel, or one in memory.
    spec = pcl.ObjectSpec.open(pcl.object_path("endpoint"))
    entries = FakeMap.from_spec(spec.maps["ipcache"])
    revisions = FakeMap.from_spec(spec.maps["ipcache_rev"])
    pcl.IPCacheTable(entries, revisions).follow(cache)
    for prefix, entry in entries.items():
        print(f"{prefix!s:20} {entry}")
