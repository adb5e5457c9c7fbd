"""The source of `ace synonyms source=wordnet`: our own list of makers' verbs, and WordNet for the verbs it lacks."""

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

from ace_dist.concepts.actions import Action, normalise
from ace_dist.concepts.makers import MAKERS, maker_node, maker_synonyms, maker_trees
from ace_dist.concepts.wordnet import Sense, WordNet, find_wordnet
from ace_dist.tools.synonyms.answers import Answer
from ace_dist.utils.errors import ConfigError, LabelError


class WordNetSource:
    """Takes the nearest verbs of our own list; of WordNet where the list lacks a root, or where its sense is picked.

    A child of WordNet keeps the sense in which it was found, so trees do not drift. `folder` holds the database, which
    is looked for only when a root needs it; `suspicious` takes its rare and vulgar verbs too.
    """

    def __init__(
        self, folder: str | None, senses: Mapping[str, str], roots: set[str], suspicious: bool = False
    ) -> None:
        self.roots, self.suspicious = roots, suspicious
        self.picked = {normalise(verb): name for verb, name in senses.items()}
        if unknown := sorted(self.picked.keys() - roots):
            raise ConfigError(f"senses names {', '.join(map(repr, unknown))}, which no action begins with")
        self.own = {root for root in roots if maker_node(root)} - self.picked.keys()
        self.wordnet = WordNet(find_wordnet(folder)) if roots - self.own else None
        self._senses: dict[tuple[str, ...], Sense] = {}

    def fill(self, node: tuple[str, ...], action: Action, count: int) -> Answer:
        """`count` synonyms of the verb of `action`, the last of `node`.

        The root verbs of other actions are left out: each names a concept of its own.
        """
        # A copy of its parent has the sense of its parent: "spin > spin > rotate" means "spin > rotate".
        node = node[:1] + tuple(child for parent, child in pairwise(node) if child != parent)
        if self.wordnet is None or node[0] in self.own:
            return self._fill_own(node, action.verb, count)
        return self._fill_wordnet(self.wordnet, node, action.verb, count)

    def _fill_own(self, node: tuple[str, ...], verb: str, count: int) -> Answer:
        """At the first order verbs of other concepts come last: the labels would contradict each other in one loss."""
        root = node[0]
        verbs = maker_synonyms(root, verb, self.roots - {root})
        if len(node) == 1:
            others = {child for other in self.own - {root} for child in maker_node(other)}
            verbs.sort(key=others.__contains__)
        answer = Answer(verbs[:count])
        if (found := len(answer.verbs)) < count:
            answer.fault = (
                f"our own list ({MAKERS}) has {found} of {count} synonyms of {verb!r}; take a smaller M, at most "
                f"children={found + 1} grandchildren={found + 1}, WordNet's with senses='{{{root}: ...}}' "
                f"(`ace synonyms senses {root}`), or complete the node by hand"
            )
        return answer

    def _fill_wordnet(self, wordnet: WordNet, node: tuple[str, ...], verb: str, count: int) -> Answer:
        if len(node) == 1:
            try:
                self._senses[node] = wordnet.sense(verb, self.picked.get(verb))
            except LabelError as error:
                return Answer(fault=str(error))
        sense = self._senses[node]
        children = list(islice(wordnet.children(verb, sense, self.roots - {node[0]}, self.suspicious), count))
        self._senses |= {(*node, other): near for other, near in children}
        answer = Answer([other for other, _ in children])
        if (found := len(children)) < count:
            rare = "" if self.suspicious else "suspicious=true for its rare verbs too, "
            answer.fault = (
                f"WordNet has {found} of {count} synonyms near {wordnet.name(verb, sense)} ({sense.definition}); set "
                f"{rare}another sense (senses='{{{node[0]}: ...}}', `ace synonyms senses {node[0]}` lists them) or a "
                f"smaller M (children={found + 1} grandchildren={found + 1}), or complete the node by hand"
            )
        return answer

    def root_senses(self) -> list[tuple[str, str, str]]:
        """Root verb of WordNet, name of its sense, gloss: for the user to check."""
        if self.wordnet is None:
            return []
        return [
            (node[0], self.picked.get(node[0]) or self.wordnet.name(node[0], sense), sense.gloss)
            for node, sense in sorted(self._senses.items(), key=lambda pair: pair[0])
            if len(node) == 1
        ]

    def meta(self) -> dict[str, Any]:
        """Provenance; no date, since list and database decide everything."""
        own = {"own_list": {"file": MAKERS, "written_by": maker_trees().meta["written_by"], "verbs": sorted(self.own)}}
        if self.wordnet is None:
            return {"source": MAKERS, **own}
        return {
            "source": f"{MAKERS} and WordNet 3.0" if self.own else "WordNet 3.0",
            **(own if self.own else {}),
            "database_sha256": self.wordnet.digest,
            "senses": {verb: name for verb, name, _ in self.root_senses()},
            "suspicious": self.suspicious,
            "licence": "WordNet 3.0, Copyright 2006 by Princeton University",
        }
