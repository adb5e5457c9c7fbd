"""Which phrases make which class, as the integers that the operators read: made once, checked once, sent once.

N classes: those of the R label sets, one set after the other, then the shadow negatives. S positions: the phrases of
all classes in their order, counted with repetition. P rows of a table.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Self

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ace_kernels.backend import KernelInputError, is_plain

Integers = NDArray[numpy.int64]
ZERO = numpy.zeros(1, numpy.int64)


class ConceptLayout:
    """The classes of R label sets, and of their shadow negatives, over one table of `height` rows.

    The last `shadow_height` rows may lie in a second table, of the shadow negatives. Class n has the positions
    `offsets[n]:offsets[n + 1]`; position s is row s of the table, or row `rows[s]`. For the gradient `uses` turns that
    round: `owners[starts[p]:starts[p + 1]]` are the classes that use row p, in the order of their positions. All are
    int64 on one device. `build` makes them from integers on the CPU.

    `sizes`, the number of phrases of each class, is None when the host has not read the offsets: then the device
    asserts the values.
    """

    def __init__(
        self,
        offsets: Tensor,
        rows: Tensor | None,
        uses: tuple[Tensor, Tensor] | None,
        set_classes: tuple[int, ...],
        shadowed: bool,
        height: int,
        sizes: tuple[int, ...] | None = None,
        shadow_height: int = 0,
    ) -> None:
        self.offsets, self.rows, self.uses = offsets, rows, uses
        self.set_classes, self.shadowed, self.height, self.sizes = set_classes, shadowed, height, sizes
        self.shadow_height = shadow_height
        self.means = offsets.numel() - 1
        self.positions = height if rows is None else rows.numel()
        self.buffer, self.lengths, self.beside = offsets, [0], offsets  # `build` puts all into one buffer
        self.copies: dict[torch.device, ConceptLayout] = {}
        shadows = self.means - sum(set_classes)
        if shadowed and shadows != set_classes[0]:
            raise KernelInputError(f"shadow_offsets describes {shadows} classes, class_offsets {set_classes[0]}")

    @classmethod
    def build(
        cls,
        set_offsets: Sequence[Any],
        set_rows: Sequence[Any] | None = None,
        shadow_offsets: Any = None,
        shadow_rows: Any = None,
        height: int | None = None,
        shadow_height: int | None = None,
        device: torch.device | None = None,
        beside: Any = None,
    ) -> Self:
        """A layout from integers on the CPU (lists, tuples, arrays or tensors), checked by value.

        Args:
            set_offsets: for every label set its [C_r+1] offsets, each rising from 0.
            set_rows: for every label set the rows of its positions. Without it the sets lie one after the other in the
                table.
            shadow_offsets: the same of the shadow negatives.
            shadow_rows: their rows.
            height: rows of the table; by default no more than are used.
            shadow_height: rows of a second table that holds the shadow negatives and follows the first one.
                `shadow_rows` then count from its beginning.
            device: where the layout is made, in one copy; on the CPU by default.
            beside: integers that travel in that copy, to be found in `beside`.

        Raises:
            KernelInputError: offsets do not rise from 0, a class has no phrase, a row is not in the table.
        """
        if not len(set_offsets) or (set_rows is not None and len(set_rows) != len(set_offsets)):
            raise KernelInputError(f"{len(set_offsets)} sets of offsets need as many sets of rows, and one at least")
        if shadow_height is None and shadow_offsets is not None and (set_rows is None) != (shadow_rows is None):
            raise KernelInputError("shadow_offsets and shadow_rows of the one table need each other, and set_rows")
        offsets, rows = arrays(set_offsets, 2), None if set_rows is None else arrays(set_rows)
        shadow = arrays([] if shadow_offsets is None else [shadow_offsets], 2)
        shadow_index = None if shadow_rows is None else arrays([shadow_rows])
        if height is None:
            every = [*(rows or []), *(shadow_index or [])]
            height = 1 + int(max(part.max() for part in every)) if every else sum(int(o[-1]) for o in offsets + shadow)
        if shadow_height is None:
            both = None if rows is None else rows + (shadow_index or [])
            if not is_right(offsets + shadow, both, height):
                check_positions(offsets + shadow, both, height, "text")
        else:
            check_positions(offsets, rows, height, "text")
            check_positions(shadow, shadow_index, shadow_height, "shadow_text")
            both = joined_rows(rows, height, shadow_index, shadow_height, numpy.arange)
            height += shadow_height
        set_classes = tuple([len(part) - 1 for part in offsets])
        sizes, parts = packed(offsets + shadow, both, height)
        buffer = torch.from_numpy(numpy.concatenate(parts if beside is None else parts + arrays([beside], 0)))
        lengths = [*map(len, parts), len(buffer) - sum(map(len, parts))]
        form = set_classes, bool(shadow), height, tuple(sizes.tolist()), shadow_height or 0
        return cls.unpack(buffer if device is None else send(buffer, device), lengths, *form)

    @classmethod
    def unpack(
        cls,
        buffer: Tensor,
        lengths: list[int],
        set_classes: tuple[int, ...],
        shadowed: bool,
        height: int,
        sizes: tuple[int, ...],
        shadow_height: int,
    ) -> Self:
        """The layout whose parts `packed` has made, as views of one buffer."""
        views = buffer.split_with_sizes(lengths)
        rows, uses = (views[2], (views[4], views[6])) if len(lengths) > 3 else (None, None)
        layout = cls(views[0], rows, uses, set_classes, shadowed, height, sizes, shadow_height)
        layout.buffer, layout.lengths, layout.beside = buffer, lengths, views[-1]
        return layout

    def to(self, device: torch.device | str) -> "ConceptLayout":
        """The same on a device, copied once and kept: to a GPU from pinned memory, so that the host does not wait."""
        here = self.offsets.device
        if here == device:
            return self
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
            if here == device:
                return self
        if device not in self.copies:
            there = send(self.buffer, device)
            if self.sizes is None:
                rows = None if self.rows is None else send(self.rows, device)
                copy = ConceptLayout(there, rows, None, self.set_classes, self.shadowed, self.height)
            else:
                form = self.set_classes, self.shadowed, self.height, self.sizes, self.shadow_height
                copy = self.unpack(there, self.lengths, *form)
            self.copies[device] = copy
        return self.copies[device]

    def row_uses(self) -> tuple[Tensor, Tensor]:
        """`owners` and `starts`, of offsets and rows that the host has not read."""
        if self.uses is None:
            assert self.rows is not None
            places = torch.arange(self.positions, device=self.rows.device)
            owner = torch.searchsorted(self.offsets, places, right=True) - 1
            by_row, order = self.rows.sort(stable=True)
            starts = torch.searchsorted(by_row, torch.arange(self.height + 1, device=self.rows.device))
            self.uses = owner[order], starts
        return self.uses


def is_right(offsets: list[Integers], rows: list[Integers] | None, height: int) -> bool:
    """What `check_positions` finds out, at once: the sizes of the classes and the range of the rows."""
    ends = [int(part[-1]) for part in offsets]
    if any(part[0] for part in offsets) or min([(part[1:] - part[:-1]).min() for part in offsets]) <= 0:
        return False
    if rows is None:
        return sum(ends) == height
    low, high = min([part.min() for part in rows]), max([part.max() for part in rows])
    return ends == [len(part) for part in rows] and low >= 0 and high < height


def packed(offsets: list[Integers], rows: list[Integers] | None, height: int) -> tuple[Integers, list[Integers]]:
    """The number of phrases of each class; and offsets, rows, owners and starts, with what fills each part up to a
    multiple of 16 bytes after it, as Triton's kernels read them fastest.
    """
    sizes = numpy.concatenate([part[1:] - part[:-1] for part in offsets])
    parts = [numpy.concatenate([ZERO, sizes.cumsum()])]
    if rows is not None:
        index = numpy.concatenate(rows)
        owners = numpy.repeat(numpy.arange(len(sizes)), sizes)[index.argsort(kind="stable")]
        parts += [index, owners, numpy.concatenate([ZERO, numpy.bincount(index, minlength=height).cumsum()])]
    return sizes, [piece for part in parts for piece in (part, ZERO[: len(part) % 2])]


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values.to(device)`; to a GPU from pinned memory, so that the host does not wait for the work before it."""
    pinned = values.pin_memory() if device.type == "cuda" and values.is_cpu else values
    return pinned.to(device, non_blocking=True)


