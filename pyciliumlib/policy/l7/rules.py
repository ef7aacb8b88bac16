"""L7 rules as values, for the proxies that apply them."""

from __future__ import annotations

import enum

from attrs import frozen


@frozen
class HeaderMatch:
    """A header to compare; with a `mismatch` action the rule matches and the action is taken."""

    name: str
    value: str = ""
    secret: str = ""
    mismatch: str = ""


@frozen
class HTTPRule:
    """Method, path and host are regular expressions (RE2) on the whole text; empty is any."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[str, ...] = ()
    header_matches: tuple[HeaderMatch, ...] = ()

    def __str__(self) -> str:
        parts = [self.method, self.host + self.path, *self.headers]
        parts += [f"{match.name}: {match.value}" for match in self.header_matches]
        return " ".join(part for part in parts if part) or "any request"


@frozen
class DNSRule:
    """A name that may be asked for, or a pattern of names."""

    match_name: str = ""
    match_pattern: str = ""

    def __str__(self) -> str:
        return self.match_name or self.match_pattern or "no name"


@frozen
class KafkaRule:
    """A request that may be sent; empty fields match all."""

    role: str = ""
    api_key: str = ""
    api_version: str = ""
    client_id: str = ""
    topic: str = ""

    def __str__(self) -> str:
        version = f"version {self.api_version}" if self.api_version else ""
        client = f"client {self.client_id}" if self.client_id else ""
        parts = [self.role, self.api_key, version, client, self.topic]
        return " ".join(part for part in parts if part) or "any request"


@frozen
class GenericRule:
    """Pairs for the parser that `l7proto` names."""

    pairs: tuple[tuple[str, str], ...] = ()


L7Rule = HTTPRule | DNSRule | KafkaRule | GenericRule


class Parser(str, enum.Enum):
    """Which proxy protocol a redirected connection is for."""

    HTTP = "http"
    DNS = "dns"
    KAFKA = "kafka"
    GENERIC = "l7proto"
    TLS = "tls"
    CRD = "crd"


@frozen
class L7:
    """What a proxy is to do with a connection: the requests that it lets pass, and TLS.

    `name` is the parser of `l7proto`, or the listener. `priority` is the listener's (1 first).
    """

    parser: Parser
    name: str = ""
    rules: tuple[L7Rule, ...] = ()
    server_names: tuple[str, ...] = ()
    terminating: str = ""
    originating: str = ""
    priority: int = 0

    def __str__(self) -> str:
        return f"{self.parser.value} {self.name}".rstrip()
