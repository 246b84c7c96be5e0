"""Two gloo processes give the training of one on a network without BatchNorm, and go on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import crew

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch can't talk to other processes")

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
import sparring as sp
from sparring.training import AWP, EMA, Free, PGDTraining, Standard, TRADES, YOPO, fit, limits

limits.SPARE = 0
folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", 0))
alone = "RANK" not in os.environ
restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
threat = sp.Linf(0.1)
g = torch.Generator().manual_seed(1)
y = torch.randint(0, 3, (61,), generator=g)
x = torch.rand(61, 1, 6, 6, generator=g, dtype=torch.float64) / 2
x[torch.arange(61), 0, y] += 0.5

def network(norm=False, seed=0):
    torch.manual_seed(seed + rank)  # other weights in every process: the first one's count
    layers = [nn.Conv2d(1, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()

class Killer:
    steps = 0
    def after_epoch(self, run):
        pass
    def after_step(self, run):
        self.steps += 1
        if self.steps == 9 and rank == 1 and not restarted:
            os.kill(os.getpid(), signal.SIGKILL)

told = {}
for name, strategy, settings in (
    ("pgd", PGDTraining(threat, steps=2), {"max_grad_norm": 0.5}),
    ("yopo", YOPO(threat, m=2, n=2), {"lr": 0.02}),
    ("gradient", YOPO(threat, m=2, n=2, form="gradient"), {"lr": 0.02}),
    ("trades", TRADES(threat, steps=2).with_(EMA(0.9)), {"accumulate": 2, "optimizer": "adamw"}),
    ("killed", PGDTraining(threat, steps=2), {"callbacks": [Killer()]} if not alone else {}),
    ("kept", PGDTraining(threat, 1, keep=True), {"augment": None}),
    ("free kept", Free(threat, 2, keep=True), {"augment": None, "lr": 0.02}),
    ("yopo kept", YOPO(threat, m=2, n=2, form="gradient", keep=True), {"augment": None, "lr": 0.02}),
    ("free", Free(threat, 2), {"lr": 0.02}),
    ("awp", PGDTraining(threat, 2).with_(AWP(0.01)), {}),
):
    result = fit(
        network(), (x, y), strategy, epochs=2, batch_size=15, validation_samples=6, save_every=0.0,
        out=folder / name, loggers=["csv"], **({"augment": "mirror-shift"} | settings),
    )
    told[name] = [{k: v for k, v in e.to_json().items() if "seconds" not in k and v is not None} for e in result.history]
    told[name + " best"] = result.best.epoch

norm = network(norm=True)
fit(norm, (x, y), Standard(), epochs=1, batch_size=20, validation=False)
told["norm"] = [float(norm[1].running_mean.sum()), float(norm[1].running_var.sum()), float(norm[0].weight.sum())]
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)

own = network().insert(1, Own().double())
fit(own, (x, y), Standard(), epochs=1, batch_size=20, validation=False)
told["own"] = [float(own[1].mean.sum()), float(own[1].var.sum())]
split = network(norm=True)
advprop = sp.AdvProp(sp.FGSM(threat))
fit(split, (x, y), advprop, epochs=1, batch_size=20, validation=False)
with advprop.statistics.branch(split, "adversarial"):
    told["adversarial"] = [float(split[1].running_mean.sum()), float(split[1].running_var.sum())]
told["errors"] = []


class Roots(torch.nn.Module):  # a finite loss, a NaN gradient
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        logits = self.inner(x)
        return logits + (0 * logits).abs().sqrt()


bad = x.clone()
bad[3] = torch.nan
for data in ((bad, y), (x[:3], y[:3])):
    try:
        fit(network(), data, Standard(), epochs=1, batch_size=20, validation=False)
    except (FloatingPointError, ValueError) as error:
        told["errors"].append(str(error))
roots = Roots()
try:
    fit(roots, (x, y), Standard(), epochs=1, batch_size=61, validation=False)
except FloatingPointError as error:
    told["errors"].append(str(error))
assert all(p.isfinite().all() for p in roots.parameters())
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crew")
    (folder / "train.py").write_text(SCRIPT)
    for name in ("one", "two"):
        (folder / name).mkdir()
        run = (
            crew.python(folder, "train.py", name)
            if name == "one"
            else crew.torchrun(folder, "train.py", name, restarts=1)
        )
        assert run.returncode == 0, run.stderr[-3000:]
    return folder


def told(place: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / name / f"told-{rank}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pgd", "yopo", "gradient", "trades", "killed", "kept", "free kept", "yopo kept", "free", "awp"]
)
def test_two_processes_train_like_one(place: Path, name: str) -> None:
    for file in ("last.safetensors", "best.safetensors"):
        one, two = (load_file(place / world / name / file) for world in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-10, atol=1e-12)
    first = told(place, "one")
    for rank in (0, 1):
        second = told(place, "two", rank)
        assert second[name + " best"] == first[name + " best"]
        for a, b in zip(first[name], second[name], strict=True):
            assert b == pytest.approx(a, rel=1e-10)


def test_processes_stay_together(place: Path) -> None:
    a, b = told(place, "two", 0), told(place, "two", 1)
    assert a["norm"] == b["norm"], "running statistics are averaged with the gradients"
    assert a["own"] == b["own"], "those in buffers of one's own, too"
    assert a["adversarial"] == b["adversarial"], "those of the other branch, too"
    assert a["errors"] == b["errors"]
    assert "the loss is nan in epoch 1, batch" in a["errors"][0]
    assert a["errors"][-1].startswith("NaN or inf in inner.")
    assert a["errors"][0].split(": ")[0] == told(place, "one")["errors"][0].split(": ")[0]


def test_what_is_spread_over_processes_is_refused() -> None:
    from sparring.training import Standard, fit

    class FSDPModule(torch.nn.Linear):
        pass

    with pytest.raises(ValueError, match="spread over processes") as raised:
        fit(FSDPModule(2, 2), (torch.rand(4, 2), torch.arange(4) % 2), Standard(), epochs=1, validation=False)
    assert "\n" not in str(raised.value)
