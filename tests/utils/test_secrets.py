"""Keys, tokens and passwords never reach what a run writes; ordinary settings do."""

import dataclasses
import json
import random
import string

import pytest

from ace_dist.config import load_config
from ace_dist.train.run_folder import RunLock, claim, write_start
from ace_dist.utils.secrets import STRONG_NAMES, WEAK_NAMES, redact


def word(length=24):
    """A random secret."""
    return "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=length))


@pytest.mark.parametrize("name", [
    "OPENAI_API_KEY", "api_key", "apiKey", "HF_TOKEN", "token", "AWS_SECRET_ACCESS_KEY", "db_password", "PASSWD",
    "client_secret", "llm.api_key", "credentials",
])  # fmt: skip
@pytest.mark.parametrize("form", ["{0}={1}", "{0}: {1}", '"{0}": "{1}"', "--{0}={1}", "a=1 {0}='{1}' b=2"])
def test_the_value_beside_a_secret_name_is_hidden(name, form):
    """Environment, YAML, JSON and command lines; the name stays, so that one sees what was hidden."""
    secret = word()
    shown = redact(form.format(name, secret))
    assert secret not in shown and name in shown and "<hidden>" in shown


@pytest.mark.parametrize("text", [
    "max_tokens: 512", "keyboard: qwerty", "monkey=lift", "training.lr_video=0.02", "hockey: spin", "token: null",
    "tokenizer: clip", "keys=3", "ace_dist/assets/weights/tabletop", "actions=[spin block]",
])  # fmt: skip
def test_ordinary_settings_stay(text):
    """A number beside `tokens`, and words that only contain a secret's name."""
    assert redact(text) == text


def test_secrets_of_the_environment_are_hidden_wherever_they_stand(monkeypatch):
    """Also in the middle of an address, where no name announces them."""
    secret = word()
    monkeypatch.setenv("SERVICE_TOKEN", secret)
    monkeypatch.setenv("SHORT_KEY", "spin")
    assert redact(f"https://host/{secret}/x spin block") == "https://host/<hidden>/x spin block"


def test_well_known_tokens_and_passwords_in_addresses_are_hidden():
    """Their shape gives them away."""
    for secret in (
        f"sk-{word()}",
        f"hf_{word(34)}",
        f"ghp_{word(36)}",
        f"Bearer {word()}",
        f"https://me:{word()}@host",
    ):
        assert secret.split("://")[-1].split("@")[0].split()[-1] not in redact(f"said {secret} there")


def test_a_run_folder_holds_no_secret_and_can_be_continued(tmp_path, monkeypatch):
    """A secret in a setting and on the command line: neither file has it, and the folder still knows its run."""
    secret = word()
    monkeypatch.setattr("sys.argv", ["launchers/train.py", f"+llm.api_key={secret}"])
    config = dataclasses.replace(
        load_config([f"run={tmp_path}/run"]), deepspeed={"monitor": {"wandb_token": secret, "team": "x"}}
    )
    for _ in range(2):  # the second time it is compared with what the first wrote
        lock = RunLock(tmp_path / "run")
        claim(tmp_path / "run", config, lock)
        write_start(tmp_path / "run", config)
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
        lock.close()
    for path in (tmp_path / "run").iterdir():
        assert secret not in path.read_text(), path
    assert "<hidden>" in json.loads((tmp_path / "run" / "environment.json").read_text())["command"]


def test_the_pattern_is_of_whole_words():
    """A word that only contains a secret's name is none."""
    assert WEAK_NAMES.search("MY_KEY") and WEAK_NAMES.search("key") and not WEAK_NAMES.search("KEYMAP")
    assert STRONG_NAMES.search("dbPassword") and not STRONG_NAMES.search("passwordless")
