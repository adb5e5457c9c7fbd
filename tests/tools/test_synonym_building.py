"""Building trees through the real `openai` client against a real HTTP server: good, slow, failing, lying, hostile."""

import gzip
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading

import pytest
from chat_server import VERBS, ChatServer, completion, obey, synonyms

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees
from ace_dist.concepts.trees import DIGEST
from ace_dist.config import assets_dir, load_config
from ace_dist.data.task import load_trees
from ace_dist.tools.study.collect import describe_words
from ace_dist.tools.synonyms import BuildConfig, build, export_sheet, import_sheet
from ace_dist.tools.synonyms.answers import parse_answer, question
from ace_dist.tools.synonyms.client import (
    Budget,
    BuildStopped,
    ChatClient,
    ClientConfig,
    NoAnswer,
    Pace,
    most_tokens,
)
from ace_dist.utils.errors import ConfigError, LabelError, RunError, UserError

KEY = "sk-sentinel-4f1d9c2b7e"
ACTIONS = ["spin block", "pick up item", "hammer pin"]
QUESTIONS = len(ACTIONS) * 3  # M = 3: a root and its two synonyms; copies of the root are not asked


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """A key whose every appearance outside the request header is a leak."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """The `openai` client waits half a second before its first retry; here a millisecond."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def config(tmp_path):
    """Settings of a small build; `config(server, key=value)`."""

    def make(server, **settings):
        values = {
            "actions": ACTIONS, "output": str(tmp_path / "trees.json"), "children": 3, "domain": "toy assembly",
            "model": "test-model", "base_url": server.url, "cache": str(tmp_path / "cache"),
            "timeout_s": 20.0,
        }  # fmt: skip
        return BuildConfig(**values | settings)

    return make


def no_key_in(folder, *texts):
    """The key occurs in no file below `folder`, in no file name and in no text."""
    for path in folder.rglob("*"):
        assert KEY not in path.name and (not path.is_file() or KEY.encode() not in path.read_bytes()), path
    assert not [text for text in texts if KEY in text]


def test_a_good_server(config, tmp_path):
    """Every node asked once, six constraints and the key sent, M as set; a rerun asks nothing, same bytes."""
    said = []
    with ChatServer() as server:
        result = build(config(server, price_input=1.0, price_output=10.0), said.append)
        first = result.path.read_bytes()
        assert len(server.requests) == QUESTIONS and set(server.asked().values()) == {1}
        again = build(config(server), said.append)
        assert len(server.requests) == QUESTIONS, "a rerun must cost nothing"
    assert again.path.read_bytes() == first and result.missing == {}
    trees = SynonymTrees.load(result.path)
    assert trees.roots == ("spin", "pick up", "hammer")
    assert all(len(children) == 3 for root in trees.roots for _, children in trees.nodes(root))
    assert trees.children("spin", "spin") == trees.children("spin")
    prompt, body, headers = server.requests[0]
    for rule in ("without numbering", "makes sense during toy assembly", "begins with a verb", "Keep the object",
                 "stands as a whole at the beginning", "is phrasal, prefer phrasal"):  # fmt: skip
        assert rule in prompt
    assert headers["authorization"] == f"Bearer {KEY}" and body["model"] == "test-model" and body["max_tokens"] == 1000
    assert trees.meta["model"] == "test-model" and trees.meta["served_model"] == ["served-model"]
    assert (trees.meta["tokens_input"], trees.meta["tokens_output"]) == (200 * QUESTIONS, 50 * QUESTIONS)
    assert len(trees.meta["prompt_sha256"]) == 64 and trees.meta["date"] and trees.meta["hand_edits"] == []
    cost = QUESTIONS * (200 * 1.0 + 50 * 10.0) / 1e6
    assert f"{cost:.4f} at the stated prices" in said[1], "the bill after the build"
    assert f"at most {QUESTIONS} questions" in said[0], "the estimate before it"
    no_key_in(tmp_path, *said)


PAPER_PROMPT = str(assets_dir() / "prompts" / "ace_paper.txt")
GTEA = ["take", "open", "pour", "close", "shake", "scoop", "stir", "put", "fold", "spread"]


def obey_the_papers_words(prompt, turn):
    """A model that answers the paper's question: as many lines as asked for, the object kept."""
    count, verb, rest = re.search(
        r"what are (\d+) synonyms of the action \((\S+) ([^)]+)\) during cooking\?", prompt
    ).groups()
    start = sum(map(ord, verb)) % len(VERBS)
    others = [other for other in VERBS[start:] + VERBS[:start] if other != verb]
    return 200, completion("\n".join(f"{other} {rest}" for other in others[: int(count)]))


