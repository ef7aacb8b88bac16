"""The matrix of reachability: names for ports, what it answers, and its picture."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from pyciliumlib.errors import NotFoundError, PolicyError
from pyciliumlib.policy import Party, Repository, Verdict
from pyciliumlib.policy.analysis.picture import png
from pyciliumlib.types import Protocol


def pod(app: str, port: int = 80) -> Party:
    labels = [
        f"k8s:app={app}",
        "k8s:io.kubernetes.pod.namespace=default",
        "k8s:io.cilium.k8s.policy.cluster=default",
    ]
    return Party(labels, {"web": (port, Protocol.TCP)}, name=app)


RULES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in}
spec:
  endpointSelector: {matchLabels: {app: b}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a}}]
    toPorts: [{ports: [{port: web, protocol: TCP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out}
spec:
  endpointSelector: {matchLabels: {app: c}}
  egress:
  - toPorts: [{ports: [{port: web, protocol: TCP}]}]
"""


def test_names_of_ports_are_those_of_the_subject_or_of_each_peer() -> None:
    """At ingress the subject's own port is meant, at egress that of whoever is reached."""
    repository = Repository()
    repository.apply(RULES)
    found = repository.reachability([pod("a"), pod("b", 8080), pod("c", 9090)], "8080/TCP")
    assert found.who_can_reach("b") == ("a",)
    assert found.reached_by("c") == ()
    assert found.egress.tolist() == [[0, 0, 0], [0, 0, 0], [2, 0, 2]]
    assert found.ingress.tolist() == [[0, 0, 0], [0, 2, 0], [0, 2, 0]]
    assert found.verdict("a", "b") is Verdict.ALLOW
    assert str(found) == "8080/TCP between 3: 5 allow, 0 redirect, 4 deny"


def test_wrong_questions() -> None:
    found = Repository().reachability({"a": ["k8s:app=a"]}, "80/TCP")
    with pytest.raises(NotFoundError, match="'b' is not among the parties"):
        found.who_can_reach("b")
    with pytest.raises(PolicyError, match="one port"):
        Repository().reachability({}, "80-90/TCP")
    with pytest.raises(NotFoundError, match="identity 77"):
        Repository().reachability({"a": 77}, "80/TCP")


def test_nobody() -> None:
    """No parties make an empty matrix."""
    found = Repository().reachability({}, "80/TCP")
    assert found.codes.shape == (0, 0)
    assert "between 0" in found._repr_html_()


def test_few_are_a_table_and_many_a_picture() -> None:
    """Names are escaped; the picture has a pixel or more for each pair."""
    few = Repository().reachability({"<a>": ["k8s:app=a"]}, "80/TCP")._repr_html_()
    assert "&lt;a&gt;" in few and ">allow</td>" in few
    many = Repository().reachability({str(n): ["k8s:app=a"] for n in range(40)}, "80/TCP")
    assert "<img src='data:image/png;base64," in many._repr_html_()


def test_the_picture_is_a_png() -> None:
    """Its header, its palette and its pixels, read back."""
    codes = np.array([[0, 1], [2, 0]], np.uint8)
    data = png(codes, [(1, 2, 3), (4, 5, 6), (7, 8, 9)], scale=2)
    assert base64.b64encode(data[:8]) == b"iVBORw0KGgo="
    chunks, rest = {}, data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, body, check = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.pack(">I", zlib.crc32(kind + body)) == check
        chunks[kind], rest = body, rest[12 + length :]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 4, 8, 3, 0, 0, 0)
    assert chunks[b"PLTE"] == bytes(range(1, 10))
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(4, 5)
    assert lines[:, 0].tolist() == [0, 0, 0, 0]
    assert lines[:, 1:].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 0, 0]] * 2
