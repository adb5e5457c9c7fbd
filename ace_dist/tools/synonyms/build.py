"""Builds the synonym trees of a list of actions: which nodes are asked for, what fills them, the file that results.

Trees grow from their roots: a node's synonyms are its children, which are asked for next. A node that stays short is
noted with the reason and the others go on. Several trees grow at a time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_dist import __version__
from ace_dist.concepts.actions import Action
from ace_dist.concepts.trees import DIGEST, SynonymTrees
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.answers import Answer, parse_answer, question, read_template, template_sha256
from ace_dist.tools.synonyms.budget import Budget, BuildStopped, ClientConfig, NoAnswer, estimated_tokens
from ace_dist.tools.synonyms.wordnet import WordNetSource
from ace_dist.utils.console import Progress
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.files import write_json, write_text

if TYPE_CHECKING:
    from ace_dist.tools.synonyms.client import ChatClient

Node = tuple[str, ...]  # its path: root, child, grandchild, ...


@dataclass
class BuildConfig(ClientConfig):
    """Settings of `ace synonyms`; those of the language model's server come from `ClientConfig`."""

    actions: Any = None  # a CSV file with the columns verb and object, a text file of labels, or a list
    output: str | None = None  # the tree file to write
    source: str = "model"  # model | wordnet (our own list of makers' verbs, and WordNet for those it lacks)
    children: int = 9  # M of the first order, the verb itself counted
    grandchildren: int | None = None  # M of the second and deeper orders; null: as children
    orders: int = 2
    # a language model
    domain: str | None = None  # what the actions belong to, such as "toy assembly"
    prompt: str | None = None  # text file of the question, such as ace_dist/assets/prompts/ace_paper.txt; null: ours
    asks: int = 3  # answers for one node: while synonyms are missing
    concurrency: int = 4  # trees that grow at a time
    dry_run: bool = False  # estimate, ask nothing
    # WordNet
    wordnet: str | None = None  # folder of the database; null: the PyPI package's or Debian's
    senses: dict[str, str] = field(default_factory=dict)  # verb: WordNet's sense of it, such as {spin: spin.v.01}
    suspicious: bool = False  # take rare and vulgar verbs, and those without an object, too
    # a sheet that a person edits
    manual: str | None = None  # export | import
    trees: str | None = None  # the tree file to export, or the one that the sheet was exported from
    sheet: str | None = None  # CSV file
    editor: str | None = None  # who edited, for the provenance

    def sizes(self) -> tuple[int, ...]:  # M of each order
        return (self.children, *[self.grandchildren or self.children] * (self.orders - 1))


@dataclass(frozen=True)
class BuildResult:
    """The file that was written, and the nodes it lacks (empty: the trees are complete)."""

    path: Path
    missing: dict[str, str]
    continues: bool = False  # the same command, given again, may fill them


def build(config: BuildConfig, say: Callable[[str], None] = print) -> BuildResult | None:
    """Build the trees of `config.actions` into `config.output`; `None` after a dry run.

    Complete trees of an unfinished build are in `OUTPUT.partial.json`, rewritten as each is done; the same command
    continues it, since answers are cached. Raises `UserError`s for settings that cannot work.
    """
    check(config)
    output = Path(config.output or "").expanduser()
    actions = read_actions(config.actions).by_verb()
    if config.source == "wordnet":
        wordnet = WordNetSource(config.wordnet, config.senses, set(actions), config.suspicious)
        result = grow_trees(actions, config.sizes(), wordnet, output, 1)
        if wordnet.own:
            say(f"  from our own list: {', '.join(sorted(wordnet.own))}")
        for verb, name, gloss in wordnet.root_senses():
            say(f"  {verb}: {name}, {gloss}")
        return result
    say("estimate: " + estimate(actions, config))
    if config.dry_run:
        return None
    from ace_dist.tools.synonyms.client import ChatClient  # WordNet needs no openai

    client = ChatClient(config)
    try:
        return grow_trees(actions, config.sizes(), ModelSource(client, config), output, config.concurrency)
    finally:
        client.http.close()
        say(
            f"{client.answered} questions answered by the server in {client.http.requests} requests, "
            f"{len(client.replies) - client.answered} from {client.cache}; "
            f"spent: {client.budget.describe(client.budget.tokens_in, client.budget.tokens_out)}"
        )


