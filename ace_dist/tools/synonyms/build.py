"""Builds the synonym trees of a list of actions: which nodes are asked for, what fills them, the file that results.

Trees grow from their roots: a node's synonyms are its children, which are asked for next. A node that stays short is
noted with the reason and the others go on.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ace_dist import __version__
from ace_dist.concepts.actions import Action
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.answers import TEMPLATE_SHA256, Answer, parse_answer, question
from ace_dist.tools.synonyms.client import Budget, BuildStopped, ChatClient, ClientConfig, NoAnswer, estimated_tokens
from ace_dist.tools.synonyms.wordnet import WordNet, WordNetSource, find_wordnet
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.files import write_json, write_text

Node = tuple[str, ...]  # its path: root, child, grandchild, ...


@dataclass
class BuildConfig(ClientConfig):
    """Settings of `launchers/build_synonyms.py`; those of the language model's server come from `ClientConfig`."""

    actions: Any = None  # a CSV file with the columns verb and object, a text file of labels, or a list
    output: str | None = None  # the tree file to write
    source: str = "model"  # model | wordnet
    children: int = 9  # M of the first order, the verb itself counted
    grandchildren: int | None = None  # M of the second and deeper orders; null: as children
    orders: int = 2
    # a language model
    domain: str | None = None  # what the actions belong to, such as "toy assembly"
    asks: int = 3  # answers for one node: while synonyms are missing
    concurrency: int = 4
    dry_run: bool = False  # estimate, ask nothing
    # WordNet
    wordnet: str | None = None  # folder of the database; null: the PyPI package's or Debian's
    senses: dict[str, str] = field(default_factory=dict)  # verb: sense, such as {spin: spin.v.01}
    # a sheet that a person edits
    manual: str | None = None  # export | import
    trees: str | None = None  # the tree file to export, or the one that the sheet was exported from
    sheet: str | None = None  # CSV file
    editor: str | None = None  # who edited, for the provenance

    def sizes(self) -> tuple[int, ...]:
        """M of each order."""
        return (self.children, *[self.grandchildren or self.children] * (self.orders - 1))


@dataclass(frozen=True)
class BuildResult:
    """The file that was written, and the nodes it lacks (empty: the trees are complete)."""

    path: Path
    missing: dict[str, str]


def build(config: BuildConfig, say: Callable[[str], None] = print) -> BuildResult | None:
    """Build the trees of `config.actions` into `config.output`; `None` after a dry run.

    Complete trees of an unfinished build are in `OUTPUT.partial.json`, rewritten as each is done; the same command
    continues it, since answers are cached. Raises `UserError`s for settings that cannot work.
    """
    check(config)
    output = Path(config.output or "").expanduser()
    forest = Forest(read_actions(config.actions).by_verb(), config.sizes())
    if config.source == "wordnet":
        wordnet = WordNetSource(WordNet(find_wordnet(config.wordnet)), config.senses, set(forest.roots))
        result = grow_and_save(forest, wordnet, output, 1)
        for verb, name, gloss in wordnet.chosen():
            say(f"  {verb}: {name}, {gloss}")
        return result
    say("estimate: " + estimate(forest, config))
    if config.dry_run:
        return None
    client = ChatClient(config)
    try:
        return grow_and_save(forest, ModelSource(client, config), output, config.concurrency)
    finally:
        say(
            f"{client.answered} questions answered by the server in {client.http.requests} requests, "
            f"{len(client.replies) - client.answered} from {client.cache}; "
            f"spent: {client.budget.describe(client.budget.tokens_in, client.budget.tokens_out)}"
        )


class ModelSource:
    """Asks a model; asks again, at most `asks` times in all, while an answer leaves synonyms missing."""

    def __init__(self, client: ChatClient, config: BuildConfig) -> None:
        self.client, self.domain, self.asks = client, config.domain or "", config.asks

    def fill(self, node: Node, action: Action, count: int) -> Answer:
        """`count` synonyms of the last verb of `node`. As in the paper, the question asks for M: one to spare."""
        found = Answer()
        while len(found.verbs) < count and found.answers < self.asks:
            known = [str(action.with_verb(verb)) for verb in found.verbs]
            prompt = question(str(action), count + 1 - len(found.verbs), self.domain, known)
            try:
                reply = self.client.ask(prompt, found.answers)
            except NoAnswer as error:
                found.fault = str(error)
                return found
            answer = parse_answer(reply.text, action, truncated=reply.finish == "length")
            found.answers += 1
            found.verbs += [verb for verb in answer.verbs if verb not in found.verbs]
            found.repairs += answer.repairs
            found.rejected += answer.rejected
        if len(found.verbs) < count:
            found.fault = (
                f"{len(found.verbs)} of {count} synonyms after {found.answers} answers; rejected: "
                f"{'; '.join(found.rejected[-5:]) or 'none'}; raise asks, or complete the node by hand (manual=export)"
            )
        return found

    def cancel(self) -> None:
        """Let questions under way end soon."""
        self.client.stop("the build was interrupted")

    def meta(self) -> dict[str, Any]:
        """Provenance. It depends on the answers alone, so that a rerun from the cache writes the same file."""
        replies = list(self.client.replies.values())
        return {
            "source": "language model",
            **{key: value for key, value in self.client.identity().items() if value is not None},
            "served_model": sorted({reply.served_model for reply in replies}),
            "domain": self.domain,
            "prompt_sha256": TEMPLATE_SHA256,
            "date": max((reply.date for reply in replies), default=""),
            "answers": len(replies),
            "tokens_input": sum(reply.tokens_in for reply in replies),
            "tokens_output": sum(reply.tokens_out for reply in replies),
        }