def arrays(parts: Sequence[Any], least: int = 1) -> list[Integers]:
    """Integers on the CPU, whatever holds them: `least` or more, else `KernelInputError`."""
    made = [numpy.asarray(part) for part in parts]
    for part in made:
        if part.ndim != 1 or part.dtype.kind not in "iu" or len(part) < least:
            raise KernelInputError(f"offsets and rows must be {least} integers or more, got {part.dtype} {part.shape}")
    return [part.astype(numpy.int64, copy=False) for part in made]


def check_positions(offsets: list[Integers], rows: list[Integers] | None, height: int, name: str) -> None:
    """Offsets rise from 0 to the number of positions, no class is empty, and rows lie in the table."""
    total = 0
    for place, part in enumerate(offsets):
        sizes = part[1:] - part[:-1]
        positions = len(rows[place]) if rows is not None else height - total
        last = rows is not None or place == len(offsets) - 1
        if part[0] != 0 or sizes.min() < 0 or (part[-1] != positions if last else part[-1] > positions):
            raise KernelInputError(f"offsets of {name} must rise from 0 to {positions}, got {part.tolist()[:8]}...")
        if not sizes.all():
            raise KernelInputError(f"class {sizes.argmin()} has no row in {name}")
        total += int(part[-1])
    low, high = (min(part.min() for part in rows), max(part.max() for part in rows)) if rows else (0, -1)
    if low < 0 or high >= height:
        raise KernelInputError(f"rows of {name} must lie in [0, {height}), got {low} to {high}")