def test_the_papers_prompt_gives_the_papers_condition(config, tmp_path):
    """GTEA, M = 9 in both orders, by the prompt that the paper prints: trees that `experiment=gtea_ace` trains on.

    A question names the whole action and asks for M; the second order asks the same of every synonym.
    """
    actions = [f"{verb} ingredient" for verb in GTEA]
    settings = {"actions": actions, "children": 9, "domain": "cooking", "model": "gpt-4", "prompt": PAPER_PROMPT}
    with ChatServer(obey_the_papers_words) as server:
        result = build(config(server, **settings, output=str(tmp_path / "llm_trees.json")))
        prompts = {prompt for prompt, _, _ in server.requests}
    assert result.missing == {} and all("(take ingredient)" in p for p in prompts if "take" in p.split("\n")[0])
    first = next(prompt for prompt in prompts if "(take ingredient)" in prompt)
    lines = first.split("\n")
    assert lines[0].startswith("what are 9 synonyms of the action (take ingredient) during cooking?")
    assert [line[:2] for line in lines[1:]] == [f"{number}-" for number in range(1, 7)] and "#" not in first
    run = load_config(["experiment=gtea_ace", f"dataset.synonyms={result.path}"])
    trees = load_trees(run)
    assert set(trees.roots) == set(GTEA)
    assert {len(children) for root in trees.roots for _, children in trees.nodes(root)} == {9}
    asked = {re.search(r"\((\w+) ingredient\)", prompt)[1] for prompt in prompts}
    assert asked >= {child for root in GTEA for child in trees.children(root)}
    assert describe_words(run) == "trees language model gpt-4 [llm_trees.json] (M = 9 and 9)"
    base = [action for action in map(Action.parse, actions) if str(action) not in run.dataset.novel]
    draw = ConceptSampler(base, trees, seed=0).draw(1)
    assert all(len(group) == 9 for group in (*draw.fixed, *draw.random, *draw.shadow))


def test_a_prompt_of_ones_own_must_have_its_places(config, tmp_path):
    (tmp_path / "short.txt").write_text("# {count} {action} {domain}\nsynonyms of {action}, please")
    with ChatServer() as server:
        for path, message in (
            ("short.txt", "has no {count}, {domain}"),
            ("none.txt", "does not exist; the paper's is"),
        ):
            with pytest.raises(ConfigError, match=message):
                build(config(server, prompt=str(tmp_path / path)))
        assert not server.requests


def flaky(*failures):
    """A server whose first answers to every prompt are `failures`, the next one is good."""
    return lambda prompt, turn: failures[turn] if turn < len(failures) else obey(prompt, turn)


RATE_LIMIT = (429, {"error": {"message": "slow down", "code": "rate_limit"}}, {"retry-after-ms": "1"})


@pytest.mark.parametrize(
    "failures",
    [
        [RATE_LIMIT, (500, {"error": {"message": "oops"}}), (503, b"<html>busy</html>")],
        [(200, None)],  # the connection drops
        [(200, b"{not json"), (200, b"[" * 100_000), (200, {"choices": []})],
        [(200, completion(["a", "list"])), (200, {"choices": [{"message": None}]}), (200, b"null")],
        [(200, b"x" * (5 << 20))],  # longer than any answer may be
    ],
    ids=["429-500-503", "dropped", "malformed", "wrong-types", "endless"],
)
def test_failures_are_tried_again(config, failures):
    """Whatever goes wrong once or thrice, the tree is complete in the end and each answer was needed."""
    with ChatServer(flaky(*failures)) as server:
        result = build(config(server, actions=ACTIONS[:1]), lambda _: None)
    assert result.missing == {} and set(server.asked().values()) == {len(failures) + 1}


def test_a_slow_server(config):
    """An answer that does not come in time is asked for again."""
    late = threading.Event()

    def slow_once(prompt, turn):
        if turn == 0:
            late.wait(30)
        return obey(prompt, turn)

    with ChatServer(slow_once) as server:
        result = build(config(server, actions=ACTIONS[:1], timeout_s=0.5, children=2), lambda _: None)
        late.set()
    assert result.missing == {} and set(server.asked().values()) == {2}


def test_a_server_that_never_ends_its_answer(config):
    """A byte now and then resets every read time-out; the time of the whole answer is bounded as well."""
    gone = threading.Event()

    def drip():
        try:
            while not gone.wait(0.02):
                yield b" "
        finally:
            gone.set()

    with ChatServer(
        lambda prompt, turn: (200, drip()) if turn == 0 and not gone.is_set() else obey(prompt, turn)
    ) as server:
        settings = config(server, actions=ACTIONS[:1], timeout_s=0.5, children=2, concurrency=1)
        result = build(settings, lambda _: None)
    assert result.missing == {} and gone.is_set(), "the client left first"


