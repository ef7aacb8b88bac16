"""The mistakes of the first hour, each answered with what is wrong and how it is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyciliumlib as pcl
from pyciliumlib import errors

RULE = {"endpointSelector": {}, "ingress": [{}]}
POLICY = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "first"},
    "spec": RULE,
}
Mistake = Callable[[pcl.Lab, pcl.Datapath], Any]

MISTAKES: dict[str, tuple[type[Exception], str, Mistake]] = {
    "a host of another name": (
        errors.NotFoundError,
        r"no host 'wbe' \(did you mean \"web\"\?\)",
        lambda lab, _: lab.host("wbe"),
    ),
    "an endpoint of another name": (
        errors.NotFoundError,
        r"no endpoint 'wbe' \(did you mean \"web\"\?\)",
        lambda _, dp: dp.endpoints["wbe"],
    ),
    "labels that are none": (
        errors.LabelError,
        "labels 5: expected a list of labels",
        lambda _, dp: dp.add_endpoint("x", labels=5),
    ),
    "a named port without its protocol": (
        errors.InvalidError,
        "named port 'http' is 80/ANY; write one port, as in 80/TCP",
        lambda _, dp: dp.add_endpoint("x", ports={"http": 80}),
    ),
    "bytes for YAML": (
        errors.PolicyError,
        "expected YAML text, a path or objects, found b'kind",
        lambda _, dp: dp.policy.apply(b"kind: CiliumNetworkPolicy\n"),
    ),
    "a port without its protocol": (
        errors.PolicyError,
        "one connection has one port and one protocol; write 8080/TCP",
        lambda _, dp: dp.policy.explain("web", "web", "8080"),
    ),
    "labels without a list": (
        errors.NotFoundError,
        r"'app=web' is neither an endpoint .* labels go in a list: \['app=web'\]",
        lambda _, dp: dp.policy.explain("app=web", "web", "8080/TCP"),
    ),
    "an object file that is not there": (
        errors.ObjectError,
        "cannot read object file count.bpf.o: No such file",
        lambda _, dp: dp.hooks.attach("after-policy", "count.bpf.o"),
    ),
    "a name that is not exported": (
        AttributeError,
        r"has no 'Datapaht' \(did you mean \"Datapath\"\?\)",
        lambda *_: pcl.Datapaht,  # type: ignore[attr-defined]  # the mistake itself
    ),
}


@pytest.fixture(scope="module")
def first_lab() -> Iterator[tuple[pcl.Lab, pcl.Datapath]]:
    """What somebody has after the first lines of the README."""
    with pcl.Lab() as lab, pcl.Datapath(lab.node()) as dp:
        dp.add_endpoint("web", labels={"app": "web"})
        yield lab, dp


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, first_lab: tuple[pcl.Lab, pcl.Datapath]) -> None:
    """The message says what failed and how it is mended, and no endpoint is half there."""
    kind, words, mistake = MISTAKES[name]
    with pytest.raises(kind, match=words):
        mistake(*first_lab)
    assert list(first_lab[1].endpoints) == ["web"]


def test_a_change_is_short_to_read(first_lab: tuple[pcl.Lab, pcl.Datapath]) -> None:
    """What `apply` returns fits the line of an interactive session."""
    change = first_lab[1].policy.apply(POLICY)
    assert repr(change) == "<Change revision 1: CiliumNetworkPolicy default/first; endpoints 1>"


@pytest.mark.parametrize("port", ["ICMP", "8/ICMP", "ICMPv6"])
def test_explains_pings(port: str, first_lab: tuple[pcl.Lab, pcl.Datapath]) -> None:
    """`explain` takes an ICMP type where a port would be."""
    web = first_lab[1].endpoints["web"]
    assert first_lab[1].policy.explain("192.0.2.200", web, port).target.first in (8, 128)
