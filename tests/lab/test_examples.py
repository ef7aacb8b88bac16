"""Every example runs as its reader would run it, prints what it promises, and leaves nothing."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.lab import documents
from tests.lab.examples import EXAMPLES, ROOT, UNPRIVILEGED, Ended, compile_examples, interrupt, run

DEMO = EXAMPLES / "zero-trust" / "demo.py"
STAGE_1, STAGE_2 = "Stage 1", "Stage 2"
#: From, to, port; what both families see in stage 1 and in stage 2.
INTENDED = (
    ("gateway", "frontend", "3000/TCP", "dropped", "open"),
    ("frontend", "backend-api", "8080/TCP", "dropped", "no proxy"),
    ("frontend", "kube-dns", "53/UDP", "open", "open"),
    ("frontend", "kube-dns", "53/TCP", "dropped", "dropped"),
    ("frontend", "kube-apiserver", "6443/TCP", "open", "open"),
    ("gateway", "backend-api", "8080/TCP", "dropped", "dropped"),
    ("intruder", "backend-api", "8080/TCP", "dropped", "dropped"),
    ("intruder", "world", "443/TCP", "dropped", "dropped"),
    ("world", "frontend", "3000/TCP", "dropped", "dropped"),
    ("kube-dns", "world", "443/TCP", "open", "open"),
)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples' own BPF programs, built by the command that their texts give."""
    folder = tmp_path_factory.mktemp("objects")
    compile_examples(folder)
    return folder


def well(result: Ended) -> str:
    """The output of an example that ended as it should."""
    assert (result.err, result.status, set(result.left)) == ("", 0, set())
    return result.out


def test_quickstart() -> None:
    """What is explained is what a client meets, and the flows tell of both."""
    out = well(run(EXAMPLES / "quickstart.py"))
    assert out.startswith("allow: web -> api 8080/TCP\n")
    assert "deny: web -> api 9090/TCP\n" in out
    assert "missing: an ingress rule of a policy that selects api, with fromEndpoints web" in out
    assert re.search(r"^8080: ok in [\d.]+ ms\n9090: timeout$", out, re.MULTILINE)
    assert re.search(r"web:\d+ \(\d+\) -> api:8080 \(\d+\)  to-endpoint TCP SYN  FORWARDED", out)
    assert re.search(r"web:\d+ \(\d+\) <- api:8080 \(\d+\)  to-endpoint TCP SYN,ACK", out)
    assert re.search(r"-> api:9090 .*  drop ingress TCP SYN  DROPPED: Policy denied \(133\)", out)


def test_policy_map() -> None:
    """The office, known by its IPv4 address alone, reaches 22 until its entry is withdrawn."""
    lines = well(run(EXAMPLES / "policy_map.py")).splitlines()
    tried = [re.sub(r"ok in .*", "ok", line) for line in lines[:5]]
    assert tried == [
        "10.244.1.2 443/TCP ok",
        "10.244.1.2 22/TCP ok",
        "fd00:10:244:1::2 443/TCP ok",
        "fd00:10:244:1::2 22/TCP timeout",
        "withdrawn: timeout",
    ]
    assert "verdict=<Verdict.DENY: 'deny'>, drop_reason=133" in lines[5]
    assert re.fullmatch(r"ingress +2 +\d+  Policy denied \(133\)", lines[8])


def test_host_firewall() -> None:
    """Open, tried, closed: then the world has 22 and the monitor 9100, in both families."""
    lines = well(run(EXAMPLES / "host_firewall.py")).splitlines()
    tried = {stage: [line for line in lines if line.startswith(f"{stage}: ")] for stage in STAGES}
    assert all(line.endswith("[True, True]") for line in tried["open"] + tried["audit"])
    assert tried["closed"] == [
        f"closed: {client} by IPv{version}: 22 and 9100 {answers}"
        for client, answers in (("world", "[True, False]"), ("monitor", "[False, True]"))
        for version in (4, 6)
    ]
    assert lines[8] == (
        "would be dropped: [('monitor', 22), ('world-ipv4', 9100), ('world-ipv6', 9100)]"
    )
    assert [len(found) for found in tried.values()] == [4, 4, 4]


