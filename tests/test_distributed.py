"""torchrun: every sample once, the verdicts of one process, also when a process is killed and all start again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparring as sp
from crew import torchrun
from sparring.cli import main

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch can't talk to other processes")

N = 53

NETS = """
import os, signal
from pathlib import Path
import torch
from torch import nn
from sparring.evaluation import tally

tally.FLUSH_SECONDS = 0.0
FOLDER = Path(__file__).parent
WHO = "{RANK}-{TORCHELASTIC_RESTART_COUNT}".format(**os.environ) if "RANK" in os.environ else "alone"

class Net(nn.Module):
    looks = 0

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 36, generator=generator, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        self.looks += 1
        if WHO == "1-0" and self.looks == 40 and (FOLDER / "kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return ((x.double() * self.scale).flatten(1)[:, None] * self.weight).sum(2)

def make():
    journals = (FOLDER / "run").glob("shard-*/journal.jsonl")
    known = {path.parent.name: len(path.read_text().splitlines()) for path in journals}
    (FOLDER / f"known-{WHO}").write_text(repr(known))
    return Net()
"""

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
import sparring as sp
from nets import Net

folder = Path(sys.argv[1])
data = np.load(folder / "data.npz")
x, y = torch.from_numpy(data["x"]).double() / 255, torch.from_numpy(data["y"])
threat, told, calls = sp.Linf(8 / 255), {}, []
settings = dict(attacks=[sp.PGD(threat, steps=5), sp.PGD(threat, steps=5, objective="margin")], batch_size=16)

result = sp.evaluate(Net(), (x, y), threat, progress=calls.append, checkup=False, **settings)  # joins the group itself
rank = distributed.get_rank()
told["world"] = distributed.get_world_size()
told["index"], told["robust"] = result.index.tolist(), result.robust.tolist()
told["examples"] = [index for index, _, _ in result.examples]
told["document"] = result.document
told["progress"] = [[now.done, now.total, now.forwards] for now in calls]

trained = DistributedDataParallel(Net())  # in this group; its buffers went apart while it trained
trained.module.scale.fill_(1.0 + rank)
again = sp.evaluate(trained, (x, y), threat, checkup=False, **settings)
told["trained"], told["scale"] = again.robust.tolist(), float(trained.module.scale)

alone = sp.evaluate(Net(), (x[:4], y[:4]), threat, shard=(0, 1), **settings)
told["alone"] = alone.index.tolist()

told["errors"] = []
for given in ((Net(), (x + rank / 1000, y)), (Net().requires_grad_(False).half() if rank else Net(), (x, y))):
    try:
        sp.evaluate(given[0], given[1], threat, out=folder / "run", **settings)
    except ValueError as error:
        told["errors"].append(str(error))
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py, script.py and data.npz, of which the network gets most right."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "nets.py").write_text(NETS)
    (folder / "script.py").write_text(SCRIPT)
    x = np.random.default_rng(0).integers(0, 256, (N, 1, 6, 6), dtype=np.uint8)
    weight = torch.randn(3, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (torch.tensor(x).flatten(1).double() / 255 @ weight.T).argmax(1)
    y[::10] = (y[::10] + 1) % 3
    np.savez(folder / "data.npz", x=x, y=y.numpy())
    return folder


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    gone = ("created", "seconds", "settings", "environment", "files", "folder")
    kept = {name: value for name, value in document.items() if name not in gone}
    kept["attacks"] = [{name: value for name, value in row.items() if name != "seconds"} for row in kept["attacks"]]
    passes = dict(kept["passes"])
    passes["forwards"] -= passes.pop("gallery")  # each shard shows its own
    return kept | {"passes": passes}


@pytest.mark.slow
def test_all_processes_get_the_result_of_one(place: Path) -> None:
    done = torchrun(place, "script.py", str(place))
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((place / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    data = np.load(place / "data.npz")
    x, y = torch.from_numpy(data["x"]).double() / 255, torch.from_numpy(data["y"])
    sys.modules.pop("nets", None)  # of another test
    sys.path.insert(0, str(place))
    try:
        from nets import Net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(place))
        sys.modules.pop("nets", None)
    threat = sp.Linf(8 / 255)
    attacks = [sp.PGD(threat, steps=5), sp.PGD(threat, steps=5, objective="margin")]
    alone = sp.evaluate(Net(), (x, y), threat, attacks=attacks, batch_size=16, checkup=False)
    assert 0 < alone.robust_accuracy.count < alone.clean_accuracy.count < N
    for rank, mine in enumerate(told):
        assert mine["world"] == 2
        assert mine["index"] == list(range(N))  # each once: default samplers would make 54 of them
        assert mine["robust"] == mine["trained"] == alone.robust.tolist()
        assert mine["scale"] == 1.0 + rank  # its own buffer, though the first process's were attacked
        assert mine["examples"] == [index for index, _, _ in alone.examples]
        assert without_times(mine["document"]) == without_times(alone.document)
        assert mine["document"]["settings"]["shards"] == 2
        assert mine["alone"] == [0, 1, 2, 3]
        assert "were given different data" in mine["errors"][0]
        assert len(mine["errors"]) == 2
    assert all("have different weights" in mine["errors"][1] for mine in told)
    assert told[1]["progress"] == []  # the first process tells of all
    last = told[0]["progress"][-1]
    assert last[:2] == [N, N]


@pytest.mark.slow
def test_killed_and_started_again_on_the_command_line(place: Path) -> None:
    (place / "kill").touch()
    typed = ["evaluate", "--model", "nets.py:make", "--data", "data.npz", "--eps", "8/255", "--attacks", "pgd:steps=30"]
    typed += ["--device", "cpu", "--batch-size", "4"]
    done = torchrun(place, "-m", "sparring", *typed, "--out", "run", "--json", restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr or "-9" in done.stderr
    known = eval((place / "known-1-1").read_text())
    assert known["shard-1-of-2"] > 0  # what the killed process had finished was not done again
    documents = [json.loads(done.stdout), json.loads((place / "run" / "result.json").read_text())]
    assert documents[0] == documents[1] | {"folder": "run"}  # one document, of the first process
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main([*typed, "--out", "alone"]) == 0
    finally:
        os.chdir(before)
    alone = json.loads((place / "alone" / "result.json").read_text())
    assert documents[1]["data"]["samples"] == N
    for name in ("clean_accuracy", "robust_accuracy", "per_class", "curve", "identity", "data"):
        assert documents[1][name] == alone[name], name
    assert (place / "run" / "samples.jsonl").read_bytes() == (place / "alone" / "samples.jsonl").read_bytes()
    assert not list((place / "run").glob("shard-*"))
    assert sp.load_result(place / "run").finished
