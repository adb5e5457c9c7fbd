"""Synonym trees from WordNet's database (`concepts.wordnet`): the source of `build_synonyms source=wordnet`."""

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

from ace_dist.concepts.actions import Action, normalise
from ace_dist.concepts.wordnet import Sense, WordNet
from ace_dist.tools.synonyms.answers import Answer
from ace_dist.utils.errors import ConfigError, LabelError


class WordNetSource:
    """Takes the nearest verbs of WordNet. A child keeps the sense in which it was found, so trees do not drift."""

    def __init__(self, wordnet: WordNet, senses: Mapping[str, str], roots: set[str]) -> None:
        self.wordnet, self.roots = wordnet, roots
        self.picked = {normalise(verb): name for verb, name in senses.items()}
        if unknown := sorted(self.picked.keys() - roots):
            raise ConfigError(f"senses names {', '.join(map(repr, unknown))}, which no action begins with")
        self._senses: dict[tuple[str, ...], Sense] = {}

    def fill(self, node: tuple[str, ...], action: Action, count: int) -> Answer:
        """`count` synonyms of the verb of `action`, the last of `node`.

        The root verbs of other actions are left out: each names a concept of its own.
        """
        verb = action.verb
        # A copy of its parent has the sense of its parent: "spin > spin > rotate" means "spin > rotate".
        node = node[:1] + tuple(child for parent, child in pairwise(node) if child != parent)
        if len(node) == 1:
            try:
                self._senses[node] = self.wordnet.sense(verb, self.picked.get(verb))
            except LabelError as error:
                return Answer(fault=str(error))
        sense = self._senses[node]
        children = list(islice(self.wordnet.children(verb, sense, self.roots - {node[0]}), count))
        self._senses |= {(*node, other): near for other, near in children}
        answer = Answer([other for other, _ in children])
        if len(children) < count:
            answer.fault = (
                f"WordNet has {len(children)} of {count} synonyms near {self.wordnet.name(verb, sense)} "
                f"({sense.gloss}); pick another sense (senses='{{{node[0]}: ...}}'), a smaller M, or complete the "
                f"node by hand"
            )
        return answer

    def root_senses(self) -> list[tuple[str, str, str]]:
        """Root verb, name of its sense, gloss: for the user to check."""
        return [
            (node[0], self.picked.get(node[0]) or self.wordnet.name(node[0], sense), sense.gloss)
            for node, sense in sorted(self._senses.items(), key=lambda pair: pair[0])
            if len(node) == 1
        ]

    def meta(self) -> dict[str, Any]:
        """Provenance; no date, since the database decides everything."""
        return {
            "source": "WordNet 3.0",
            "database_sha256": self.wordnet.digest,
            "senses": {verb: name for verb, name, _ in self.root_senses()},
            "licence": "WordNet 3.0, Copyright 2006 by Princeton University",
        }