class ModelSource:
    """Asks a model; asks again, at most `asks` times in all, while an answer leaves synonyms missing."""

    def __init__(self, client: "ChatClient", config: BuildConfig) -> None:
        self.client, self.domain, self.asks = client, config.domain or "", config.asks
        self.template = read_template(config.prompt)

    def fill(self, node: Node, action: Action, count: int) -> Answer:
        """`count` synonyms of the last verb of `node`. As in the paper, the question asks for M: one to spare."""
        total = Answer()
        while len(total.verbs) < count and total.answers < self.asks:
            phrases = [str(action.with_verb(verb)) for verb in total.verbs]
            prompt = question(str(action), count + 1 - len(total.verbs), self.domain, phrases, self.template)
            try:
                reply = self.client.ask(prompt, total.answers)
            except NoAnswer as error:
                total.fault, total.passing = str(error), True
                return total
            answer = parse_answer(reply.text, action, truncated=reply.finish == "length")
            total.answers += 1
            total.verbs += [verb for verb in answer.verbs if verb not in total.verbs]
            total.repairs += answer.repairs
            total.rejected += answer.rejected
        if len(total.verbs) < count:
            total.fault = (
                f"{len(total.verbs)} of {count} synonyms after {total.answers} answers; rejected: "
                f"{'; '.join(total.rejected[-5:]) or 'none'}; raise asks, or complete the node by hand (manual=export)"
            )
        return total

    def meta(self) -> dict[str, Any]:
        """Provenance. It depends on the answers alone, so that a rerun from the cache writes the same file."""
        replies = list(self.client.replies.values())
        return {
            "source": "language model",
            **{key: value for key, value in self.client.identity().items() if value is not None},
            "served_model": sorted({reply.served_model for reply in replies}),
            "domain": self.domain,
            "prompt_sha256": template_sha256(self.template),
            "date": max((reply.date for reply in replies), default=""),
            "answers": len(replies),
            "tokens_input": sum(reply.tokens_in for reply in replies),
            "tokens_output": sum(reply.tokens_out for reply in replies),
        }


@dataclass
class Tree:
    """One tree under construction. `sizes` holds M of each order, the parent counted."""

    action: Action  # whose verb is the root
    sizes: tuple[int, ...]
    source: ModelSource | WordNetSource
    node_done: Callable[[], object]
    nested: Any = None  # as a tree file holds it, once every node was asked for
    missing: dict[Node, str] = field(default_factory=dict)  # nodes without enough synonyms, with the reason
    answers: dict[Node, Answer] = field(default_factory=dict)
    stopped: str = ""
    continues: bool = False  # another build may fill what is missing

    def grow(self, node: Node) -> Any:
        """The tree at `node`, parents first. After `BuildStopped` the other nodes count as missing."""
        answer = Answer(fault=self.stopped)
        if not self.stopped:
            # Copies of a node at deeper orders take their synonyms from the same answer.
            count = max(self.sizes[len(node) - 1 :]) - 1
            try:
                answer = self.source.fill(node, self.action.with_verb(node[-1]), count)
                self.answers[node] = answer
            except BuildStopped as error:
                self.stopped = answer.fault = str(error)
                answer.passing = error.passing
            self.node_done()
        if answer.fault:
            self.missing[node] = answer.fault
            self.continues |= answer.passing
        return self._nest(node, answer.verbs, not answer.fault)

    def _nest(self, node: Node, synonyms: Sequence[str], whole: bool) -> Any:
        """The tree at `node` with these synonyms; nodes below are asked for where it is whole.

        A copy of its parent ("spin > spin") takes its parent's synonyms.
        """
        children = [node[-1], *synonyms[: self.sizes[len(node) - 1] - 1]]
        if len(node) == len(self.sizes):
            return children
        copy = {node[-1]: self._nest((*node, node[-1]), synonyms, whole)}
        others = ((*node, child) for child in children[1:])
        return copy | {below[-1]: self.grow(below) if whole else self._nest(below, (), False) for below in others}


