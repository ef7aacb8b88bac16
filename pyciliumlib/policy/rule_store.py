"""Documents, and their rules filed by subject: which rules govern an endpoint?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import define, field

from pyciliumlib.identity.labels import Network
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.model import Party, PolicyDocument, PolicyKey, Rule
from pyciliumlib.policy.references import KINDS, fill, refers
from pyciliumlib.policy.requires import confine
from pyciliumlib.policy.selector_index import SelectorIndex
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.shares import Handout


@define
class RuleStore:
    """The documents of a repository; what they refer to is filled in."""

    _settings: PolicySettings
    documents: dict[PolicyKey, PolicyDocument] = field(factory=dict)
    _prefixes: Counter[Network] = field(factory=Counter)
    _by_subject: dict[Selector, dict[tuple[PolicyKey, int], Handout]] = field(factory=dict)
    _subjects: SelectorIndex = field(factory=SelectorIndex)
    #: Objects that rules refer to, and documents with such rules, so that they follow them.
    _referred: dict[PolicyKey, PolicyDocument] = field(factory=dict)
    _referring: dict[PolicyKey, PolicyDocument] = field(factory=dict)

    def change(
        self, wanted: Mapping[PolicyKey, PolicyDocument | None]
    ) -> dict[PolicyKey, PolicyDocument | None]:
        """Replace or (None) delete documents; what was there, in the form that turns it back."""
        before = {key: self._put(key, document) for key, document in wanted.items()}
        if any(key.kind in KINDS for key in wanted):
            for key, document in tuple(self._referring.items()):
                self._put(key, document)
        return before

    def touched(self, wanted: Mapping[PolicyKey, PolicyDocument | None]) -> list[Rule]:
        """The rules that a change of these documents is about, as they are now."""
        documents = [document for document in wanted.values() if document]
        if any(key.kind in KINDS for key in wanted):
            documents += self._referring.values()
        return [rule for document in documents for rule in document.rules]

    def _put(self, key: PolicyKey, document: PolicyDocument | None) -> PolicyDocument | None:
        """Replace or (None) delete a document; what was there."""
        before = self.documents.pop(key, None)
        for prefix in before.prefixes() if before else ():
            self._prefixes[prefix] -= 1
            if not self._prefixes[prefix]:
                del self._prefixes[prefix]
        for number, rule in enumerate(before.rules if before else ()):
            handouts = self._by_subject[rule.subject]
            del handouts[key, number]
            if not handouts:
                del self._by_subject[rule.subject]
                self._subjects.remove(rule.subject)
        for keeper in (self._referred, self._referring):
            keeper.pop(key, None)
        if document is not None:
            self._file(key, document)
        return before

    def _file(self, key: PolicyKey, document: PolicyDocument) -> None:
        self.documents[key] = document
        for prefix in document.prefixes():
            self._prefixes[prefix] += 1
        if key.kind in KINDS:
            self._referred[key] = document
        if refers(document):
            self._referring[key] = document
        for number, rule in enumerate(document.rules):
            handout = Handout(fill(rule, self._referred, self._settings))
            self._by_subject.setdefault(rule.subject, {})[key, number] = handout
            self._subjects.add(rule.subject)

    def prefixes(self) -> frozenset[Network]:
        """The prefixes that any rule names."""
        return frozenset(self._prefixes)

    def handouts(self, subject: Party) -> list[Handout]:
        """The rules about `subject`, in an order that does not depend on how they came."""
        on_nodes = subject.is_host
        found = [
            handout
            for selector in self._subjects.matching(subject.labels)
            for handout in self._by_subject[selector].values()
            if handout.rule.on_nodes == on_nodes
        ]
        found.sort(key=lambda handout: handout.rule.source)
        rules = [handout.rule for handout in found]
        confined = confine(rules)
        return found if confined is rules else [Handout(rule) for rule in confined]

    def governing(self, subject: Party) -> list[Rule]:
        """The rules about `subject`, in that order."""
        return [handout.rule for handout in self.handouts(subject)]
