"""Actions in, tree file out: settings, estimate, the run with its progress, the file, and what is missing from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ace_dist import __version__
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.budget import Budget, Prices, estimated_tokens
from ace_dist.tools.synonyms.cache import AnswerCache, default_cache
from ace_dist.tools.synonyms.client import ChatClient, ServerSettings
from ace_dist.tools.synonyms.forest import Forest, grow
from ace_dist.tools.synonyms.prompt import question
from ace_dist.tools.synonyms.sources import ModelSource, WordNetSource
from ace_dist.tools.synonyms.wordnet import WordNet, find_wordnet
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import write_json, write_text


class BuildError(UserError):
    """Settings of a build that contradict each other or say too little."""


@dataclass
class BuildConfig:
    """Settings of `launchers/build_synonyms.py`."""

    actions: Any = None  # a CSV file with the columns verb and object, a text file of labels, or a list
    output: str | None = None  # the tree file to write
    source: str = "model"  # model | wordnet
    children: int = 9  # M of the first order, the verb itself counted
    grandchildren: int | None = None  # M of the second and deeper orders; null: as children
    orders: int = 2
    # a language model
    domain: str | None = None  # what the actions belong to, such as "toy assembly"
    model: str | None = None
    base_url: str | None = None  # of any OpenAI-compatible server; null: OPENAI_BASE_URL, else OpenAI
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key
    temperature: float | None = None
    seed: int | None = None
    max_output_tokens: int = 1000  # of one answer
    output_limit_name: str = "max_tokens"  # some models of OpenAI want max_completion_tokens
    timeout_s: float = 60.0
    attempts: int = 5  # requests for one answer: after 429, 5xx, time-outs, broken responses
    backoff_s: float = 1.0
    asks: int = 3  # answers for one node: while synonyms are missing
    concurrency: int = 4
    requests_per_minute: float | None = None
    cache: str | None = None  # folder of answers; null: ~/.cache/ace-dist/synonyms
    price_input: float | None = None  # per million tokens, in any currency
    price_output: float | None = None
    budget_tokens: int | None = None  # of this build, input and output together
    budget_cost: float | None = None  # of this build, in the currency of the prices
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

    Complete trees of an unfinished build are in `OUT.partial.json`, rewritten as each is done; the same command
    continues it, since answers are cached. Raises `UserError`s for settings that cannot work.
    """
    check(config)
    out = Path(config.output or "").expanduser()
    forest = Forest(read_actions(config.actions).by_verb(), config.sizes())
    if config.source == "wordnet":
        wordnet = WordNetSource(WordNet(find_wordnet(config.wordnet)), config.senses, set(forest.roots))
        result = run(forest, wordnet, out, 1)
        for verb, name, gloss in wordnet.chosen():
            say(f"  {verb}: {name}, {gloss}")
        return result
    prices = Prices(config.price_input, config.price_output)
    budget = Budget(prices, config.budget_tokens, config.budget_cost)
    say("estimate: " + estimate(forest, config, prices))
    if config.dry_run:
        return None
    cache = AnswerCache(Path(config.cache).expanduser() if config.cache else default_cache())
    client = ChatClient(server_settings(config), cache, budget, config.requests_per_minute)
    source = ModelSource(client, config.domain or "", config.asks)
    try:
        return run(forest, source, out, config.concurrency)
    finally:
        client.stop.set()
        say(
            f"{client.asked} questions answered by the server in {client.attempts} requests, {client.from_cache} from "
            f"{cache.folder}; spent: {prices.describe(budget.tokens_in, budget.tokens_out)}"
        )