@dataclass
class Forest:
    """Trees under construction. `sizes` holds M of each order, the parent counted."""

    roots: dict[str, Action]
    sizes: tuple[int, ...]
    children: dict[Node, tuple[str, ...]] = field(default_factory=dict)
    answers: dict[Node, Answer] = field(default_factory=dict)
    stopped: str | None = None

    def add(self, node: Node, synonyms: Sequence[str]) -> list[Node]:
        """Put in a node, and the copies of it at deeper orders; returns the nodes below that must be asked for.

        A copy of its parent ("spin > spin") takes its parent's synonyms.
        """
        self.children[node] = (node[-1], *synonyms[: self.sizes[len(node) - 1] - 1])
        if len(node) == len(self.sizes):
            return []
        to_ask: list[Node] = []
        for child in self.children[node]:
            below = (*node, child)
            to_ask += self.add(below, synonyms) if child == node[-1] else [below]
        return to_ask

    def walk(self, node: Node) -> Iterator[tuple[Node, bool]]:
        """The inner nodes at and below `node`, and whether each is complete."""
        complete = node in self.children and not (node in self.answers and self.answers[node].fault)
        yield node, complete
        if complete and len(node) < len(self.sizes):
            for child in self.children[node]:
                yield from self.walk((*node, child))

    def complete(self, root: str) -> bool:
        return all(complete for _, complete in self.walk((root,)))

    def nested(self, node: Node) -> Any:
        """The tree at `node` as a tree file holds it, with the synonyms there are."""
        children = self.children.get(node, (node[-1],))
        if len(node) == len(self.sizes):
            return list(children)
        return {child: self.nested((*node, child)) for child in children}

    def missing(self) -> dict[str, str]:
        """Every node that is not complete, with the reason."""
        nodes = [node for root in self.roots for node, complete in self.walk((root,)) if not complete]
        reasons = {node: self.answers[node].fault for node in nodes if node in self.answers}
        return {" > ".join(node): reasons.get(node) or self.stopped or "not asked yet" for node in nodes}

    def question_count(self) -> int:
        """Different questions: a copy of its parent, and what lies below it, was asked for one order higher."""
        per_tree, asked = 0, 1
        for size in self.sizes:
            per_tree += asked
            asked *= size - 1
        return per_tree * len(self.roots)


def grow_and_save(forest: Forest, source: ModelSource | WordNetSource, output: Path, concurrency: int) -> BuildResult:
    """Grow the forest under a progress bar, save it after every finished tree, and write the report."""
    if output.is_file() and SynonymTrees.load(output).meta.get("hand_edits"):  # never overwrite a person's work
        raise ConfigError(f"output={output} was edited by hand; choose another name, or move it away")
    output.parent.mkdir(parents=True, exist_ok=True)
    saved: set[str] = set()
    with tqdm(total=forest.question_count(), desc="nodes", disable=None) as bar:

        def node_done(node: Node) -> None:
            bar.update()
            if node[0] not in saved and forest.complete(node[0]):
                saved.add(node[0])
                save(forest, source.meta(), output)

        try:
            grow(forest, source, concurrency, node_done)
        finally:
            missing = save(forest, source.meta(), output)
    return BuildResult(partial_path(output) if missing else output, missing)


