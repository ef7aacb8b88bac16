"""Feature probes: what this kernel can do, found by trying the thing itself, never by version."""

from __future__ import annotations

import threading

from pyciliumlib.errors import NotFoundError, nearest
from pyciliumlib.kernel import probe_bpf, probe_net, probe_system
from pyciliumlib.kernel.features import Answer, Features, Support
from pyciliumlib.kernel.known_features import KNOWN

_cache: dict[str, Answer] = {}
_lock = threading.Lock()


def probe(*names: str) -> Features:
    """The answers for `names`, or for every known feature; printed, they are a table.

    An answer is yes, no or unknown (with the reason). Yes and no are cached, since a running
    kernel does not change; unknown is asked anew, since the caller's privileges do.
    Raises NotFoundError for a name that is not known.

        print(probe())
        probe("tcx").require("tcx", by="my controller")
    """
    for name in names:
        if name not in KNOWN:
            raise NotFoundError(f"there is no feature {name!r}{nearest(name, KNOWN)}")
    wanted = list(dict.fromkeys(names)) or list(KNOWN)
    with _lock:
        missing = [name for name in wanted if name not in _cache]
        fresh = _ask(missing)
        answers = {name: fresh.get(name) or _cache[name] for name in wanted}
        _cache.update({name: answer for name, answer in fresh.items() if _lasts(name, answer)})
    return Features(answers, KNOWN)


def _ask(names: list[str]) -> dict[str, Answer]:
    answers = {name: probe_bpf.PROBES[name]() for name in names if name in probe_bpf.PROBES}
    answers |= {name: probe_system.PROBES[name]() for name in names if name in probe_system.PROBES}
    in_namespace = [name for name in names if name in probe_net.PROBES]
    if in_namespace:
        answers |= probe_net.probe_in_namespace(in_namespace)
    return answers


def _lasts(name: str, answer: Answer) -> bool:
    return answer.support is not Support.UNKNOWN and not KNOWN[name].volatile
