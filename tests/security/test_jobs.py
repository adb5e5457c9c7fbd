"""A job sees no secret of the shell that submits it, and no setting becomes a line of its sbatch file."""

import json
import os
from pathlib import Path

import pytest

from ace_dist.cli import execute
from ace_dist.cluster.profiles import ClusterConfig, split_profile
from ace_dist.cluster.submit import build_job, check_job, job_environment, passed_on, sbatch_text
from ace_dist.config import load_config
from ace_dist.utils.errors import ConfigError

PROFILE = ClusterConfig(kind="slurm", environment=["MY_DATA", "OURS_*"])
SECRETS = {
    "DATABASE_URL": "postgres://me:pw@host/db", "DBPASS": "hunter2", "GITHUB_PAT": "x1", "OPENAI_API_KEY": "k",
    "HF_TOKEN": "t", "WANDB_API_KEY": "k", "SLURM_JWT": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0", "OURS_SECRET": "s",
    "https_proxy": "http://me:pw@proxy:3128", "AWS_SESSION": "ASIAABCDEFGHIJKLMNOP", "SOMETHING": "hunter2",
}  # fmt: skip
USUAL = {"PATH": "/usr/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "SLURM_CONF": "/etc/s",
         "HF_HOME": "/h", "WANDB_MODE": "offline", "http_proxy": "http://proxy:3128", "MY_DATA": "/d",
         "OURS_A": "1"}  # fmt: skip


def test_a_job_sees_a_list_of_variables(monkeypatch, tmp_path):
    for name, value in {**SECRETS, **USUAL, "MY_FOLDER": "/m", "OTHER": "/o"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    job = build_job(execute, "train", ["dataset.shards=$MY_FOLDER/x", "name=$OPENAI_API_KEY"], tmp_path)
    with job_environment(PROFILE, [job], OMP_NUM_THREADS="3"):
        seen = dict(os.environ)
    assert dict(os.environ) == before
    assert not seen.keys() & (SECRETS.keys() | {"OTHER"}) and USUAL.items() <= seen.items()
    assert seen["MY_FOLDER"] == "/m" and seen["OMP_NUM_THREADS"] == "3"


def test_a_name_in_a_setting_is_a_whole_one():
    for text, passes in (("$DATA/x", True), ("${DATA}/x", True), ("$DATABASE", False), ("DATA", False)):
        assert passed_on("DATA", "/d", [], [text]) is passes


def test_a_secret_is_not_passed_on_request():
    with pytest.raises(ConfigError, match="cluster.environment lists MY_TOKEN, the name of a secret"):
        split_profile(["cluster=slurm", "cluster.environment=[MY_TOKEN]"])


@pytest.mark.parametrize("text", ["gpu\n#SBATCH --uid=root", "gpu\r", "gpu\0", "gpu\x1b[2J", "gpu\u2028x"])
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "exclude", "python", "setup", "sbatch"])
def test_control_characters_in_a_profile(tmp_path, key, text):
    """From a file too, where YAML writes them as escapes."""
    value = {"setup": [text], "sbatch": {"comment": text}}.get(key, text)
    (tmp_path / "mine.yaml").write_text(f"kind: slurm\n{key}: {json.dumps(value)}\n")
    with pytest.raises(ConfigError, match=rf"cluster\.{key}=.*control character"):
        split_profile([f"cluster={tmp_path}/mine.yaml"])


def test_control_characters_in_a_folder_or_a_setting():
    with pytest.raises(ConfigError, match="folder=.*control character"):
        sbatch_text(PROFILE, "ace-train", Path("jobs\n#SBATCH --uid=root"))
    with pytest.raises(ConfigError, match="dataset.name=.*control character"):
        check_job(load_config, "train", ["dataset.name=a\nb"], PROFILE)
    assert "--uid" not in sbatch_text(PROFILE, "ace-train", Path("jobs"))
