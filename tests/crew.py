"""Two processes that work together, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python alone, in a folder whose modules it can import; at most five minutes."""
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]  # the package that is tested here, if by path
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def torchrun(folder: Path, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The same in two processes; all are started again, `restarts` times at the most, where one dies."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return python(folder, *launcher, *arguments)
