"""The mode of authentication: the model's and the table's are one, whatever rules overlap."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyciliumlib.errors import PolicyError
from pyciliumlib.policy import Direction, Repository, Verdict
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol

PODS = {1000: "a", 1001: "b", 1002: "c"}
PORTS = (53, 80, 90, 443)


def labels(app: str) -> list[str]:
    return [
        f"k8s:app={app}",
        "k8s:io.kubernetes.pod.namespace=default",
        "k8s:io.cilium.k8s.policy.cluster=default",
    ]


def apps(*names: str) -> dict[str, Any]:
    return {"fromEndpoints": [{"matchLabels": {"app": name}} for name in names]}


PEERS = st.sampled_from([apps("a"), apps("a", "b"), apps("b"), {"fromEntities": ["all"]}])
PORT_LISTS = st.sampled_from([
    {},
    {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]},
    {"toPorts": [{"ports": [{"port": "64", "endPort": 127, "protocol": "TCP"}]}]},
    {"toPorts": [{"ports": [{"port": "0", "protocol": "TCP"}]}]},
])  # fmt: skip
MODES = st.sampled_from([{}, {}, *(
    {"authentication": {"mode": mode}} for mode in ("required", "disabled", "test-always-fail")
)])  # fmt: skip
ENTRIES = st.builds(lambda peers, ports, mode: {**peers, **ports, **mode}, PEERS, PORT_LISTS, MODES)


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=5))
def test_model_and_table_agree(entries: list[dict[str, Any]]) -> None:
    """Each pod and port; contradictions about one filter are refused before."""
    repository = Repository()
    repository.update_identities({number: labels(app) for number, app in PODS.items()})
    repository.add_endpoint(1, labels("web"))
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": entries},
    }
    try:
        repository.apply(document)
    except PolicyError:
        assume(False)
    table = PolicyLookup.of(repository.policy(1).entries())
    for number in PODS:
        for port in PORTS:
            said = repository.decide(labels("web"), number, Direction.INGRESS, f"{port}/TCP")
            hit = table.lookup(Direction.INGRESS, number, Protocol.TCP, port)
            assert (hit.verdict, hit.authentication) == (said.verdict, said.authentication)
            assert said.verdict is not Verdict.DENY or not said.authentication
