"""What a run, an export, a report or a log writes holds no secret, and ordinary text is not damaged."""

import base64
import json
import re
import secrets
import string
from pathlib import Path

import pytest

from ace_dist.cli import entry
from ace_dist.config import load_config, to_yaml
from ace_dist.train import run_folder
from ace_dist.utils.errors import UserError
from ace_dist.utils.secrets import redact, redacted

UPPER, BOTH = string.ascii_uppercase + string.digits, string.ascii_letters + string.digits
PHRASE = "correct horse battery staple"


def drawn(letters, length):
    return "".join(secrets.choice(letters) for _ in range(length))


def well_known():
    """Name -> secret of a shape that vendors use; drawn anew."""
    jwt = ".".join(
        base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "sub": drawn(BOTH, 12)}).encode()).decode().rstrip("=")
        for _ in range(3)
    )
    return {
        "AWS": f"AKIA{drawn(UPPER, 16)}",
        "AWS for a session": f"ASIA{drawn(UPPER, 16)}",
        "Google": f"AIza{drawn(BOTH + '-_', 35)}",
        "Azure": drawn(BOTH, 86) + "==",
        "GitHub": f"ghp_{drawn(BOTH, 36)}",
        "GitHub, fine-grained": f"github_pat_{drawn(BOTH, 60)}",
        "GitLab": f"glpat-{drawn(BOTH, 20)}",
        "Hugging Face": f"hf_{drawn(BOTH, 34)}",
        "OpenAI": f"sk-proj-{drawn(BOTH, 40)}",
        "Slack": f"xoxb-{drawn(string.digits, 12)}-{drawn(BOTH, 24)}",
        "Stripe": f"sk_live_{drawn(BOTH, 24)}",
        "SendGrid": f"SG.{drawn(BOTH, 22)}.{drawn(BOTH, 43)}",
        "npm": f"npm_{drawn(BOTH, 36)}",
        "JWT": jwt,
        "key file": "-----BEGIN OPENSSH PRIVATE KEY-----\n" + drawn(BOTH, 60) + "\n-----END OPENSSH PRIVATE KEY-----",
    }


@pytest.mark.parametrize("name", well_known())
@pytest.mark.parametrize("form", ["said {} there", "url: https://h/?x={}&y=1", '["{}"]', "AccountKey={};x=1"])
def test_a_well_known_shape_is_hidden_under_any_name(name, form):
    if name == "Azure" and "AccountKey" not in form:
        pytest.skip("a bare base64 word has no shape of its own")
    secret = well_known()[name]
    shown = redact(form.format(secret))
    assert secret not in shown and shown == form.format("<hidden>")


@pytest.mark.parametrize("name", [
    "DBPASS", "DB_PASSWORD", "GITHUB_PAT", "DATABASE_URL", "REDIS_URL", "SENTRY_DSN", "passphrase", "ssh_key", "apiKey",
    "AWS_SECRET_ACCESS_KEY", "AccountKey", "SharedAccessKey", "Authorization", "Proxy-Authorization", "db.credentials",
    "PGPASSWORD", "smtp_pass", "connection_string", "session_cookie", "auth_token",
])  # fmt: skip
@pytest.mark.parametrize(("form", "rest"), [
    ("{}={}", ""), ("{}: {}\nseed: 1", "\nseed: 1"), ('"{}": "{}", "seed": 1', '", "seed": 1'), ("--{} '{}'", "'"),
    ("x {}={} seed=1", " seed=1"), ("+ {}: {}", ""),
])  # fmt: skip
@pytest.mark.parametrize("secret", ["hunter2", PHRASE, "Basic dXNlcjpwYXNz", "12345678"])
def test_whole_values_beside_names_of_secrets_are_hidden(name, form, rest, secret):
    """Sentences, numbers and schemes too; what follows stays."""
    shown = redact(form.format(name, secret))
    assert shown.startswith(form.format(name, "<hidden>").removesuffix(rest)) and shown.endswith(f"<hidden>{rest}")


@pytest.mark.parametrize("text", [
    "Authorization: Basic dXNlcjpwYXNz", "sent with Basic dXNlcjpwYXNz", "Bearer 0123456789abcdefghij",
    "curl -H 'Authorization: Bearer abc'", "postgres://me:dXNlcjpwYXNz@host/db", "redis://:dXNlcjpwYXNz@host",
    "https://0123456789abcdefghij@sentry.io/1",
])  # fmt: skip
def test_headers_and_addresses(text):
    shown = redact(text)
    assert not re.search(r"dXNlcjpwYXNz|0123456789abcdefghij|abc", shown) and "<hidden>" in shown