def run(forest: Forest, source: ModelSource | WordNetSource, out: Path, concurrency: int) -> BuildResult:
    """Grow the forest under a progress bar, save it after every finished tree, and write the report."""
    refuse_hand_edits(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    saved: set[str] = set()
    with tqdm(total=question_count(forest), desc="nodes", disable=None) as bar:

        def node_done(path: tuple[str, ...]) -> None:
            """One node more; a tree that is now complete is saved at once."""
            bar.update()
            if path[0] not in saved and forest.complete(path[0]):
                saved.add(path[0])
                save(forest, source.meta(), out)

        try:
            grow(forest, source, concurrency, node_done)
        finally:
            missing = save(forest, source.meta(), out)
    return BuildResult(partial_path(out) if missing else out, missing)


def save(forest: Forest, meta: dict[str, Any], out: Path) -> dict[str, str]:
    """Write the trees there are: to `out` when none is missing, else to the partial file. Returns what is missing."""
    missing = forest.missing()
    whole = {root: forest.nested((root,)) for root in forest.roots if forest.complete(root)}
    meta = {
        **meta,
        "tool": f"ace-dist {__version__}",
        "sizes": list(forest.sizes),
        "sizes_include_parent": True,
        "asked_as": {root: str(action) for root, action in forest.roots.items()},
        "repaired_lines": sum(len(report.repairs) for report in forest.reports),
        "rejected_lines": sum(len(report.rejected) for report in forest.reports),
        "hand_edits": [],
    }
    reports = [
        {"node": " > ".join(r.path), "answers": r.answers, "repairs": r.repairs, "rejected": r.rejected}
        for r in sorted(forest.reports, key=lambda report: report.path)
        if r.answers > 1 or r.repairs or r.rejected
    ]
    if missing:
        unfinished = {root: forest.nested((root,)) for root in forest.roots if root not in whole}
        write_json(partial_path(out), {"_meta": meta | {"missing": missing, "unfinished": unfinished}, **whole})
    else:
        SynonymTrees(whole, meta, str(out)).save(out)
        partial_path(out).unlink(missing_ok=True)
    if reports:
        lines = [json.dumps(report, ensure_ascii=False) for report in reports]
        write_text(out.with_name(out.name + ".report.jsonl"), "\n".join(lines) + "\n")
    return missing


def partial_path(out: Path) -> Path:
    """Where an unfinished build of `out` keeps its trees."""
    return out.with_name(out.stem + ".partial.json")


def question_count(forest: Forest) -> int:
    """Different questions: a copy of its parent, and what lies below it, was asked for one order higher."""
    per_tree, asked = 0, 1
    for size in forest.sizes:
        per_tree += asked
        asked *= size - 1
    return per_tree * len(forest.roots)


def estimate(forest: Forest, config: BuildConfig, prices: Prices) -> str:
    """Questions, tokens and cost of the whole build, if every answer is good and none is cached."""
    questions = question_count(forest)
    asked = max(forest.sizes)
    prompts = [question(str(action), asked, config.domain or "") for action in forest.roots.values()]
    line = max(len(str(action)) for action in forest.roots.values()) + 1
    tokens_in = questions * max(map(estimated_tokens, prompts))
    tokens_out = questions * -(-asked * line // 4)
    return (
        f"{len(forest.roots)} verbs, at most {questions} questions, about {prices.describe(tokens_in, tokens_out)} "
        f"(before what the cache holds; {config.asks} answers a node at most)"
    )


def server_settings(config: BuildConfig) -> ServerSettings:
    """The part of the settings that concerns the server."""
    return ServerSettings(
        model=config.model or "",
        base_url=config.base_url or os.environ.get("OPENAI_BASE_URL") or None,
        api_key_env=config.api_key_env,
        temperature=config.temperature,
        seed=config.seed,
        max_output_tokens=config.max_output_tokens,
        output_limit_name=config.output_limit_name,
        timeout_s=config.timeout_s,
        attempts=config.attempts,
        backoff_s=config.backoff_s,
    )


def refuse_hand_edits(out: Path) -> None:
    """Never overwrite a person's work."""
    if out.is_file() and SynonymTrees.load(out).meta.get("hand_edits"):
        raise BuildError(f"output={out} was edited by hand; choose another name, or move it away")


def check(config: BuildConfig) -> None:
    """What types cannot say about the settings."""
    if config.actions is None or not config.output:
        raise BuildError("give actions=FILE (or a list) and output=FILE.json")
    if config.source not in ("model", "wordnet"):
        raise BuildError(f"source={config.source} is not one of model, wordnet")
    if config.orders < 2 or min(config.sizes()) < 1:
        raise BuildError(
            f"orders={config.orders}, children={config.children}, grandchildren={config.grandchildren}: "
            f"at least two orders, each M at least 1"
        )
    if config.source == "model" and not (config.model and config.domain):
        raise BuildError(
            'source=model needs model=NAME and domain="..." (what the actions belong to, such as "toy assembly"); '
            "without a model use source=wordnet"
        )
    if config.output_limit_name not in ("max_tokens", "max_completion_tokens"):
        raise BuildError(f"output_limit_name={config.output_limit_name} is not max_tokens or max_completion_tokens")
    positive = {
        name: getattr(config, name)
        for name in ("max_output_tokens", "timeout_s", "attempts", "asks", "concurrency", "requests_per_minute")
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise BuildError(f"{name}={value} must be greater than zero")