def grow_trees(
    actions: Mapping[str, Action],
    sizes: tuple[int, ...],
    source: ModelSource | WordNetSource,
    output: Path,
    concurrency: int,
) -> BuildResult:
    """Grow `concurrency` trees at a time and show how far it is; save them whenever one is done."""
    check_unedited(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    with Progress(question_count(actions, sizes), "synonyms", "node") as progress:
        trees = {root: Tree(action, sizes, source, progress.update) for root, action in actions.items()}
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                futures = {pool.submit(tree.grow, (root,)): tree for root, tree in trees.items()}
                for future in as_completed(futures):
                    futures[future].nested = future.result()
                    missing = save(trees, source.meta(), output)
            except BaseException:
                if isinstance(source, ModelSource):
                    source.client.stop("the build was interrupted")  # questions under way end soon
                raise
    continues = any(tree.continues for tree in trees.values())
    return BuildResult(partial_path(output) if missing else output, missing, continues)


def save(trees: Mapping[str, Tree], meta: dict[str, Any], output: Path) -> dict[str, str]:
    """Write the trees: to `output` when none is missing, else to the partial file. Returns what is missing."""
    done = {root: tree for root, tree in trees.items() if tree.nested is not None}
    missing = {" > ".join(node): reason for tree in done.values() for node, reason in tree.missing.items()}
    missing |= {root: "not asked yet" for root in trees if root not in done}
    whole = {root: tree.nested for root, tree in done.items() if not tree.missing}
    answers = [pair for tree in done.values() for pair in sorted(tree.answers.items(), key=lambda pair: pair[0])]
    meta = {
        **meta,
        "tool": f"ace-dist {__version__}",
        "sizes": list(next(iter(trees.values())).sizes),
        "sizes_include_parent": True,
        "asked_as": {root: str(tree.action) for root, tree in trees.items()},
        "repaired_lines": sum(len(answer.repairs) for _, answer in answers),
        "rejected_lines": sum(len(answer.rejected) for _, answer in answers),
        "hand_edits": [],
    }
    if missing:
        unfinished = {root: tree.nested for root, tree in done.items() if tree.missing}
        write_json(partial_path(output), {"_meta": meta | {"missing": missing, "unfinished": unfinished}, **whole})
    else:
        built = SynonymTrees(whole, meta, str(output))
        check_unedited(output, built)
        built.sign()
        built.save(output)
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


def check_unedited(output: Path, built: SynonymTrees | None = None) -> None:
    """Raise `ConfigError` where `output` holds a person's work, which is never overwritten.

    Files that are not signed may hold some when a tree of theirs differs from the one that was `built`.
    """
    if not output.is_file():
        return
    found = SynonymTrees.load(output)
    remedy = "choose another name, or move it away"
    if found.meta.get("hand_edits") or found.is_edited:
        raise ConfigError(f"output={output} was edited by hand; {remedy}")
    if built is None or DIGEST in found.meta:
        return
    for root in found.roots:
        if root in built and dict(found.nodes(root)) != dict(built.nodes(root)):
            raise ConfigError(
                f"output={output} holds another tree of {root!r}, which a person may have edited: it does not say what "
                f"was built ({DIGEST} in its _meta); {remedy}"
            )


def partial_path(output: Path) -> Path:
    return output.with_name(output.stem + ".partial.json")


def question_count(actions: Mapping[str, Action], sizes: Sequence[int]) -> int:
    """Different questions: a copy of its parent, and what lies below it, was asked for one order higher."""
    return len(actions) * sum(accumulate((size - 1 for size in sizes[:-1]), mul, initial=1))


def estimate(actions: Mapping[str, Action], config: BuildConfig) -> str:
    """Questions, tokens and cost of the whole build, if every answer is good and none is cached."""
    questions, size = question_count(actions, config.sizes()), max(config.sizes())
    labels, template = [str(action) for action in actions.values()], read_template(config.prompt)
    asked = [question(label, size, config.domain or "", (), template) for label in labels]
    tokens_in = questions * max(map(estimated_tokens, asked))
    tokens_out = questions * estimated_tokens(size * (max(labels, key=len) + "\n"))
    return (
        f"{len(labels)} verbs, at most {questions} questions, about {Budget(config).describe(tokens_in, tokens_out)} "
        f"(before what the cache holds; {config.asks} answers a node at most)"
    )


def check(config: BuildConfig) -> None:
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
