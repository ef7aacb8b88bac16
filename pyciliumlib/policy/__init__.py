"""Who may talk to whom: documents, the verdict and its reasons, and the policy map's entries.

`Repository` holds documents and answers; `EndpointPolicy` is what it says about one endpoint, as
map entries; `table` brings those into any map.
"""

from __future__ import annotations

from pyciliumlib.policy.answer import Answer
from pyciliumlib.policy.bandwidth import PodBandwidth, annotated_bandwidth
from pyciliumlib.policy.explain import Explanation
from pyciliumlib.policy.l7 import HTTPRequest, KafkaRequest
from pyciliumlib.policy.model import (
    Authentication,
    BandwidthLimit,
    NamedPorts,
    NamespaceDocument,
    Party,
    PolicyDocument,
    PolicyKey,
    Rule,
    Source,
    Verdict,
)
from pyciliumlib.policy.parse import Documents, parse
from pyciliumlib.policy.repository import Change, Repository
from pyciliumlib.policy.settings import Enforcement, PolicySettings
from pyciliumlib.policy.verdict import Decision, NearMiss, Reason, decide
from pyciliumlib.types import Direction

__all__ = [
    "Answer",
    "Authentication",
    "BandwidthLimit",
    "Change",
    "Decision",
    "Direction",
    "Documents",
    "Enforcement",
    "Explanation",
    "HTTPRequest",
    "KafkaRequest",
    "NamedPorts",
    "NamespaceDocument",
    "NearMiss",
    "Party",
    "PodBandwidth",
    "PolicyDocument",
    "PolicyKey",
    "PolicySettings",
    "Reason",
    "Repository",
    "Rule",
    "Source",
    "Verdict",
    "annotated_bandwidth",
    "decide",
    "parse",
]