def joined_rows(
    rows: list[Any] | None, height: int, shadow_rows: list[Any] | None, shadow_height: int, arange: Callable[[int], Any]
) -> list[Any] | None:
    """Rows of two tables as rows of one that holds the first and then the second; None when both are in order."""
    if rows is None and shadow_rows is None:
        return None
    rows = [arange(height)] if rows is None else rows
    shadow_rows = [arange(shadow_height)] if shadow_rows is None else shadow_rows
    return rows + [part + height for part in shadow_rows]


def build_layout(
    text: Tensor,
    set_offsets: Sequence[Tensor],
    set_rows: Sequence[Tensor] | None,
    shadow_text: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    shadow_rows: Tensor | None = None,
) -> ConceptLayout:
    """The layout that tensors describe, on the device of the table; `shadow_text` will follow `text` in it.

    CPU tensors are checked by value, and kept by content, as training repeats some of them. Device tensors and those of
    a trace are put together without a look at their values.
    """
    heights = text.shape[0], None if shadow_text is None else shadow_text.shape[0]
    given = [x for x in (*set_offsets, *(set_rows or ()), shadow_offsets, shadow_rows) if x is not None]
    if is_plain(text) and all(x.is_cpu for x in given):
        return cached_layout(
            tuple(map(raw, set_offsets)), None if set_rows is None else tuple(map(raw, set_rows)),
            raw(shadow_offsets), raw(shadow_rows), *heights, text.device,
        )  # fmt: skip
    rows = None if set_rows is None else list(set_rows)
    shadow = None if shadow_rows is None else [shadow_rows]
    if shadow_text is not None:
        place = None if not (rows or shadow) else (rows or shadow or [])[0].device
        rows = joined_rows(rows, text.shape[0], shadow, shadow_text.shape[0], partial(torch.arange, device=place))
    elif rows is not None and shadow is not None:
        rows += shadow
    classes = tuple(part.numel() - 1 for part in set_offsets)
    groups = [*set_offsets, *([] if shadow_offsets is None else [shadow_offsets])]
    offsets, index = join_offsets(groups), None if rows is None else torch.cat([x.to(rows[0].device) for x in rows])
    if is_plain(text):
        offsets, index = on_device(offsets, text.device), None if index is None else on_device(index, text.device)
    height = text.shape[0] + (heights[1] or 0)
    shadowed = shadow_offsets is not None
    return ConceptLayout(offsets, index, None, classes, shadowed, height, shadow_height=heights[1] or 0)


def join_offsets(groups: Sequence[Tensor]) -> Tensor:
    """Offsets of several label sets as those of one with all their classes. Reads no value."""
    if len(groups) == 1:
        return groups[0]
    parts, base = [groups[0]], groups[0][-1]
    for group in groups[1:]:
        part = group.to(base.device)
        parts.append(part[1:] + base)
        base = base + part[-1]
    return torch.cat(parts)


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """As the kernels read integers."""
    return values.to(device).long().contiguous()


Raw = tuple[bytes, int]  # packed integers and the width of one


def raw(values: Tensor | None) -> Raw | None:
    return None if values is None else (values.numpy().tobytes(), values.element_size())


@lru_cache(maxsize=64)
def cached_layout(
    set_offsets: tuple[Raw, ...],
    set_rows: tuple[Raw, ...] | None,
    shadow_offsets: Raw | None,
    shadow_rows: Raw | None,
    height: int,
    shadow_height: int | None,
    device: torch.device,
) -> ConceptLayout:
    """A layout of packed integers, on a device."""

    def unpacked(part: Raw | None) -> Integers | None:
        return None if part is None else numpy.frombuffer(part[0], f"i{part[1]}")

    rows = None if set_rows is None else list(map(unpacked, set_rows))
    shadow = unpacked(shadow_offsets), unpacked(shadow_rows)
    return ConceptLayout.build(list(map(unpacked, set_offsets)), rows, *shadow, height, shadow_height, device)
