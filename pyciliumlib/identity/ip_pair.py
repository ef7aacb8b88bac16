"""The form in which nodes tell each other of an address through a store: Cilium's IPIdentityPair.

The key is `cilium/state/ip/v1/<address space>/<address or prefix>`, the value JSON.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import InvalidError, UnitError
from pyciliumlib.types import Address, Network, parse_address, parse_network

IP_BASE_PATH: Final = "cilium/state/ip/v1"
_TEXTS: Final = {
    "Metadata": "metadata",
    "K8sNamespace": "namespace",
    "K8sPodName": "pod",
    "K8sServiceAccount": "service_account",
}
# Go escapes what could end a script in a web page; stores are compared byte by byte.
_ESCAPED: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@frozen
class NamedPort:
    """A port of a pod by its name."""

    name: str
    port: int
    protocol: str


@frozen
class IPIdentityPair:
    """An address or prefix, its identity, the node it is on, and the pod behind it."""

    prefix: Network
    identity: int
    host: Address | None = None
    encrypt_key: int = 0
    metadata: str = ""
    namespace: str = ""
    pod: str = ""
    service_account: str = ""
    named_ports: tuple[NamedPort, ...] = ()

    @property
    def is_address(self) -> bool:
        """Whether it is one address (its key then has no length)."""
        return self.prefix.prefixlen == self.prefix.max_prefixlen

    def key(self, address_space: str = "default", base: str = IP_BASE_PATH) -> str:
        """The key in the store."""
        name = str(self.prefix.network_address) if self.is_address else str(self.prefix)
        return f"{base}/{address_space}/{name}"

    def encode(self) -> str:
        """The JSON text, byte for byte as Cilium writes it."""
        mask = None if self.is_address else base64.b64encode(self.prefix.netmask.packed).decode()
        data: dict[str, Any] = {
            "IP": str(self.prefix.network_address),
            "Mask": mask,
            "HostIP": str(self.host) if self.host is not None else "",
            "ID": self.identity,
            "Key": self.encrypt_key,
            "Metadata": self.metadata,
        }
        pod = {name: getattr(self, field) for name, field in _TEXTS.items() if name != "Metadata"}
        data |= {name: text for name, text in pod.items() if text}
        if self.named_ports:
            data["NamedPorts"] = [
                {"Name": p.name, "Port": p.port, "Protocol": p.protocol} for p in self.named_ports
            ]
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED)

    @classmethod
    def decode(cls, key: str, value: str) -> IPIdentityPair:
        """Read what a node wrote.

        Raises InvalidError where it is malformed or where key and value name different addresses.
        """
        try:
            data = json.loads(value)
        except ValueError as error:
            raise InvalidError(f"store key {key!r}: the value is no JSON: {error}") from error
        if not isinstance(data, Mapping):
            raise InvalidError(f"store key {key!r}: the value is no object")
        try:
            pair = cls._from_data(data)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise InvalidError(f"store key {key!r}: {type(error).__name__}: {error}") from error
        if not key.endswith("/" + pair.key("", "").lstrip("/")):
            raise InvalidError(f"store key {key!r}: the value is about {pair.prefix}")
        return pair

    @classmethod
    def _from_data(cls, data: Mapping[str, Any]) -> IPIdentityPair:
        address = parse_address(data["IP"])
        host = data.get("HostIP")
        texts = {field: _text(data.get(name) or "") for name, field in _TEXTS.items()}
        return cls(
            prefix=_prefix(address, data.get("Mask")),
            identity=_number(data["ID"], 32),
            host=parse_address(host) if host else None,
            encrypt_key=_number(data.get("Key", 0), 8),
            named_ports=tuple(
                NamedPort(_text(p["Name"]), _number(p["Port"], 16), _text(p["Protocol"]))
                for p in data.get("NamedPorts") or ()
            ),
            **texts,
        )


def _prefix(address: Address, mask: object) -> Network:
    if mask is None:
        return parse_network(address)
    netmask = ipaddress.ip_address(base64.b64decode(_text(mask), validate=True))
    bits = f"{int(netmask):0{address.max_prefixlen}b}"
    if netmask.version != address.version or "01" in bits:
        raise UnitError(f"{netmask} is no mask of {address}")
    return parse_network(f"{address}/{bits.count('1')}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object, bits: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value >> bits:
        raise TypeError(f"{value!r} is no number of {bits} bits")
    return value
