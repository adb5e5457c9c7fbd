"""The two sources of synonyms: a language model behind a server, and WordNet."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

from ace_dist.concepts.actions import Action
from ace_dist.tools.synonyms.answers import parse_answer
from ace_dist.tools.synonyms.budget import BudgetReached
from ace_dist.tools.synonyms.cache import Reply
from ace_dist.tools.synonyms.client import ChatClient, ServerFailed, ServerRefused
from ace_dist.tools.synonyms.forest import NodeFailed, NodeReport, Path, Stopped
from ace_dist.tools.synonyms.prompt import question, template_hash
from ace_dist.tools.synonyms.wordnet import Sense, WordNet, WordNetError

DEAD_SERVER = 3  # nodes in a row without any answer after which the server counts as dead


class ModelSource:
    """Asks a model; asks again, at most `asks` times in all, while an answer leaves synonyms missing."""

    def __init__(self, client: ChatClient, domain: str, asks: int) -> None:
        self.client, self.domain, self.asks = client, domain, asks
        self.replies: dict[tuple[str, int], Reply] = {}
        self._failures: deque[bool] = deque(maxlen=DEAD_SERVER)
        self._lock = threading.Lock()

    def synonyms(self, path: Path, object_: str, wanted: int) -> tuple[list[str], NodeReport]:
        """See `Source.synonyms`. As in the paper, the question asks for M: one to spare beside the parent."""
        action = Action(path[-1], object_)
        verbs: list[str] = []
        repairs: list[str] = []
        rejected: list[str] = []
        answers = 0
        while len(verbs) < wanted and answers < self.asks:
            known = [str(action.with_verb(verb)) for verb in verbs]
            reply = self._ask(question(str(action), wanted + 1 - len(verbs), self.domain, known), answers, path, verbs)
            answers += 1
            answer = parse_answer(reply.text, action, truncated=reply.finish == "length")
            verbs += [verb for verb in answer.verbs if verb not in verbs]
            repairs += answer.repairs
            rejected += answer.rejected
        if len(verbs) < wanted:
            raise NodeFailed(
                f"{len(verbs)} of {wanted} synonyms after {answers} answers; rejected: "
                f"{'; '.join(rejected[-5:]) or 'none'}; raise asks, or complete the node by hand (manual=export)",
                verbs,
            )
        return verbs, NodeReport(path, answers, tuple(repairs), tuple(rejected))

    def cancel(self) -> None:
        """See `Source.cancel`."""
        self.client.stop.set()

    def meta(self) -> dict[str, Any]:
        """Provenance. It depends on the answers alone, so that a rerun from the cache writes the same file."""
        settings = self.client.settings
        with self._lock:
            replies = list(self.replies.values())
        return {
            "source": "language model",
            **{key: value for key, value in settings.identity().items() if value is not None},
            "served_model": sorted({reply.served_model for reply in replies}),
            "domain": self.domain,
            "prompt_sha256": template_hash(),
            "date": max((reply.date for reply in replies), default=""),
            "answers": len(replies),
            "tokens_input": sum(reply.tokens_in for reply in replies),
            "tokens_output": sum(reply.tokens_out for reply in replies),
        }

    def _ask(self, prompt: str, turn: int, path: Path, found: list[str]) -> Reply:
        """One answer, or the end of this node or of the build."""
        try:
            reply = self.client.ask(prompt, turn)
        except (BudgetReached, ServerRefused) as error:
            self.client.stop.set()
            raise Stopped(str(error)) from error
        except ServerFailed as error:
            if self.client.stop.is_set():
                raise Stopped(str(error)) from error
            with self._lock:
                self._failures.append(True)
                dead = sum(self._failures) == DEAD_SERVER
            if dead:
                self.client.stop.set()
                raise Stopped(f"{DEAD_SERVER} questions in a row had no answer; the last: {error}") from error
            raise NodeFailed(str(error), found) from error
        with self._lock:
            self._failures.append(False)
            self.replies[prompt, turn] = reply
        return reply


class WordNetSource:
    """Takes the nearest verbs of WordNet. A child keeps the sense in which it was found, so trees do not drift."""

    def __init__(self, wordnet: WordNet, senses: Mapping[str, str], roots: set[str]) -> None:
        if unknown := sorted(set(senses) - roots):
            raise WordNetError(f"senses names {', '.join(map(repr, unknown))}, which no action begins with")
        self.wordnet, self.picked, self.roots = wordnet, senses, roots
        self._senses: dict[Path, Sense] = {}

    def synonyms(self, path: Path, object_: str, wanted: int) -> tuple[list[str], NodeReport]:
        """See `Source.synonyms`. The root verbs of other actions are left out: each names a concept of its own."""
        verb = path[-1]
        if len(path) == 1:
            try:
                self._senses[path] = self.wordnet.sense(verb, self.picked.get(verb))
            except WordNetError as error:
                raise NodeFailed(str(error)) from error
        sense = self._senses[distinct(path)]
        found = list(islice(self.wordnet.children(verb, sense, self.roots - {path[0]}), wanted))
        for other, near in found:
            self._senses[*distinct(path), other] = near
        verbs = [other for other, _ in found]
        if len(verbs) < wanted:
            raise NodeFailed(
                f"WordNet has {len(verbs)} of {wanted} synonyms near {self.wordnet.name(verb, sense)} ({sense.gloss}); "
                f"pick another sense (senses='{{{path[0]}: ...}}'), a smaller M, or complete the node by hand",
                verbs,
            )
        return verbs, NodeReport(path, 0)

    def cancel(self) -> None:
        """See `Source.cancel`; look-ups take no time."""

    def chosen(self) -> list[tuple[str, str, str]]:
        """Root verb, name of its sense, gloss: for the user to check."""
        senses = [(path[0], sense) for path, sense in self._senses.items() if len(path) == 1]
        return [
            (verb, self.picked.get(verb) or self.wordnet.name(verb, sense), sense.gloss)
            for verb, sense in sorted(senses, key=lambda pair: pair[0])
        ]

    def meta(self) -> dict[str, Any]:
        """Provenance; no date, since the database decides everything."""
        return {
            "source": "WordNet 3.0",
            "database_sha256": self.wordnet.digest,
            "senses": {verb: name for verb, name, _ in self.chosen()},
            "licence": "WordNet 3.0, Copyright 2006 by Princeton University",
        }


def distinct(path: Path) -> Path:
    """A path without copies of parents: "spin > spin > rotate" means "spin > rotate"."""
    return path[:1] + tuple(verb for parent, verb in pairwise(path) if verb != parent)
