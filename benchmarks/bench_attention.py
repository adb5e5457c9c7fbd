"""Which attention is fastest for this model's shapes: many short sequences in time, 197 tokens in space?

Columns: the formula (eager, einsum, compiled), PyTorch's SDPA with each of its backends, its variable-length flash,
FlexAttention (a batch, and one long sequence with a block-diagonal mask), every operator of xformers (and its
block-diagonal form), ours. Each column is compared with the formula in float32 before it is timed; one that does not
run here or disagrees is named with the reason and left out.

Layouts: `packed` starts from the qkv matrix of the linear map and ends at its gradient, as the model does; `separate`
gives every column three tensors in the layout it likes best. Modes: forward, backward, both. Metrics: `time`, on a GPU
also `host_time` and `graph_time` (see common.py), peak memory, launches, and the share of the measured copy bandwidth.

    python benchmarks/bench_attention.py --device cpu --threads 1
    python benchmarks/bench_attention.py --device cuda
    python benchmarks/bench_attention.py --device cuda --quick      # few columns, packed, bfloat16
    python benchmarks/bench_attention.py --device cuda --sweep      # our kernel alone, with other tiles
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch._functorch.config as functorch_config
from ace_kernels import (
    temporal_attention,
    temporal_attention_packed,
    temporal_attention_unsupported_reason,
)
from common import (
    RESULTS,
    Row,
    append,
    as_rows,
    bandwidth_share,
    build_parser,
    copy_bandwidth_rows,
    measure_in_turns,
    show,
    side_stream,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

functorch_config.donated_buffer = False  # a backward pass is timed again and again
TARGET = 1.5  # times the best general kernel, temporal attention on a GPU
QUICK_SHAPES = ("temporal_30", "temporal_15")
QUICK_COLUMNS = ("formula_compiled", "sdpa_flash_attention", "sdpa_efficient_attention", "sdpa_cudnn_attention", "ours")
MASK_BLOCK = 128  # FlexAttention's block of rows and columns
AGREES = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # times the largest number: TF32 and one bfloat16 rounding


@dataclass(frozen=True)
class Shape:
    """Sequences, tokens of a sequence, heads, width of a head."""

    name: str
    sequences: int
    tokens: int
    heads: int = 12
    width: int = 64


def temporal(clips: int) -> tuple[Shape, ...]:
    """TimeSformer-B/16 at 224 pixels: 196 patches of a clip, each a sequence of its frames."""
    return tuple(Shape(f"temporal_{frames}", clips * 196, frames) for frames in (8, 15, 25, 30))


SHAPES = {
    "cuda": (*temporal(16), Shape("temporal_96", 4 * 196, 96), Shape("spatial_197", 16 * 8, 197)),
    "cpu": (
        *temporal(1),
        Shape("spatial_197", 8, 197),
        Shape("demo_temporal", 8 * 16, 8, 3, 32),
        Shape("demo_spatial", 8 * 8, 17, 3, 32),
    ),
}


class Column(NamedTuple):
    """A way to attend: a function of q, k, v, as [S,H,T,d] when `heads_first`, else as [S,T,H,d]."""

    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    heads_first: bool = True


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As anyone would write it, [S,H,T,d]."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same on [S,T,H,d]."""
    scores = torch.einsum("sthd,suhd->shtu", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("shtu,suhd->sthd", scores.softmax(-1), v)


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention held to one backend."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v)


def joined(function: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A function of all tokens in one row, [S·T,H,d], on [S,T,H,d]."""
    return function(*(x.flatten(0, 1) for x in (q, k, v))).view(q.shape)


def diagonal_blocks(sequences: int, tokens: int, device: str) -> Any:
    """FlexAttention's mask of sequences in one row, from the blocks that each block of rows meets."""
    from torch.nn.attention.flex_attention import BlockMask

    length = sequences * tokens
    blocks = -(-length // MASK_BLOCK)
    first_row = torch.arange(blocks, device=device) * MASK_BLOCK
    last_row = (first_row + MASK_BLOCK).clamp(max=length) - 1
    low = (first_row // tokens) * tokens // MASK_BLOCK
    high = ((last_row // tokens + 1) * tokens - 1) // MASK_BLOCK
    columns = (low[:, None] + torch.arange(blocks, device=device)).clamp(max=blocks - 1)
    return BlockMask.from_kv_blocks(
        (high - low + 1).to(torch.int32)[None, None],
        columns.to(torch.int32)[None, None],
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=lambda b, h, row, column: row // tokens == column // tokens,
        seq_lengths=(length, length),
    )


def flex_columns(shape: Shape, device: str) -> dict[str, Column]:
    """FlexAttention, compiled: on the batch, and on all sequences in one row under a block-diagonal mask."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention)
    mask = diagonal_blocks(shape.sequences, shape.tokens, device)

    def one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row: Tensor = compiled(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)
        return row[0].transpose(0, 1)

    return {
        "flex": Column(lambda q, k, v: compiled(q, k, v)),
        "flex_block_diagonal": Column(partial(joined, one_row), heads_first=False),
    }


def varlen_column(shape: Shape, device: str) -> dict[str, Column]:
    """PyTorch's flash attention for sequences of any lengths in one row."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.arange(shape.sequences + 1, device=device, dtype=torch.int32) * shape.tokens

    def one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = varlen_attn(q, k, v, ends, ends, shape.tokens, shape.tokens)
        return out

    return {"varlen_flash": Column(partial(joined, one_row), heads_first=False)}


def xformers_columns(shape: Shape, device: str) -> dict[str, Column]:
    """Every forward operator of xformers with its own backward, and its choice for a block-diagonal mask."""
    operators = importlib.import_module("xformers.ops")
    fmha = importlib.import_module("xformers.ops.fmha")
    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens([shape.tokens] * shape.sequences, device=device)
    attention = operators.memory_efficient_attention

    def block_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row: Tensor = attention(q[None], k[None], v[None], attn_bias=bias)
        return row[0]

    columns = {
        f"xformers_{operator.NAME}": Column(partial(attention, op=(operator, None)), heads_first=False)
        for operator in fmha.ALL_FW_OPS
    }
    return columns | {"xformers_block_diagonal": Column(partial(joined, block_diagonal), heads_first=False)}


def build_columns(shape: Shape, dtype: torch.dtype, device: str, quick: bool) -> dict[str, Column]:
    """Every column that may run on a device; `ours` last, and not beyond its limits on a GPU. `quick`: the best few."""
    columns = {"formula": Column(formula), "einsum": Column(einsum, heads_first=False)}
    names = ("MATH", "FLASH_ATTENTION") if device == "cpu" else tuple(SDPBackend.__members__)
    for name in names:
        if name not in ("ERROR", "OVERRIDEABLE"):
            columns[f"sdpa_{name.lower()}"] = Column(partial(sdpa, SDPBackend.__members__[name]))
    if device == "cuda":
        columns["formula_compiled"] = Column(torch.compile(formula))
        for more in () if quick else (varlen_column, flex_columns, xformers_columns):
            try:
                columns |= more(shape, device)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                print(f"  {more.__name__} left out: {first_line(error)}", flush=True)
    if device == "cpu" or temporal_attention_unsupported_reason(shape.tokens, shape.width, dtype) is None:
        columns["ours"] = Column(temporal_attention, heads_first=False)
    return {name: column for name, column in columns.items() if not quick or name in QUICK_COLUMNS}


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


Call = Callable[[], object]


def build_calls(column: Column, name: str, layout: str, qkv: Tensor) -> dict[str, Call]:
    """The three modes of a column in a layout, as calls without arguments."""
    leaves: tuple[Tensor, ...]
    if layout == "packed":
        leaves = (qkv.detach().clone().requires_grad_(),)
        function: Callable[..., Tensor] = temporal_attention_packed if name == "ours" else partial(unpacked, column)
    else:
        order = (0, 2, 1, 3) if column.heads_first else (0, 1, 2, 3)
        leaves = tuple(x.permute(order).detach().clone(memory_format=torch.contiguous_format).requires_grad_()
                       for x in qkv.unbind(2))  # fmt: skip
        function = column.run
    outcome = function(*leaves)
    weight = torch.ones_like(outcome) + 0.5 * outcome.detach()

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*leaves)

    def backward() -> object:
        return torch.autograd.grad(outcome, leaves, weight, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(function(*leaves), leaves, weight)

    return {"forward": forward, "backward": backward, "both": both}


def unpacked(column: Column, qkv: Tensor) -> Tensor:
    """A column on slices of the qkv matrix; the result lies as the next linear map reads it."""
    q, k, v = qkv.unbind(2)
    if not column.heads_first:
        return column.run(q, k, v)
    return column.run(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).contiguous()


def disagreement(column: Column, name: str, layout: str, qkv: Tensor, true: tuple[Tensor, Tensor]) -> str | None:
    """Why a column may not be timed: it does not run, or output or gradient are not the formula's."""
    try:
        calls = build_calls(column, name, layout, qkv)
        out, grads = calls["forward"](), calls["both"]()
    except Exception as error:  # competitors fail in their own ways; the reason is printed
        return first_line(error)
    assert isinstance(out, Tensor) and isinstance(grads, tuple)
    if layout == "separate":
        order = (0, 2, 1, 3) if column.heads_first else (0, 1, 2, 3)
        out, grads = out.permute(order), (torch.stack([x.permute(order) for x in grads], 2),)
    for ours, exact, what in ((out, true[0], "output"), (grads[0], true[1], "gradient")):
        error = (ours.detach().float() - exact).abs().max() / exact.abs().max()
        if not error <= AGREES[qkv.dtype] * (1 if what == "output" else 2):
            return f"its {what} differs from the formula by {error:.2g} of the largest number"
    return None


def truth(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the formula in float32."""
    exact = {name: call() for name, call in build_calls(Column(formula), "formula", "packed", qkv.float()).items()}
    out, grads = exact["forward"], exact["both"]
    assert isinstance(out, Tensor) and isinstance(grads, tuple)
    return out, grads[0]


def bytes_to_move(shape: Shape, mode: str, size: int) -> int:
    """Bytes that any implementation reads and writes: q, k, v, out forward; q, k, v, dO, dQ, dK, dV backward."""
    row = shape.sequences * shape.tokens * shape.heads * shape.width * size
    return row * {"forward": 4, "backward": 7, "both": 11}[mode]


def measure(
    shape: Shape,
    layout: str,
    dtype: torch.dtype,
    device: str,
    bandwidth: float,
    columns: dict[str, Column],
    quick: bool,
) -> Iterator[list[Row]]:
    """All columns at one shape and layout, mode by mode."""
    torch.manual_seed(0)
    qkv = torch.randn(shape.sequences, shape.tokens, 3, shape.heads, shape.width, device=device).to(dtype)
    config: dict[str, Any] = asdict(shape) | {"dtype": str(dtype).removeprefix("torch."), "layout": layout}
    exact = truth(qkv)
    modes: dict[str, dict[str, Call]] = {"forward": {}, "backward": {}, "both": {}}
    for name, column in columns.items():
        reason = disagreement(column, name, layout, qkv, exact)
        if reason:
            print(f"  {shape.name} {layout} {config['dtype']}: {name} left out: {reason}", flush=True)
            continue
        for mode, call in build_calls(column, name, layout, qkv).items():
            modes[mode][name] = call
    del exact
    title = shape.name if shape.name.startswith("demo") else shape.name.split("_")[0]
    for mode, calls in modes.items():
        rows: list[Row] = []
        measured = measure_in_turns(calls, device, budget_s=0.3 if device == "cuda" else 1.0, quick=quick)
        for name, metrics in measured.items():
            metrics |= bandwidth_share(metrics, bytes_to_move(shape, mode, dtype.itemsize), bandwidth)
            rows += as_rows((f"{title}_attention", name, mode), ("tokens", float(shape.tokens)), metrics, config)
        show(f"{shape.name} {layout} {config['dtype']} {mode}", measured)
        yield rows


@contextmanager
def tiles(rows: int, warps: int) -> Iterator[None]:
    """Our kernel with another tile."""
    from ace_kernels import short_attention_triton as path

    original = path.choose_tile
    path.choose_tile = lambda *_: path.Tile(rows, warps)
    try:
        yield
    finally:
        path.choose_tile = original


def with_tile(rows: int, warps: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ours under a tile, forward and backward: the packed gradient is of no interest here."""

    class Tiled(torch.autograd.Function):
        """The launches of both directions inside the context of the tile."""

        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            with tiles(rows, warps):
                return temporal_attention(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            from ace_kernels import short_attention_triton as path

            saved = ctx.saved_tensors
            outs = tuple(torch.empty_like(x) for x in saved)
            with tiles(rows, warps):
                path.backward(grad, *saved, saved[0].shape[-1] ** -0.5, outs)
            return outs

    out: Tensor = Tiled.apply(q, k, v)
    return out


def sweep_columns(shape: Shape) -> dict[str, Column]:
    """Our kernel with every tile that holds a sequence; `ours` is the rule's own choice."""
    columns = {
        f"ours_{rows}_rows_{warps}_warps": Column(partial(with_tile, rows, warps), heads_first=False)
        for rows in (16, 32, 64)
        for warps in (1, 2, 4, 8)
        if rows >= shape.tokens and rows // warps >= 8
    }
    return columns | {"ours": Column(temporal_attention, heads_first=False)}


def cases(options: argparse.Namespace) -> list[tuple[Shape, torch.dtype, str]]:
    """Shape, type and layout of every case that was asked for, the quick shapes first."""
    layouts = ("separate",) if options.sweep else ("packed",)
    if options.device == "cuda" and not options.sweep and not options.quick:
        layouts = ("packed", "separate")
    chosen = [
        (shape, dtype, layout)
        for dtype in ([torch.bfloat16] if options.quick else reversed(AGREES))
        for layout in layouts
        for shape in SHAPES[options.device]
        if (not options.shapes or shape.name in options.shapes)
        and (not options.dtypes or str(dtype).removeprefix("torch.") in options.dtypes)
        and (not options.sweep or shape.tokens <= 32)
        and (not options.quick or shape.name in QUICK_SHAPES)
    ]
    return sorted(chosen, key=lambda case: case[0].name not in QUICK_SHAPES)


def main() -> None:
    """Measure and append to the results."""
    parser = build_parser(__doc__, "attention_{cpu,cuda}.csv")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--dtypes", nargs="*", choices=("bfloat16", "float32"), help="both by default")
    parser.add_argument("--sweep", action="store_true", help="our kernel alone with other tiles (needs a GPU)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, output = options.device, options.output or RESULTS / f"attention_{options.device}.csv"
    with side_stream(device):
        bandwidth, rows = copy_bandwidth_rows(device)
        append(output, rows, device)
        for shape, dtype, layout in cases(options):
            columns = sweep_columns(shape) if options.sweep else build_columns(shape, dtype, device, options.quick)
            for rows in measure(shape, layout, dtype, device, bandwidth, columns, options.quick):
                append(output, rows, device)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