def grow(
    forest: Forest, source: ModelSource | WordNetSource, concurrency: int, node_done: Callable[[Node], None]
) -> None:
    """Ask for every node, early trees first, and fill `forest`; `node_done` is called after each, in this thread.

    `BuildStopped` ends the build with what there is.
    """
    order = {root: number for number, root in enumerate(forest.roots)}
    ready: list[tuple[int, int, Node]] = [(order[root], 1, (root,)) for root in forest.roots]  # a heap
    running: dict[Future[Answer], Node] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while running or (ready and not forest.stopped):
                while ready and not forest.stopped and len(running) < concurrency:
                    node = heapq.heappop(ready)[2]
                    action = forest.roots[node[0]].with_verb(node[-1])
                    # Copies of a node at deeper orders take their synonyms from the same answer.
                    count = max(forest.sizes[len(node) - 1 :]) - 1
                    running[pool.submit(source.fill, node, action, count)] = node
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    node = running.pop(future)
                    for child in receive(forest, node, future):
                        heapq.heappush(ready, (order[child[0]], len(child), child))
                    node_done(node)
        except BaseException:
            source.cancel()
            raise


def receive(forest: Forest, node: Node, future: Future[Answer]) -> list[Node]:
    """Put the answer of one node into the forest; returns the nodes to ask for next."""
    try:
        forest.answers[node] = answer = future.result()
    except BuildStopped as reason:
        forest.stopped = forest.stopped or str(reason)
        return []
    if answer.fault:
        forest.children[node] = (node[-1], *answer.verbs)
        return []
    return forest.add(node, answer.verbs)


def save(forest: Forest, meta: dict[str, Any], output: Path) -> dict[str, str]:
    """Write the trees: to `output` when none is missing, else to the partial file. Returns what is missing."""
    missing = forest.missing()
    whole = {root: forest.nested((root,)) for root in forest.roots if forest.complete(root)}
    answers = sorted(forest.answers.items())
    meta = {
        **meta,
        "tool": f"ace-dist {__version__}",
        "sizes": list(forest.sizes),
        "sizes_include_parent": True,
        "asked_as": {root: str(action) for root, action in forest.roots.items()},
        "repaired_lines": sum(len(answer.repairs) for _, answer in answers),
        "rejected_lines": sum(len(answer.rejected) for _, answer in answers),
        "hand_edits": [],
    }
    if missing:
        unfinished = {root: forest.nested((root,)) for root in forest.roots if root not in whole}
        write_json(partial_path(output), {"_meta": meta | {"missing": missing, "unfinished": unfinished}, **whole})
    else:
        SynonymTrees(whole, meta, str(output)).save(output)
        partial_path(output).unlink(missing_ok=True)
    reports = [
        {"node": " > ".join(node), "answers": answer.answers, "repairs": answer.repairs, "rejected": answer.rejected}
        for node, answer in answers
        if answer.answers > 1 or answer.repairs or answer.rejected
    ]
    if reports:
        lines = [json.dumps(report, ensure_ascii=False) + "\n" for report in reports]
        write_text(output.with_name(output.name + ".report.jsonl"), "".join(lines))
    return missing


def partial_path(output: Path) -> Path:
    """Where an unfinished build of `output` keeps its trees."""
    return output.with_name(output.stem + ".partial.json")


def estimate(forest: Forest, config: BuildConfig) -> str:
    """Questions, tokens and cost of the whole build, if every answer is good and none is cached."""
    questions, size = forest.question_count(), max(forest.sizes)
    actions = [str(action) for action in forest.roots.values()]
    prompts = [question(action, size, config.domain or "") for action in actions]
    tokens_in = questions * max(map(estimated_tokens, prompts))
    tokens_out = questions * estimated_tokens(size * (max(actions, key=len) + "\n"))
    return (
        f"{len(actions)} verbs, at most {questions} questions, "
        f"about {Budget(config).describe(tokens_in, tokens_out)} "
        f"(before what the cache holds; {config.asks} answers a node at most)"
    )


def check(config: BuildConfig) -> None:
    """What types cannot say about the settings."""
    if config.actions is None or not config.output:
        raise ConfigError("give actions=FILE (or a list) and output=FILE.json")
    if config.source not in ("model", "wordnet"):
        raise ConfigError(f"source={config.source} is not one of model, wordnet")
    if config.orders < 2 or min(config.sizes()) < 1:
        raise ConfigError(
            f"orders={config.orders}, children={config.children}, grandchildren={config.grandchildren}: "
            f"at least two orders, each M at least 1"
        )
    if config.source == "model" and not (config.model and config.domain):
        raise ConfigError(
            'source=model needs model=NAME and domain="..." (what the actions belong to, such as "toy assembly"); '
            "without a model use source=wordnet"
        )
    if config.output_limit_name not in ("max_tokens", "max_completion_tokens"):
        raise ConfigError(f"output_limit_name={config.output_limit_name} is not max_tokens or max_completion_tokens")
    for name in ("max_output_tokens", "timeout_s", "attempts", "asks", "concurrency", "requests_per_minute"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name}={value} must be greater than zero")
