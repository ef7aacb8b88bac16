"""Cookies: the numbers by which a map entry names the rules behind it."""

from __future__ import annotations

import hashlib
from weakref import WeakValueDictionary

from attrs import define, field, frozen

from pyciliumlib.policy.l7 import L7
from pyciliumlib.policy.model import Source, Verdict


@frozen
class Derivation:
    """The clauses behind a map entry, and what a proxy is to do for it."""

    cookie: int
    verdict: Verdict
    sources: tuple[Source, ...]
    l7: tuple[L7, ...] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.sources))


_Content = tuple[Verdict, tuple[Source, ...], tuple[L7, ...]]


@define
class Derivations:
    """Derivations in use, by cookie.

    The cookie is a digest of the content, so that it is the same after a restart.
    """

    _by_cookie: WeakValueDictionary[int, Derivation] = field(factory=WeakValueDictionary)
    _by_content: WeakValueDictionary[_Content, Derivation] = field(factory=WeakValueDictionary)

    def intern(
        self, verdict: Verdict, sources: tuple[Source, ...], l7: tuple[L7, ...]
    ) -> Derivation:
        """The one derivation of this content."""
        content = verdict, sources, l7
        known = self._by_content.get(content)
        if known is None:
            known = self._by_content[content] = self._number(verdict, sources, l7)
        return known

    def _number(
        self, verdict: Verdict, sources: tuple[Source, ...], l7: tuple[L7, ...]
    ) -> Derivation:
        text = "\n".join([verdict.value, *map(repr, sources), *map(repr, l7)])
        cookie = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        while True:
            cookie = cookie or 1
            found = self._by_cookie.get(cookie)
            if found is None:
                found = Derivation(cookie, verdict, sources, l7)
                self._by_cookie[cookie] = found
                return found
            if (found.verdict, found.sources, found.l7) == (verdict, sources, l7):
                return found
            cookie = (cookie + 1) & 0xFFFF_FFFF

    def get(self, cookie: int) -> Derivation | None:
        """The derivation of a cookie, None once no policy uses it."""
        return self._by_cookie.get(cookie)