STAGES = ("open", "audit", "closed")


def test_identity_ipcache_needs_no_privilege() -> None:
    """Identities and the ipcache work for a process that may load no BPF."""
    lines = well(run(EXAMPLES / "identity_ipcache.py", under=UNPRIVILEGED)).splitlines()
    assert lines[0] == "the same labels, the same number: True"
    assert re.fullmatch(r"10\.0\.1\.7: 10\.0\.1\.7/32 is \d+ .*", lines[2])
    assert re.fullmatch(r"198\.51\.100\.9: 198\.51\.100\.0/24 is 16777217 .*", lines[3])
    assert lines[4] == "203.0.113.1: the world"
    assert {line.split()[0] for line in lines[5:]} >= {"10.0.1.7/32", "198.51.100.0/24"}


def test_policy_analysis_needs_no_privilege() -> None:
    """Reachability, a request, a difference, a finding and a suggestion."""
    out = well(run(EXAMPLES / "policy_analysis.py", under=UNPRIVILEGED))
    assert out.startswith("80/TCP between 3: 6 allow, 1 redirect, 2 deny\n")
    assert "api is reached by ('web',)\nDELETE: deny\n0 opened, 10 closed" in out
    assert "  api -> db ICMP any type: allow becomes deny\n" in out
    assert "is selected by any:app=apl," in out and "[selects-no-peer]\n" in out
    assert out.endswith("  egress:\n  - {}\n")


def test_maglev_needs_no_privilege() -> None:
    """Tables are built and compared by a process that may load no BPF."""
    lines = well(run(EXAMPLES / "maglev.py", under=UNPRIVILEGED)).splitlines()
    assert lines[1] == "slots of each: [1638, 1639]"
    assert lines[2].startswith("one gone: 1713 (10.5 %) of 16381 slots move; 1639 (10.0 %) have to")
    assert lines[4] == "  10.0.0.1:8080/TCP has weight 200: 2978 slots"
    assert lines[6] == "192.0.2.7 -> 10.0.0.10:8080/TCP and 10.0.0.10:8080/TCP"


def test_load_balancer() -> None:
    """Fifty connections outlive the director that they came by, each at its backend."""
    lines = well(run(EXAMPLES / "load_balancer.py")).splitlines()
    assert lines[:2] == [
        f"director-{number} + default/web: 1 frontend(s), 5 backend(s)" for number in (1, 2)
    ]
    assert lines[2:5] == [
        "seen: True", "backends that answer: 5", "connections by both directors: True 50",
    ]  # fmt: skip
    assert lines[5].endswith(":80/TCP: the Maglev table says so (default/web)")
    assert lines[6:] == [
        "the same backends by the other director: True", "connections that director-2 knows: 50",
    ]  # fmt: skip


def test_dsr_by_option() -> None:
    """A backend's other port is no obstacle, and it sees who asks, in both families."""
    lines = well(run(EXAMPLES / "dsr_by_option.py")).splitlines()
    assert lines[0].endswith(
        "no annotation of Cilium's; service.cilium.io/forwarding-mode is meant"
    )
    assert lines[1:] == [
        "+ default/web-service: 2 frontend(s), 4 backend(s)",
        "dsr by opt to port 8080",
        "203.0.113.11 is answered by blue red",
        "2001:db8:a::11 is answered by blue red",
        "backends see the client: True",
    ]


def test_snat() -> None:
    """Backends without any of our programs answer, and see the balancer, in both families."""
    lines = well(run(EXAMPLES / "snat.py")).splitlines()
    assert lines == [
        "+ default/shop: 2 frontend(s), 4 backend(s)",
        "203.0.113.20 is answered by blue red",
        "2001:db8:a::20 is answered by blue red",
        "backends see the balancer: True",
        "the client's port is known: True",
        "to its backend it is 10.244.1.3 at one of 36864-65535/ANY",
    ]


