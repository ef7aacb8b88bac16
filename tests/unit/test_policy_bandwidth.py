"""`toBandwidth` and the annotations: units, the lowest limit, and no default deny."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pyciliumlib.errors import PolicyError, UnitError
from pyciliumlib.policy import (
    BandwidthLimit,
    Direction,
    Repository,
    annotated_bandwidth,
)

POD = [
    "k8s:app=video",
    "k8s:io.kubernetes.pod.namespace=default",
    "k8s:io.cilium.k8s.policy.cluster=default",
]


def limit(name: str = "p", *more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "video"}},
            "egress": [{"toBandwidth": fields}, *more],
        },
    }


@pytest.mark.parametrize(
    ("fields", "rate", "burst"),
    [
        ({"rate": "10mbit", "burst": "15mbit"}, 10_000_000, 1_875_000),
        ({"rate": "10M"}, 10_000_000, 0),
        ({"rate": "64kibit"}, 65_536, 0),
        ({"rate": "1.5gbit", "burst": "1Mi"}, 1_500_000_000, 131_072),
        ({"rate": "800kbit"}, 800_000, 0),
        ({"rate": "5000000"}, 5_000_000, 0),
    ],
)
def test_units(fields: dict[str, str], rate: int, burst: int) -> None:
    """As tc writes them and as Kubernetes does: bits a second; the burst is kept in bytes."""
    repository = Repository()
    repository.apply(limit(**fields))
    assert repository.bandwidth(POD) == BandwidthLimit(rate, burst)


def test_a_limit_alone_denies_nothing() -> None:
    """It names no peer, so it turns no default deny on; beside other entries those do."""
    repository = Repository()
    repository.apply(limit(rate="1mbit"))
    assert repository.add_endpoint(1, POD).enforced == frozenset()
    repository.apply(limit("p", {"toEntities": ["world"]}, rate="1mbit"))
    assert repository.policy(1).enforced == {Direction.EGRESS}
    assert repository.bandwidth(["k8s:app=other", *POD[1:]]) is None


def test_the_lowest_of_several() -> None:
    """Of several policies the lowest rate holds, with its own burst, until it is deleted."""
    repository = Repository()
    repository.apply(limit("a", rate="2mbit", burst="1mbit"))
    change = repository.apply(limit("b", rate="1mbit"))
    assert repository.bandwidth(POD) == BandwidthLimit(1_000_000)
    repository.delete(*change.before)
    assert repository.bandwidth(POD) == BandwidthLimit(2_000_000, 125_000)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (limit(rate="10mbps"), r"toBandwidth\.rate: '10mbps' is no amount of bits"),
        (limit(rate="0mbit"), "a rate of 0"),
        (limit(rate="1mbit", burst="8kbit"), "less than a frame"),
        (limit(burst="1mbit"), "rate is missing"),
        (limit(rate="1mbit", peak="2mbit"), "unknown field"),
        (limit("p", {"toBandwidth": {"rate": "1mbit"}, "toEntities": ["world"]}), "stands alone"),
    ],
)
def test_bad_limits(document: dict[str, Any], message: str) -> None:
    """Refused with the path of the field."""
    with pytest.raises(PolicyError) as caught:
        Repository().apply(document)
    assert re.search(message, "\n".join(caught.value.problems))


def test_annotations() -> None:
    """Both directions; a text that Cilium does not read either is an error."""
    asked = {"kubernetes.io/egress-bandwidth": "10Mi", "kubernetes.io/ingress-bandwidth": "1G"}
    found = annotated_bandwidth({**asked, "other": "x"})
    assert found.egress == BandwidthLimit(10_485_760)
    assert found.ingress == BandwidthLimit(1_000_000_000)
    for text in ("10mbit", "10Mbps", "0", ""):
        with pytest.raises(UnitError, match="egress-bandwidth"):
            annotated_bandwidth({"kubernetes.io/egress-bandwidth": text})
