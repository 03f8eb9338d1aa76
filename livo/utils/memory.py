"""Peak memory of a piece of work.

The kernel's own peak is read from /proc, because psutil reports what a process holds now, and its peak on Windows only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` count from here on.

    Args:
        device: Where the work runs.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _quietly(lambda: Path("/proc/self/clear_refs").write_text("5"))


def peak_memory(device: torch.device) -> float:
    """Peak memory in bytes since the last reset: the device's, or the process's where there is none (0 where it cannot be told).

    Args:
        device: Where the work runs.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    text = _quietly(lambda: Path("/proc/self/status").read_text()) or ""
    line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return 1024.0 * float(line.split()[1])


def _quietly(action: Callable[[], object]):
    try:
        return action()
    except OSError:
        return None