def dripping_server(head, gone):
    """A server that sends `head` and then a byte now and then until the client leaves, and sets `gone` when it has."""

    class Drip(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            try:
                self.request.sendall(head)
                while not gone.wait(0.02):
                    self.request.sendall(b"x")
            except OSError:
                gone.set()

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX-Header: ", b"HTTP/1.1 500 Bad\r\n\r\n", b"HTTP/1.1 307 Go\r\nLocation: /\r\n\r\n"],
    ids=["status line", "headers", "error body", "redirect body"],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_drips_anything_is_left_in_time(config, scheme, head):
    """Bytes that come before each read times out, also within a TLS handshake: `timeout_s` bounds the whole."""
    gone = threading.Event()
    with dripping_server(head, gone) as server:
        server.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/v1"
        client = ChatClient(config(server, timeout_s=0.5, attempts=1))
        with pytest.raises((NoAnswer, BuildStopped)):
            client.ask("Give 3 synonyms")
        assert gone.wait(10), "the connection is still open"
        server.shutdown()


def test_bodies_are_read_up_to_a_bound(config):
    """An error of any length keeps its status; a long, a compressed and an endless answer are no answer."""
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"x" * 65536

    def ask(*response):
        with ChatServer(lambda *_: response) as server:
            ChatClient(config(server, attempts=1)).ask("Give 3 synonyms")

    with pytest.raises(BuildStopped, match="status 401"):
        ask(401, endless())
    with pytest.raises(NoAnswer, match="longer than"):
        ask(200, endless())
    assert len(sent) < 4000, f"{len(sent) // 16} MB went through"
    with pytest.raises(NoAnswer, match="compressed"):
        ask(200, gzip.compress(bytes(2**20)), {"Content-Encoding": "gzip"})
    with pytest.raises(BuildStopped, match="check base_url"):
        ask(307, {}, {"Location": "http://127.0.0.1:1/"})


HUGE = "1" * 5000  # digits; Python reads no number of more than 4300


@pytest.mark.parametrize(
    "body",
    [
        f'{{"choices": [{{"message": {{"content": "rotate block"}}, "finish_reason": {HUGE}}}]}}',
        f'{{"choices": [{{"message": {{"content": {HUGE}}}}}]}}',
        f'{{"choices": [{{"message": {{"content": "rotate block"}}}}], "usage": {{"prompt_tokens": {HUGE}}}}}',
        "[" * 100_000,
        '{"choices": [{"message": {"content": [{"type": "text", "text": 5}]}}]}',
        '{"choices": {"0": 1}}',
    ],
    ids=["finish", "content", "usage", "depth", "part", "type"],
)
def test_numbers_and_depths_that_python_does_not_read(config, tmp_path, body):
    """A response with them is no answer: no traceback, and nothing of it in the cache."""
    for status in (200, 400):
        answer = status, body.encode()
        with ChatServer(lambda *_, answer=answer: answer) as server, pytest.raises((NoAnswer, BuildStopped)):
            ChatClient(config(server, attempts=1)).ask("Give 3 synonyms")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_number_of_5000_digits_in_the_text_is_no_phrase(config):
    """The answer is kept, and read from the cache as well as from the server."""
    with ChatServer(lambda *_: (200, completion(f"[{HUGE}]\n{HUGE}. rotate block\nturn block"))) as server:
        for _ in range(2):
            reply = ChatClient(config(server)).ask("Give 3 synonyms")
            assert parse_answer(reply.text, Action("spin", "block")).verbs[-1:] == ["turn"]
    assert len(server.requests) == 1


def test_an_answer_in_parts_is_its_text(config):
    """Some servers send a list of parts, the reasoning as a part of its own."""
    parts = [{"type": "thinking", "thinking": "whirl block"}, {"type": "text", "text": "rotate block"}]
    with ChatServer(lambda *_: (200, completion(parts))) as server:
        assert ChatClient(config(server)).ask("Give 3 synonyms").text == "rotate block"


def test_a_redirect_does_not_take_the_key_along(config):
    """A server that sends the client elsewhere: the other place sees no key."""
    with ChatServer() as thief:
        elsewhere = {"Location": f"{thief.url}/chat/completions"}
        with ChatServer(lambda *_: (307, {}, elsewhere)) as server:
            build(config(server, actions=ACTIONS[:1], attempts=1), lambda _: None)
    assert server.requests and not [r for r in thief.requests if KEY in str(r)]


def test_attempts_are_bounded_and_a_dead_server_ends_the_build(config):
    """Three nodes without any answer: the rest is not asked, and the reason is in the report."""
    with ChatServer(lambda *_: (500, {"error": {"message": "down"}})) as server:
        result = build(config(server, attempts=2, concurrency=1, actions=[*ACTIONS, "lift lid", "push lever"]))
    assert len(server.requests) == 3 * 2
    assert "status 500: " in result.missing["spin"] and "in a row" in result.missing["push"]


def test_one_bad_node_does_not_spoil_the_others(config, tmp_path):
    """A refusal is asked again with a bound, then reported for its node; whole trees are kept; a sheet completes it."""

    def refuse_hammer(prompt, turn):
        if '"hammer pin"' in prompt:
            message = {"role": "assistant", "content": None, "refusal": "I'm sorry, I can't."}
            return 200, completion("") | {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        return obey(prompt, turn)

    with ChatServer(refuse_hammer) as server:
        result = build(config(server, asks=2), lambda _: None)
        asked = len(server.requests)
        partial = SynonymTrees.load(result.path)
        build(config(server, asks=2), lambda _: None)
        assert len(server.requests) == asked, "the bad answers are cached as well"
        build(config(server, asks=3), lambda _: None)
        assert len(server.requests) == asked + 1, "raising `asks` asks once more"
    assert list(result.missing) == ["hammer"] and "0 of 2 synonyms after 2 answers" in result.missing["hammer"]
    assert result.path.name == "trees.partial.json" and not (tmp_path / "trees.json").exists()
    assert partial.roots == ("spin", "pick up") and partial.meta["missing"] == result.missing
    export_sheet(result.path, tmp_path / "sheet.csv")
    text = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")
    assert "hammer,hammer" in text, "the unfinished tree is a row to fill"
    rows = (
        text.replace("hammer,hammer,,", "hammer,hammer,pound,bash").rstrip()
        + "\nhammer,pound,beat,bash\nhammer,bash,hit,beat\n"
    )
    (tmp_path / "sheet.csv").write_text(rows)
    import_sheet(tmp_path / "sheet.csv", result.path, tmp_path / "trees.json", "ann")
    trees = SynonymTrees.load(tmp_path / "trees.json")
    assert trees.children("hammer") == ("hammer", "pound", "bash") and "missing" not in trees.meta
    with pytest.raises(ConfigError, match="edited by hand"), ChatServer() as server:
        build(config(server), lambda _: None)


def test_missing_synonyms_are_asked_for(config):
    """A short answer leads to a second question that names what is known; both answers count."""

    def stingy(prompt, turn):
        return 200, completion("\n".join(synonyms(prompt)[:1]))

    with ChatServer(stingy) as server:
        result = build(config(server, actions=ACTIONS[:1]), lambda _: None)
    assert result.missing == {}
    follow_up = [prompt for prompt, _, _ in server.requests if "known already" in prompt]
    assert len(follow_up) == 3 and all("give 2 others" in prompt for prompt in follow_up)


def test_a_lying_server(config, tmp_path):
    """Absurd token counts are not believed, another model's name is recorded, a cut answer loses its last line."""

    def lying(prompt, turn):
        text = "\n".join(["1. " + line.upper() for line in synonyms(prompt)] + ["rotate blo"])
        reply = completion(text, tokens_in=-5, tokens_out=10**15, model="another-model\u0000" + "x" * 500)
        reply["choices"][0]["finish_reason"] = "length"
        return 200, reply

    with ChatServer(lying) as server:
        result = build(config(server, actions=ACTIONS[:1]), lambda _: None)
    meta = SynonymTrees.load(result.path).meta
    assert 0 < meta["tokens_output"] < 1000 and 0 < meta["tokens_input"] < 10_000
    assert len(meta["served_model"][0]) <= 80 and meta["repaired_lines"] > 0 and meta["rejected_lines"] >= 3
    report = [json.loads(line) for line in (tmp_path / "trees.json.report.jsonl").read_text().splitlines()]
    assert report[0]["node"] == "spin" and any("cut off" in line for line in report[0]["rejected"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_a_server_that_refuses_ends_the_build_and_its_message_is_scrubbed(config, tmp_path, capfd, status):
    """Wrong key, model or quota: one request, no retry, the setting named, and the key cut out of the server's text."""
    error = {"message": f"Incorrect API key provided: {KEY} {'y' * 5000}", "code": "insufficient_quota"}
    with ChatServer(lambda *_: (status, {"error": error})) as server:
        result = build(config(server, concurrency=1))
    assert len(server.requests) == 1
    reason = result.missing["spin"]
    assert f"status {status}" in reason and "[key]" in reason and "(check " in reason and len(reason) < 600
    no_key_in(tmp_path, *result.missing.values(), *capfd.readouterr())


def test_a_hostile_answer_cannot_take_the_key_into_files(config, tmp_path):
    """A server that repeats the header it was sent, in every field, between good lines."""

    def echo(prompt, turn):
        text = f"{KEY}\n" + "\n".join(synonyms(prompt)) + f"\nBearer {KEY} block\n" + "../../etc/passwd block\n" * 3000
        return 200, completion(text, model=f"model-{KEY}") | {"id": KEY}

    with ChatServer(echo) as server:
        result = build(config(server), lambda _: None)
    assert result.missing == {}
    no_key_in(tmp_path, str(result))
    verbs = SynonymTrees.load(result.path).verbs()
    assert all(re.fullmatch(r"[a-z ]+", verb) for verb in verbs)


def test_the_budget_is_hard(config, tmp_path):
    """Eight threads: what the server bills never passes the budget; a later build continues and asks nothing twice."""
    tokens_out = 100

    def honest(prompt, turn):
        return 200, completion("\n".join(synonyms(prompt)), len(prompt.encode()), tokens_out)

    with ChatServer(honest) as server:
        settings = {"concurrency": 8, "max_output_tokens": tokens_out, "children": 4}
        result = build(config(server, **settings, budget_tokens=6000), lambda _: None)
        billed = sum(len(prompt.encode()) + tokens_out for prompt, _, _ in server.requests)
        assert 6000 - 2 * 1000 < billed <= 6000 and any("budget_tokens=6000" in why for why in result.missing.values())
        result = build(config(server, **settings), lambda _: None)
    assert result.missing == {} and set(server.asked().values()) == {1} and len(server.requests) == 12


def test_a_budget_in_money_needs_prices(config):
    """Unknown prices: tokens only."""
    with ChatServer() as server:
        with pytest.raises(UserError, match=r"price_input and price_output"):
            build(config(server, budget_cost=1.0), lambda _: None)
        cheap = config(server, budget_cost=0.003, price_input=1.0, price_output=1.0, concurrency=1)
        result = build(cheap, lambda _: None)
    assert 0 < len(server.requests) < QUESTIONS and any("budget_cost=0.003" in why for why in result.missing.values())


def test_a_reservation_waits_for_answers_that_may_free_some():
    """The second question fits only after the first turned out cheap; a third one that never fits is refused."""
    budget = Budget(ClientConfig(budget_tokens=100))
    first = budget.reserve(40, 40)
    waiting = threading.Thread(target=lambda: budget.settle(budget.reserve(30, 30), 30, 30))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and budget.tokens_in == 0
    budget.settle(first, 20, 10)
    waiting.join(20)
    assert (budget.tokens_in, budget.tokens_out) == (50, 40)
    with pytest.raises(BuildStopped, match="90 spent, the next question may need 11"):
        budget.reserve(10, 1)


@pytest.mark.parametrize(
    ("behaviour", "billed"),
    [((200, None), 2), ((504, {}), 2), ((503, {}), 0)],
    ids=["dropped", "gateway timeout", "refused"],
)
def test_requests_without_an_answer_count_against_the_budget(tmp_path, behaviour, billed):
    """Dropped, or given up by a gateway: maybe billed, each attempt costs its worst case. A refusal costs nothing."""
    prompt = question("spin block", 3, "x")
    with ChatServer(lambda *_: behaviour) as server:
        config = ClientConfig("m", server.url, attempts=2, max_output_tokens=70, cache=str(tmp_path))
        client = ChatClient(config)
        with pytest.raises(NoAnswer, match="no answer in at most 2 attempts"):
            client.ask(prompt)
        assert len(server.requests) == 2
    assert (client.budget.tokens_in, client.budget.tokens_out) == (billed * most_tokens(prompt), billed * 70)
    client = ChatClient(config)
    with pytest.raises(NoAnswer, match="ConnectError"):  # the server is gone: nothing was sent
        client.ask(prompt)
    assert (client.budget.tokens_in, client.budget.tokens_out) == (0, 0)


def test_a_dry_run_asks_nothing(config, monkeypatch):
    """It needs no key and writes no file."""
    monkeypatch.delenv("OPENAI_API_KEY")
    said = []
    with ChatServer() as server:
        settings = config(server, dry_run=True, price_input=2.0, price_output=8.0)
        assert build(settings, said.append) is None
    assert not server.requests and "9 questions" in said[0] and "at the stated prices" in said[0]
    assert not os.path.exists(settings.output) and not os.path.exists(settings.cache)


def test_killed_half_way_and_continued(tmp_path, launch):
    """kill -9 while the fifth question is on its way: the next run repeats that one and no other."""
    arrived, release = threading.Event(), threading.Event()

    def stuck_at_five(prompt, turn):
        if len(server.requests) == 5 and not release.is_set():
            arrived.set()
            release.wait(60)
        return obey(prompt, turn)

    with ChatServer(stuck_at_five) as server:
        settings = [
            f"actions=[{', '.join(ACTIONS)}]", f"output={tmp_path / 'trees.json'}", "children=3", "domain=toy assembly",
            "model=m", f"base_url={server.url}", f"cache={tmp_path / 'cache'}", "concurrency=1",
        ]  # fmt: skip
        script = os.path.join(os.path.dirname(__file__), "..", "..", "launchers", "build_synonyms.py")
        child = subprocess.Popen([sys.executable, script, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert arrived.wait(60), child.communicate()[1].decode()
        child.send_signal(signal.SIGKILL)
        child.communicate()
        release.set()
        partial = SynonymTrees.load(tmp_path / "trees.partial.json")
        assert partial.roots == ("spin",), "the tree that was whole is on disk"
        done = launch("build_synonyms", *settings)
        twice = [prompt for prompt, count in server.asked().items() if count > 1]
        assert twice == [server.requests[4][0]] and len(server.requests) == QUESTIONS + 1
    assert len(SynonymTrees.load(tmp_path / "trees.json").roots) == 3 and "3 trees" in done.stdout
    assert not (tmp_path / "trees.partial.json").exists()
    no_key_in(tmp_path, done.stdout, done.stderr)


def test_the_launcher_reports_and_exits(tmp_path, launch):
    """Status 3 with the missing nodes; status 2 in one line, without a value, when a key is given as a setting."""
    with ChatServer(lambda *_: (401, {"error": {"message": f"bad key {KEY}"}})) as server:
        settings = [
            "actions=[spin block]",
            f"output={tmp_path / 't.json'}",
            "domain=x",
            "model=m",
            f"base_url={server.url}",
        ]
        refused = launch("build_synonyms", *settings, f"cache={tmp_path / 'c'}", check=False)
        wrong = launch("build_synonyms", *settings, f"api_key_env={KEY}", check=False)
    assert refused.returncode == 3 and "missing: spin: the server refuses" in refused.stderr
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith("error: api_key_env must be the name")
    no_key_in(tmp_path, refused.stdout, refused.stderr, wrong.stdout, wrong.stderr)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "source=model needs model"),
        ({"domain": None}, "domain="),
        ({"actions": None}, "give actions=FILE"),
        ({"orders": 1}, "at least two orders"),
        ({"children": 0}, "each M at least 1"),
        ({"source": "gpt"}, "not one of model, wordnet"),
        ({"asks": 0}, "asks=0"),
        ({"base_url": "http://user:pass@host/v1"}, "must not hold a user name"),
        ({"base_url": "ftp://host"}, "must look like http"),
        ({"actions": "nowhere.csv"}, "does not exist"),
        ({"actions": ["spin"]}, "has no object"),
    ],
)
def test_settings_that_cannot_work(config, settings, message):
    """Each error names the setting."""
    with ChatServer() as server, pytest.raises(UserError, match=message):
        build(config(server, **settings), lambda _: None)
    assert not server.requests


def test_the_key_comes_from_the_environment_only(config, monkeypatch, tmp_path):
    """Another variable can be named; a local server needs none; OpenAI's does; a broken one is not shown."""
    monkeypatch.setenv("OTHER_KEY", "other-" + KEY)
    with ChatServer() as server:
        build(config(server, api_key_env="OTHER_KEY", actions=ACTIONS[:1]), lambda _: None)
        assert server.requests[-1][2]["authorization"] == f"Bearer other-{KEY}"
        build(config(server, api_key_env="NOT_SET", model="b", actions=ACTIONS[:1]), lambda _: None)
        assert KEY not in server.requests[-1][2]["authorization"]
    for value in (None, "sk-\u2028-schlüssel"):
        monkeypatch.setenv("BROKEN", value) if value else monkeypatch.delenv("BROKEN", raising=False)
        with pytest.raises(ConfigError, match="BROKEN") as caught:
            ChatClient(ClientConfig("m", api_key_env="BROKEN", cache=str(tmp_path)))
        assert "schlüssel" not in str(caught.value)


def test_a_damaged_cache_is_named(tmp_path):
    """Asking again would cost again: the user decides."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        ChatClient(ClientConfig("m", "http://localhost", cache=str(tmp_path / "file" / "cache")))
    with ChatServer() as server:
        client = ChatClient(ClientConfig("m", server.url, cache=str(tmp_path / "c")))
        client.ask(question("spin block", 3, "x"))
        [path] = (tmp_path / "c").rglob("*.json")
        path.write_text(path.read_text()[:50])
        with pytest.raises(RunError, match=re.escape(str(path))):
            client.ask(question("spin block", 3, "x"))


def test_requests_are_spaced():
    """Thirty a minute are two seconds apart from each other, whichever thread asks."""
    now = [100.0]
    pace = Pace(30, clock=lambda: now[0])
    assert [pace.slot_s() for _ in range(3)] == [0.0, 2.0, 4.0]
    now[0] += 20
    assert pace.slot_s() == 0.0


def test_no_prompt_has_more_tokens_than_its_bound():
    """CLIP's byte-pair vocabulary as an independent count; the bound is what the budget reserves."""
    from ace_dist.models.tokenizer import load_bpe

    tokenizer = load_bpe()
    for prompt in (question("spin block", 11, "toy assembly"), question("dreh Würfel 方块", 3, "Häuser 🏠")):
        assert len(tokenizer.encode(prompt)) <= most_tokens(prompt)


def test_more_orders_than_two(config):
    """A third order is built, saved, loaded; the sampler's two orders are its first two."""
    with ChatServer() as server:
        result = build(config(server, orders=3, children=3, grandchildren=2, actions=ACTIONS[:1]), lambda _: None)
    trees = SynonymTrees.load(result.path)
    assert trees.orders == 3 and len(trees.children("spin")) == 3
    child = trees.children("spin")[1]
    grandchild = trees.children("spin", child)[1]
    assert len(trees.children("spin", child, grandchild)) == 2
    assert SynonymTrees.load(result.path, size=2).children("spin") == trees.children("spin")[:2]


def test_the_sheet_round_trip(config, tmp_path):
    """Export, edit, import: differences are shown and kept; casing and separators of spreadsheets are understood."""
    with ChatServer() as server:
        path = build(config(server), lambda _: None).path
    before = SynonymTrees.load(path)
    sheet, out = tmp_path / "sheet.csv", tmp_path / "edited.json"
    assert export_sheet(path, sheet) == 9
    assert import_sheet(sheet, path, out, None) == [] and SynonymTrees.load(out).meta["hand_edits"] == []
    gone, kept = before.children("spin", "spin")[1:]
    edited = sheet.read_text(encoding="utf-8-sig").replace(f"spin,spin,{gone}", "spin,spin, Whirl  Around ")
    sheet.write_text(edited.replace(",", ";"), encoding="utf-8-sig")
    changes = import_sheet(sheet, path, out, "ann")
    assert changes == [f"spin > spin: + whirl around - {gone}"]
    after = SynonymTrees.load(out)
    assert after.children("spin", "spin") == ("spin", "whirl around", kept)
    [edit] = after.meta["hand_edits"]
    assert edit["editor"] == "ann" and edit["differences"] == changes and after.meta["model"] == "test-model"
    with pytest.raises(LabelError, match="exists already"):
        export_sheet(path, sheet)


def wordnet_build(output, *actions, children=3):
    config = BuildConfig(actions=list(actions), output=str(output), source="wordnet", children=children)
    return build(config, say=lambda line: None)


def edit_text(path, change):
    """What a person does in a text editor, layout included."""
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw, indent=4))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["spin"]["spin"].reverse(),  # M cuts by the order
        lambda raw: raw.update(_words={"spin": {"swivel": ["swivel", "pivot"]}}),
        lambda raw: raw.pop("lift"),
    ],
)
def test_a_tree_file_that_a_person_edited_is_not_overwritten(tmp_path, change):
    """In a text editor, which writes no `hand_edits`; a file as it was built is replaced."""
    path = tmp_path / "trees.json"
    wordnet_build(path, "spin block", "lift lid", children=2)
    first = wordnet_build(path, "spin block", "lift lid").path.read_bytes()
    edit_text(path, lambda raw: None)  # another layout is no edit
    assert wordnet_build(path, "spin block", "lift lid").path.read_bytes() == first
    edit_text(path, change)
    edited = path.read_bytes()
    with pytest.raises(ConfigError, match=r"trees\.json was edited by hand; choose another name"):
        wordnet_build(path, "spin block", "lift lid")
    export_sheet(path, tmp_path / "sheet.csv")
    import_sheet(tmp_path / "sheet.csv", path, tmp_path / "same.json", None)
    for other in (path, tmp_path / "same.json"):
        with pytest.raises(ConfigError, match="was edited by hand"):
            wordnet_build(other, "spin block", "lift lid")
    assert path.read_bytes() == edited


