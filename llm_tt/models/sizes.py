"""Bytes and seconds as people read them. Apart from `llm_tt.models.memory`, so that those who only show them need not import torch."""

from __future__ import annotations


def show_bytes(n_bytes: float) -> str:
    """1536 -> '1.5 KB'; powers of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TB"


def show_seconds(seconds: float) -> str:
    """0.05 -> '0.1 s', 12.3 -> '12 s', 150 -> '2.5 min'."""
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"
