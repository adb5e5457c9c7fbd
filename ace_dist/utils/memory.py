"""Owns what a process knows of its own memory: its peak, and how to give freed memory back."""

from __future__ import annotations

import ctypes
from pathlib import Path


def trim_heap() -> None:
    """Give memory that was freed back to the system. glibc keeps it otherwise; elsewhere nothing happens."""
    libc = ctypes.CDLL(None) if Path("/proc/self").exists() else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # type: ignore[union-attr]