def test_a_file_of_before_is_replaced_by_the_same_trees_only(tmp_path):
    """Earlier versions did not sign their files."""
    path = wordnet_build(tmp_path / "trees.json", "spin block").path
    edit_text(path, lambda raw: raw["_meta"].pop(DIGEST))
    wordnet_build(path, "spin block", "lift lid")
    edit_text(path, lambda raw: (raw["_meta"].pop(DIGEST), raw["lift"]["lift"].reverse()))
    with pytest.raises(ConfigError, match=r"holds another tree of 'lift', which a person may have edited"):
        wordnet_build(path, "spin block", "lift lid")


def test_an_import_overwrites_no_other_edits(tmp_path, trees):
    """The same sheet, edited further, may be imported again."""
    trees.save(tmp_path / "trees.json")
    for name in ("a", "b"):
        export_sheet(tmp_path / "trees.json", tmp_path / f"{name}.csv")
        text = (tmp_path / f"{name}.csv").read_text(encoding="utf-8-sig")
        (tmp_path / f"{name}.csv").write_text(text.rstrip() + f"{name}\n")
    out = tmp_path / "out.json"
    import_sheet(tmp_path / "a.csv", tmp_path / "trees.json", out, "ann")
    import_sheet(tmp_path / "a.csv", tmp_path / "trees.json", out, "ann")
    before = out.read_bytes()
    with pytest.raises(LabelError, match=r"out\.json was edited by hand, and not by .*b\.csv; choose another name"):
        import_sheet(tmp_path / "b.csv", tmp_path / "trees.json", out, "ben")
    assert out.read_bytes() == before
    edit_text(out, lambda raw: raw["spin"]["spin"].reverse())
    with pytest.raises(LabelError, match="was edited by hand"):
        import_sheet(tmp_path / "a.csv", tmp_path / "trees.json", out, "ann")


