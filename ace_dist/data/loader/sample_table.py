"""Finds where the frames of a stored clip lie in its bytes.

Canonical clips are mp4 files with one track whose frames are stored in the order in which they are shown. Their sample
table says all that a decoder needs; opening them with FFmpeg instead costs as much as decoding five pictures, because
its probing decodes the first ones (VP9 at 256 pixels: 4 of 70 ms a clip).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ace_dist.utils.errors import DataError

DECODERS = {b"vp09": "vp9", b"avc1": "h264", b"mp4v": "mjpeg"}  # FFmpeg writes MJPEG as an MPEG-4 object type
# The first bytes of a shown, error-resilient VP9 frame of profile 0 that no reference slot keeps (VP9 bitstream, 6.2).
UNUSED_VP9 = b"\x87\x00"
ENTRY_HEAD = 86  # bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3)


@dataclass(frozen=True)
class SampleTable:
    """FFmpeg's decoder name, its extradata, and of each frame: first byte, number of bytes, whether it is a key.

    `needed` says of each frame whether others are predicted from it, as far as its first bytes tell.
    """

    decoder: str
    extradata: bytes
    offsets: list[int]
    sizes: list[int]
    keys: list[bool]
    needed: list[bool]


def read_sample_table(clip: bytes) -> SampleTable:
    """The sample table (ISO/IEC 14496-12, 8.5) of a clip. Raises `DataError` when the bytes are no canonical clip."""
    data = table = memoryview(clip)
    try:
        for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            table = dict(boxes(table))[name]
        parts = dict(boxes(table))
        kind, entry = next(boxes(parts[b"stsd"][8:]))
        inner = dict(boxes(entry[ENTRY_HEAD - 8 :]))
        same_size, count = struct.unpack_from(">II", parts[b"stsz"], 4)
        sizes = [same_size] * count if same_size else list(struct.unpack_from(f">{count}I", parts[b"stsz"], 12))
        offsets = sample_offsets(parts, sizes)
        if any(offset + size > len(data) for offset, size in zip(offsets, sizes, strict=True)):
            raise IndexError("a frame lies outside")
        keys = set(range(1, count + 1))  # without a table all are
        if b"stss" in parts:
            (length,) = struct.unpack_from(">I", parts[b"stss"], 4)
            keys = set(struct.unpack_from(f">{length}I", parts[b"stss"], 8))
        decoder = DECODERS[kind]
    except (KeyError, IndexError, struct.error) as error:
        raise DataError("its bytes are not those of a stored clip") from error
    return SampleTable(
        decoder=decoder,
        extradata=bytes(inner.get(b"avcC", b"")),
        offsets=offsets,
        sizes=sizes,
        keys=[number in keys for number in range(1, count + 1)],
        needed=[decoder != "vp9" or bytes(data[offset : offset + 2]) != UNUSED_VP9 for offset in offsets],
    )


def boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        if not head <= size <= len(data) - at:
            raise IndexError("a box is cut off")
        yield kind, data[at + head : at + size]
        at += size


def sample_offsets(parts: dict[bytes, memoryview], sizes: list[int]) -> list[int]:
    """First byte of each sample: samples lie end to end in chunks."""
    name, form = (b"stco", "I") if b"stco" in parts else (b"co64", "Q")
    (chunks,) = struct.unpack_from(">I", parts[name], 4)
    starts = struct.unpack_from(f">{chunks}{form}", parts[name], 8)
    (runs,) = struct.unpack_from(">I", parts[b"stsc"], 4)
    numbers = struct.unpack_from(f">{3 * runs}I", parts[b"stsc"], 8)
    firsts, lengths = numbers[0::3], numbers[1::3]  # samples a chunk, from which chunk on
    offsets: list[int] = []
    for first, following, length in zip(firsts, [*firsts[1:], chunks + 1], lengths, strict=True):
        for start in starts[first - 1 : following - 1]:
            for _ in range(length):
                offsets.append(start)
                start += sizes[len(offsets) - 1]
    if len(offsets) != len(sizes):
        raise IndexError("chunks and samples disagree")
    return offsets