@pytest.mark.parametrize("text", [
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", f"sha256: {'9f86d081' * 8}", "key: turn key",
    "pass: cup to hand", "token: <|startoftext|>", "max_tokens: 512", "first_pass: true", "pat dog",
    "labels=[turn key, pass cup]", "Basic procedures of assembly", "the bearer of news", "keys=3", "loader.threads=4",
    "tokenizer: clip", "ace_dist/assets/weights/tabletop/video.safetensors", "version 12.8.1+cu130",
    "https://example.org:8080/a@b", "model.video.weights=/data/key/timesformer_b16.safetensors",
    "desk-assembly-of-side-panels-2024", "S1_Cheese_C1.0042",
    "error: unknown setting 'key'; did you mean 'keys'?", "secret=null", "password: ~", "author: A. Nonymous",
])  # fmt: skip
def test_ordinary_text_stays(text):
    assert redact(text) == text


def test_our_own_settings_stay():
    """Every experiment's whole configuration passes through unchanged, as YAML and as words of a command line."""
    for experiment in ("demo", "ata_ace", "gtea_ace", "ikea_ace"):
        text = to_yaml(load_config([f"experiment={experiment}", "dataset.name=plain"]))
        assert "<hidden>" not in text and redact(text) == text


def test_code_stays_code_but_for_literals():
    """A patch in which names are assigned can still be applied; a literal beside such a name is hidden."""
    code = Path(entry.__file__).parents[1].joinpath("utils/secrets.py").read_text()
    assert redact(code, code=True) == code
    for line in ("token = tokenizer(text)", "key=lambda item: item.name", "password: str | None = None",
                 "secret = load_secret(path)", "rows.sort(key=operator.attrgetter('step'))"):  # fmt: skip
        assert redact(line, code=True) == line
    for line in (f'api_key = "{PHRASE}"', f"x['password'] = '{PHRASE}'", f'db_password: str = "{PHRASE}"'):
        assert PHRASE not in redact(line, code=True) and redact(line, code=True)[:7] == line[:7]


def test_structures_keep_their_form():
    """YAML and JSON stay readable: values are hidden and never a bracket or a quote."""
    secret = f"{PHRASE}\nwith 'quotes', \"others\" and {{brackets}}"
    facts = {"monitor": {"passphrase": secret, "token": "spin", "max_tokens": 512, "api_keys": [secret, secret]}}
    facts |= {"words": [f"curl https://me:{'x' * 9}@host", "key: turn key"], "password": 12345678, "secret": None}
    assert json.loads(json.dumps(redacted(facts))) == {
        "monitor": {"passphrase": "<hidden>", "token": "spin", "max_tokens": 512, "api_keys": ["<hidden>"] * 2},
        "words": ["curl https://<hidden>@host", "key: turn key"], "password": "<hidden>", "secret": None,
    }  # fmt: skip


def test_a_configuration_file_holds_no_passphrase():
    """One that YAML would wrap over several lines too."""
    config = load_config(["experiment=demo"])
    config.deepspeed = {"monitor": {"passphrase": f"{PHRASE} " * 9, "team": "x"}}
    text = to_yaml(config)
    assert "horse" not in text and "passphrase: <hidden>" in text and "team: x" in text


def test_a_patch_of_the_code_holds_no_secret(monkeypatch):
    """Settings in YAML files are hidden whole, in programs their literals."""
    patch = (
        "diff --git a/configs/dataset/own.yaml b/configs/dataset/own.yaml\n+passphrase: correct horse\n+name: own\n"
        "diff --git a/ace_dist/x.py b/ace_dist/x.py\n+token = tokenizer(text)\n+api_key = 'correct horse'\n"
    )
    monkeypatch.setattr(run_folder, "git", lambda *words: patch)
    shown = run_folder.code_diff()
    assert "horse" not in shown and shown.count("<hidden>") == 2
    assert "+name: own\n" in shown and "+token = tokenizer(text)\n" in shown


def test_an_error_is_printed_without_secrets_and_control_characters(monkeypatch, capsys):
    """It ends in logs, and a terminal would obey the characters of somebody's file name."""

    def fail(argv):
        raise UserError("cannot read https://me:hunter2@host/x\x1b]0;title\x07\x1b[2J")

    monkeypatch.setattr(entry, "execute", fail)
    assert entry.main() == 2
    said = capsys.readouterr().err
    assert "hunter2" not in said and "\x1b" not in said and "https://<hidden>@host/x\\x1b]0;title\\x07" in said


def test_a_file_is_no_secret(monkeypatch, tmp_path):
    """Values that name a file or folder are shown: paths beside KEY and AUTH are in every shell."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    monkeypatch.setenv("MY_API_KEY", "tabletop-service-key")
    assert redact(f"{tmp_path}/x tabletop-service-key") == f"{tmp_path}/x <hidden>"