def test_local_redirect() -> None:
    """The proxy on the node answers for an address; when it is not ready, the address itself."""
    lines = well(run(EXAMPLES / "local_redirect.py")).splitlines()
    assert lines == [
        "+ default/metadata:local-redirect-80-tcp: 1 frontend(s), 1 backend(s)",
        "10.244.1.3:8080/TCP by default/metadata",
        "answers: proxy",
        "- default/metadata:local-redirect-80-tcp: 1 frontend(s), 1 backend(s)",
        "elsewhere: no service has this address; the packet passes by",
        "answers: cloud",
    ]


def test_socket_balancer() -> None:
    """Clients see the service alone; the one whose backend goes is told, and finds another."""
    lines = well(run(EXAMPLES / "socket_balancer.py")).splitlines()
    assert lines[3] == "one of 2 backends: any of the candidates, at random (default/web)"
    assert lines[4:8] == [
        "True answers as 10.96.0.10 80", "DNS answers from 10.96.0.10 53", "at loopback: True",
        "a server there: Address already in use",
    ]  # fmt: skip
    assert re.fullmatch(r"~ default/web: -10\.244\.1\.[34]:8080/TCP", lines[8])
    assert lines[9:] == [
        "its client: Software caused connection abort", "another one answers: True", "ended: 1",
    ]  # fmt: skip


def test_pod_services() -> None:
    """Policy sees the backend; a drained one keeps its connection; nobody left is told at once."""
    lines = well(run(EXAMPLES / "pod_services.py")).splitlines()
    assert lines[:4] == [
        "+ default/web: 1 frontend(s), 2 backend(s)",
        "one of 2 backends: any of the candidates, at random (default/web)",
        "client: b'blue' b'red'",
        "stranger: timeout",
    ]
    denied = (
        r".* stranger:\d+ \(\d+\) -> (red|blue):8080 \(\d+\) by default/web 10.96.0.10:80 .*133\)"
    )
    assert lines[4:-4] and all(re.fullmatch(denied, line) for line in lines[4:-4])
    assert lines[-4:-2] == ["drained, and answers: True", "new connections go elsewhere: True"]
    assert re.fullmatch("10.96.0.10:80 is (red|blue): True", lines[-2])
    assert lines[-1] == "nobody is left: refused"


def test_node_port() -> None:
    """Clients outside keep their address; policy and source ranges are about them."""
    lines = well(run(EXAMPLES / "node_port.py")).splitlines()
    assert lines[:6] == [
        "+ default/web: 2 frontend(s), 2 backend(s)",
        "192.0.2.1:30080: b'blue' b'red'", "  the stranger: timeout",
        "198.51.100.10:80: b'blue' b'red'", "  the stranger: timeout",
        "the pods saw: 192.0.2.100",
    ]  # fmt: skip
    denied = r".* world-ipv4:\d+ \(9\) -> (red|blue):8080 .* by default/web 192.0.2.1:30080 .*133\)"
    assert re.fullmatch(denied, lines[6])
    assert lines[7:] == ["not in the ranges: timeout", "but by its NodePort: True"]


def test_health_checks() -> None:
    """One that answers 503 serves nobody, as does one that is gone; a pass brings it back."""
    lines = well(run(EXAMPLES / "health_checks.py")).splitlines()
    red, green, blue = (f"10.244.1.{host}:8080/TCP" for host in (3, 4, 5))
    assert lines == [
        "at first: blue green red", f"{red} unhealthy: HTTP status 503", "now: blue green",
        f"{red} healthy: it answers", f"{green} unhealthy: Connection refused",
        "in force:", f"  {red} active", f"  {green} quarantined", f"  {blue} active",
    ]  # fmt: skip


