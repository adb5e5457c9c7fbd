"""Protects how clips reach the device: complete, and on a GPU beside the work that is queued there."""

from __future__ import annotations

import pytest
import torch

from ace_dist.utils.memory import Upload, send


def test_a_tensor_of_the_host_stays_itself_on_a_cpu() -> None:
    """Decoded clips are not copied once more."""
    clip = torch.randint(256, (2, 3), dtype=torch.uint8)
    assert Upload(clip.device)(clip) is clip and send(clip, clip.device) is clip


@pytest.mark.gpu
def test_a_copy_does_not_wait_for_the_step_before() -> None:
    """It is done while the current stream is still busy, and what is queued after it sees its numbers."""
    device = torch.device("cuda", torch.cuda.current_device())
    upload = Upload(device)
    assert upload.stream is not None
    clips = [torch.randint(256, (1 << 22,), dtype=torch.uint8).pin_memory() for _ in range(4)]
    upload(clips[0])
    torch.cuda.synchronize()
    torch.cuda._sleep(int(2e9))  # about a second of the current stream
    busy = torch.cuda.Event()
    busy.record()
    there = [upload(clip) for clip in clips]
    upload.stream.synchronize()
    assert not busy.query()
    sums = [clip.long().sum() for clip in there]
    del there  # memory goes back while the sums are still queued: the next copies must not take it
    later = [upload(255 - clip) for clip in clips]
    assert [s.item() for s in sums] == [clip.long().sum().item() for clip in clips]
    assert all(torch.equal(found.cpu(), 255 - clip) for found, clip in zip(later, clips, strict=True))
