"""Attention: its numbers against the formula written out, and the choice of backend with its messages."""

import sys

import pytest
import torch

from ace_dist.models import attention
from ace_dist.models.attention import attend, attend_packed, choose_attention, resolve_attention, short_serves
from ace_dist.utils.errors import ModelError


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    caches = (choose_attention, short_serves, attention.general_backend)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (7, 7), (70, 70), (1, 70)])
def test_equals_the_formula(queries, keys):
    """softmax(q k' / sqrt(d)) v, also on strided slices of one tensor and with fewer queries than keys."""
    q, k, v = torch.randn(3, keys, 3, 2, 16).unbind(2)
    q = q[:, :queries]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 8, 17, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_the_formula(tokens, dtype):
    """One qkv tensor and its whole gradient, whichever kernel the length and the type select."""
    qkv, weight = torch.randn(3, tokens, 3, 2, 16).to(dtype), torch.randn(3, tokens, 2, 16).to(dtype)

    def formula(x):
        q, k, v = x.unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)

    def values(function, x):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        return out.double(), torch.autograd.grad(out, leaf, weight.to(x.dtype))[0].double()

    for found, true in zip(values(attend_packed, qkv), values(formula, qkv.double()), strict=True):
        assert (found - true).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-5) * true.abs().max().clamp_min(1)


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
    with pytest.raises(ModelError, match=r"model\.video\.attention=xformers .* cpu"):
        choose_attention("xformers", torch.device("cpu"))


def test_missing_xformers_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert "does not import" in (attention.xformers_unsupported_reason(torch.device("cuda")) or "")


def test_triton_on_a_cpu_is_an_error_that_names_the_setting():
    with pytest.raises(ModelError, match=r"model\.video\.attention=triton .* cpu"):
        choose_attention("triton", torch.device("cpu"))


def test_auto_on_cuda_says_which_kernel_serves_which_length(monkeypatch, capsys):
    """Nothing is launched by the choice itself: the kernel is tried at its first shape."""
    monkeypatch.setattr(attention, "xformers_unsupported_reason", lambda device: "xformers is missing")
    monkeypatch.setattr(attention, "choose", lambda device: "triton")
    assert choose_attention("auto", torch.device("cuda")) == "triton"
    said = capsys.readouterr().out
    assert "triton up to 32 tokens and sdpa beyond" in said and "xformers is missing" in said
    monkeypatch.setattr(attention, "choose", lambda device: "torch")
    choose_attention.cache_clear()
    assert choose_attention("auto", torch.device("cuda")) == "sdpa"
    with pytest.raises(ModelError, match="ACE_KERNELS"):
        choose_attention("triton", torch.device("cuda"))


SHAPE = (torch.device("cpu"), 8, 2, 16, torch.float32)  # the check runs anywhere; dispatch asks for it on CUDA alone


def test_a_right_kernel_is_trusted_and_nothing_is_said(capsys):
    assert short_serves(*SHAPE)
    assert "attention:" not in capsys.readouterr().out


def test_a_wrong_gradient_is_caught_with_its_size(monkeypatch, capsys):
    """The output alone is right: the comparison covers the backward as well."""
    right = attention.temporal_attention_packed
    monkeypatch.setattr(attention, "temporal_attention_packed", lambda x: right(x) + 0.01 * (x - x.detach())[:, :, 0])
    assert not short_serves(*SHAPE) and not short_serves(*SHAPE)
    said = capsys.readouterr().out.splitlines()
    told = [line for line in said if line.startswith("attention: sdpa instead of triton for sequences of 8 tokens")]
    assert len(told) == 1 and "its gradient differs" in told[0] and "allowed 0.0001" in told[0]


def test_a_kernel_that_does_not_compile_is_left_with_its_reason(monkeypatch, capsys):
    def broken(x):
        raise RuntimeError("PTXAS failed\nlong log")

    monkeypatch.setattr(attention, "temporal_attention_packed", broken)
    assert not short_serves(*SHAPE)
    assert "the Triton kernel failed (RuntimeError: PTXAS failed)" in capsys.readouterr().out


def test_long_sequences_are_beyond_the_triton_kernel(capsys):
    assert not short_serves(torch.device("cpu"), 96, 2, 64, torch.bfloat16)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [8, 15, 25, 30, 96])
def test_triton_equals_sdpa(tokens):
    """Within the kernel's limit and beyond it, output and gradient of the packed form."""
    qkv = torch.randn(50, tokens, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(50, tokens, 12, 64, device="cuda", dtype=torch.bfloat16)
    assert choose_attention("triton", qkv.device) == "triton"
    assert short_serves(qkv.device, tokens, 12, 64, qkv.dtype) == (tokens <= 32)
    found = []
    for backend in (resolve_attention("triton", qkv.device, tokens, 12, 64, qkv.dtype), "sdpa"):
        leaf = qkv.clone().requires_grad_()
        out = attend_packed(leaf, backend)
        found.append((out, *torch.autograd.grad(out, leaf, weight)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_xformers_equals_sdpa():
    if reason := attention.xformers_unsupported_reason(torch.device("cuda")):
        pytest.skip(reason)
    q, k, v = torch.randn(4, 30, 3, 2, 64, device="cuda").unbind(2)
    assert choose_attention("xformers", q.device) == "xformers"
    torch.testing.assert_close(attend(q, k, v, "xformers"), attend(q, k, v, "sdpa"), rtol=1e-3, atol=1e-3)
