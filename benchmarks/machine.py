"""Where a measurement was taken, and a plain table."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peers import installed, versions


def facts(seed: int) -> dict[str, Any]:
    """Machine, versions, threads, seed: what has to stand beside a figure."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(v, 2) for v in os.getloadavg()],
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": installed("numpy"),
        "sparring": f"{installed('sparring')} ({git.stdout.strip() or 'no git'})",
        **versions(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], file: Any = None) -> None:
    """Print a table in Markdown with aligned columns: what the terminal shows is what goes into BENCHMARKS.md."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"\n### {title}\n", file=file)
    for row in (head, [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)], *rows):
        cells = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        print("| " + " | ".join(cells) + " |", file=file or sys.stdout, flush=True)