def test_words_beside_the_trees_survive_a_sheet(tmp_path):
    """A sheet has no rows for them; a verb that it gives a node in the tree, or whose tree it drops, leaves them."""
    node = {"spin": ["spin", "turn"], "turn": ["turn", "spin"]}
    words = {"Spin": {"Reel_in": ["reel in", "whirl"], "swivel": ["swivel", "pivot"]}, "lift": {"hoist": ["hoist"]}}
    lift = {"lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]}}
    (tmp_path / "trees.json").write_text(json.dumps({"spin": node, **lift, "_words": words}))
    export_sheet(tmp_path / "trees.json", tmp_path / "sheet.csv")
    out = tmp_path / "out.json"
    assert import_sheet(tmp_path / "sheet.csv", tmp_path / "trees.json", out, None) == []
    assert SynonymTrees.load(out).words == SynonymTrees.load(tmp_path / "trees.json").words
    rows = [row for row in (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig").splitlines() if "lift" not in row]
    (tmp_path / "sheet.csv").write_text("\n".join([*rows, "spin,swivel,gyrate"]))
    changes = import_sheet(tmp_path / "sheet.csv", tmp_path / "trees.json", out, None)
    assert changes[-2:] == [
        "_words > spin > swivel: removed, it has a node in the tree", "_words > lift > hoist: removed, as its tree is",
    ]  # fmt: skip
    assert SynonymTrees.load(out).words == {"spin": {"reel in": ("reel in", "whirl")}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header must read"),
        ("verb,child,synonym 1\n", "holds no row"),
        ("verb,child,synonym 1\nspin,,turn\n", "line 2.*empty"),
        ("verb,child,synonym 1\nspin,spin,turn\nspin,spin,roll\n", "line 3.*twice"),
        ("verb,child,synonym 1\nspin,turn,roll\n", "not among its own children"),
        ("verb,child,synonym 1,synonym 2\nspin,spin,turn,turn\n", "more than once"),
    ],
)
def test_broken_sheets(tmp_path, trees, text, message):
    """The line or node is named and nothing is written."""
    trees.save(tmp_path / "trees.json")
    (tmp_path / "sheet.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        import_sheet(tmp_path / "sheet.csv", tmp_path / "trees.json", tmp_path / "out.json", None)
    assert not (tmp_path / "out.json").exists()
