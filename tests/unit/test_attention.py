"""Protects attention: its numbers against the formula written out, and the choice of backend with its messages."""

import secrets
import sys

import pytest
import torch

from ace_dist.models import attention
from ace_dist.models.attention import AttentionError, attend, choose_attention


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    torch.manual_seed(secrets.randbits(32))
    monkeypatch.delenv("RANK", raising=False)
    choose_attention.cache_clear()
    yield
    choose_attention.cache_clear()


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (7, 7), (70, 70), (1, 70)])
def test_equals_the_formula(queries, keys):
    """softmax(q k' / sqrt(d)) v, also on strided slices of one tensor and with fewer queries than keys."""
    q, k, v = torch.randn(3, keys, 3, 2, 16).unbind(2)
    q = q[:, :queries]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_auto_on_a_cpu_is_sdpa_said_once_with_its_reason(capsys):
    for _ in range(3):
        assert choose_attention("auto", torch.device("cpu")) == "sdpa"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "sdpa" in lines[0] and "CUDA" in lines[0] and "model.video.attention" in lines[0]


def test_other_ranks_stay_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    choose_attention("sdpa", torch.device("cpu"))
    assert capsys.readouterr().out == ""


def test_xformers_on_a_cpu_is_an_error_that_names_the_setting():
    with pytest.raises(AttentionError, match=r"model\.video\.attention=xformers .* cpu"):
        choose_attention("xformers", torch.device("cpu"))


def test_missing_xformers_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert "does not import" in (attention.xformers_obstacle(torch.device("cuda")) or "")


def test_unknown_setting_is_an_error():
    with pytest.raises(AttentionError, match="flash"):
        choose_attention("flash", torch.device("cpu"))


@pytest.mark.gpu
def test_xformers_equals_sdpa():
    q, k, v = torch.randn(4, 30, 3, 2, 64, device="cuda").unbind(2)
    assert choose_attention("xformers", q.device) == "xformers"
    torch.testing.assert_close(attend(q, k, v, "xformers"), attend(q, k, v, "sdpa"), rtol=1e-3, atol=1e-3)