def test_hooks(objects: Path) -> None:
    """One program closes port 80 to everybody; the other counts what each identity sends."""
    out = well(run(EXAMPLES / "hooks" / "hooks.py", objects))
    assert re.search(r"^22/TCP ok in .*\n80/TCP timeout\n8080/TCP ok in .*", out, re.MULTILINE)
    sent = {int(n) for n in re.findall(r"^identity \d+ sent (\d+) bytes$", out, re.MULTILINE)}
    assert len(sent) == 2
    assert min(sent) > 100
    assert re.search(r"^80/TCP without the hooks: ok in", out, re.MULTILINE)
    assert re.search(r"-> server:80 .*DROPPED: Dropped by a user's hook \(222\)", out)


def test_xdp_drop_port_80(objects: Path) -> None:
    """The kernel layer alone: a port is dropped by XDP, counted, and another one passes."""
    out = well(run(EXAMPLES / "xdp-drop-port-80" / "drop80.py", objects / "drop80.bpf.o"))
    assert re.search(r"^80/TCP timeout\n443/TCP ok in .*\nping ok in ", out, re.MULTILINE)
    counted = re.search(r"^dropped (\d+) passed (\d+)$", out, re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) == 1
    assert int(counted[2]) >= 5  # a handshake, a reply, an echo, both families' neighbours
    assert re.search(r"^XDP action 2, \d+ ns a run$", out, re.MULTILINE)


def test_syn_log(objects: Path) -> None:
    """Events come one by one, by asyncio, and as one array, with addresses of both families."""
    out = well(run(EXAMPLES / "syn-log" / "syn_log.py", objects / "syn_log.bpf.o"))
    assert re.fullmatch(
        r"one by one: attempt\(src=IPv4Address\('10\.244\.1\.2'\), .* sport=40000, dport=80, .*\n"
        r"asyncio: attempt\(src=IPv6Address\('fd00:10:244:1::2'\), .* sport=40001, dport=81, .*\n"
        r"numpy: 5 attempts by port Counter\(\{80: 3, 81: 1, 82: 1\}\)\n"
        r"lost: 0\n",
        out,
    )


# ---------------------------------------------------------------------- the zero-trust demo


@pytest.fixture(scope="module")
def demo() -> str:
    """What the demo prints when all goes well."""
    return well(run(DEMO))


def stage(out: str, number: int) -> str:
    """The part of the demo's output that is about one stage."""
    first, _, second = out.partition(f"\n{STAGE_2}")
    return first if number == 1 else second


def test_every_cell_agrees(demo: str) -> None:
    """46 pairs in two families in each stage, none of which differs from the model."""
    counts = re.findall(r"(\d+) pairs x 2 families: (\d+) open; (\d+) differ", demo)
    assert counts == [("46", "14", "0"), ("46", "15", "0")]
    assert not re.search(r"^!", demo, re.MULTILINE)
    assert "drift: the kernel holds what it should" in demo


@pytest.mark.parametrize(("src", "dst", "port", "first", "second"), INTENDED)
def test_cells(demo: str, src: str, dst: str, port: str, first: str, second: str) -> None:
    """What is intended of a pair is expected by the model and seen in both families."""
    for number, want in ((1, first), (2, second)):
        row = rf"^  {src} +{dst} +{port} +{want} +{want} +{want}(\s|$)"
        assert re.search(row, stage(demo, number), re.MULTILINE)


def test_explains_what_is_missing(demo: str) -> None:
    """Stage 1 names the two allows that the policies lack, and the sides that lack them."""
    out = stage(demo, 1)
    assert "deny: gateway -> frontend 3000/TCP\n" in out
    assert (
        "missing: an egress rule of a policy that selects gateway, "
        "with toEndpoints frontend and port 3000/TCP" in out
    )
    assert "deny: frontend -> backend-api 8080/TCP\n" in out
    assert (
        "missing: an ingress rule of a policy that selects backend-api, "
        "with fromEndpoints frontend and port 8080/TCP" in out
    )


@pytest.mark.parametrize("number", [1, 2])
def test_explains_every_closed_path(demo: str, number: int) -> None:
    """Each cell that is not open has its explanation, and no other."""
    out = stage(demo, number)
    closed = re.findall(r"^  (\S+) +(\S+) +(\S+) +(?:dropped|no proxy) ", out, re.MULTILINE)
    told = re.findall(r"^    (?:deny|redirect): (\S+) -> (\S+) (\S+)$", out, re.MULTILINE)
    assert len(closed) > 30
    pods = [cell for cell in told if ":" not in cell[0] + cell[1]]  # others are told by labels
    assert len(told) == len(closed) and set(pods) <= set(closed)


def test_shows_flows_and_reasons(demo: str) -> None:
    """Live flows with names, identities, verdicts and drop reasons, in each stage."""
    for number in (1, 2):
        out = stage(demo, number)
        assert re.search(r"-> kube-dns:53 \(\d+\)  to-endpoint UDP  FORWARDED", out)
        assert re.search(
            r"gateway:\d+ \(\d+\) -> \S+ \(\d+\)  drop egress TCP SYN  "
            r"DROPPED: Policy denied \(133\)",
            out,
        )
    assert re.search(r"^egress +2 +\d+  L7 redirect without a proxy \(220\)$", demo, re.MULTILINE)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, ""),
        (signal.SIGTERM, ""),
        (signal.SIGINT, STAGE_1),
        (signal.SIGTERM, STAGE_1),
        (signal.SIGHUP, STAGE_1),
    ],
)
def test_stopped_in_the_middle(number: signal.Signals, after: str) -> None:
    """A signal ends the demo without a traceback, while it builds as in its stages."""
    result = interrupt(DEMO, after, number)
    assert (result.err, result.status, set(result.left)) == ("", 128 + number, set())
    assert STAGE_2 not in result.out


def test_readme_shows_the_demo(demo: str) -> None:
    """The terminal capture in the README is what the demo prints."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    captures = [block.text for block in documents.blocks(page) if block.language == "console"]
    command, _, said = next(text for text in captures if STAGE_1 in text).partition("\n")
    assert command == "$ make demo"
    assert documents.agrees(said, demo.lstrip("\n"))


def doctored(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """The demo with one of its files changed."""
    folder = shutil.copytree(DEMO.parent, tmp_path / "zero-trust")
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return folder / DEMO.name


def test_a_cell_that_differs_fails(tmp_path: Path) -> None:
    """Where the wire does not show what the model says, the row is marked and the demo fails."""
    no_dns = "for name in hosts for port in ports[name] if port != '53/UDP')"
    script = doctored(tmp_path, "scene.py", "for name in hosts for port in ports[name])", no_dns)
    result = run(script)
    assert (result.err, result.status, set(result.left)) == ("", 1, set())
    assert re.search(r"^! gateway +kube-dns +53/UDP +open +refused +refused", result.out, re.M)
    assert " 0 differ" not in result.out


def test_a_broken_policy_fails(tmp_path: Path) -> None:
    """A typo in a policy is told with its mend, before anything is judged by the rest."""
    result = run(doctored(tmp_path, "policies.yaml", "toPorts:", "toPort:"))
    assert (result.status, set(result.left)) == (2, set())
    assert result.err.startswith("demo: 1 problem(s) in policy documents; nothing was applied\n")
    assert 'did you mean "toPorts"?' in result.err
    assert STAGE_1 not in result.out


def test_without_privilege() -> None:
    """Who may not make namespaces is told which capability is missing."""
    result = run(DEMO, under=UNPRIVILEGED)
    assert (result.out, result.status, set(result.left)) == ("", 2, set())
    assert re.fullmatch(r"demo: .* needs CAP_SYS_ADMIN: run as root .*\n", result.err)
