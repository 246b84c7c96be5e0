"""A training that is killed, stopped or interrupted goes on to the weights that it would have had."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

import sparring as sp
from sparring.training import Standard, fit

SCRIPT = """
import json, os, signal, sys
import torch, torch._dynamo  # now, rather than in every fork
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
import sparring as sp
from sparring.training import EMA, AWP, FastFGSM, PGDTraining, YOPO, fit, limits

limits.SPARE = 0  # save whenever it is asked for
torch.set_num_threads(1)

class Noisy(Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.y = torch.randint(0, 3, (60,), generator=g)
        self.x = torch.rand(60, 1, 6, 6, generator=g) / 2
        self.x[torch.arange(60), 0, self.y] += 0.5

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return (self.x[i] + 0.02 * torch.randn(1, 6, 6)).clamp(0, 1), int(self.y[i])

def train(out, name, kill, how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3))
    threat = sp.Linf(0.1)
    strategy = {
        "pgd": PGDTraining(threat, steps=2).with_(AWP(0.01), EMA(0.9)), "yopo": YOPO(threat, m=2, n=2), "fast": FastFGSM(threat),
    }[name]

    class Killer:
        steps = 0

        def after_step(self, run):
            self.steps += 1
            if self.steps == kill:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}[how])

        def after_epoch(self, run):
            pass

    result = fit(
        model, Noisy(), strategy, epochs=3, batch_size=10, optimizer="adam" if name == "fast" else "sgd", lr=0.01,
        augment="mirror-shift" if name == "fast" else lambda x: (x + 0.01 * torch.rand_like(x)).clamp(0, 1),
        accumulate=2 if name == "pgd" else 1, out=out, save_every=0.0, callbacks=[Killer()], loggers=["csv"],
    )
    assert result.finished and len(result.history) == 3

codes = []
for job in json.loads(sys.argv[1]):  # a fork each: this process itself computes nothing, so all begin alike
    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            train(*job)
        except SystemExit as error:
            os._exit(error.code)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def history(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "history.json").read_text())["epochs"]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


CASES = {"pgd": (2, 5), "yopo": (9,), "fast": (14,)}
ASKED = {"int": 130, "term": 128 + signal.SIGTERM}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of trainings that ran through, and of such that were killed or stopped; how each ended, in codes.json."""
    if not hasattr(os, "fork"):
        pytest.skip("this system can't fork")
    folder = tmp_path_factory.mktemp("resume")
    (folder / "train.py").write_text(SCRIPT)
    jobs: list[tuple[str, str, int, str]] = []
    for name, kills in CASES.items():
        jobs += [(f"whole-{name}", name, 0, "")]
        jobs += [(f"kill-{name}", name, kill, "kill") for kill in kills]
    jobs += [(f"{how}-fast", "fast", 8, how) for how in ASKED]
    command = [sys.executable, "train.py", json.dumps(jobs)]
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300, "cwd": folder}
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **settings)
    assert run.returncode == 0, run.stderr
    (folder / "codes.json").write_text(json.dumps(list(zip([job[0] for job in jobs], json.loads(run.stdout)))))
    for how in ASKED:
        state = torch.load(folder / f"{how}-fast" / "state.pt", weights_only=True)
        assert (state["epoch"], state["position"]) == (1, 2), "saved behind the step at which it was asked to stop"
    rest = [(name, name.split("-")[1], 0, "") for name in dict.fromkeys(job[0] for job in jobs)]
    run = subprocess.run([*command[:2], json.dumps(rest)], env=os.environ | {"OMP_NUM_THREADS": "1"}, **settings)
    assert json.loads(run.stdout) == [0] * len(rest), run.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", [*(f"kill-{name}" for name in CASES), *(f"{how}-fast" for how in ASKED)])
def test_killed_it_goes_on_to_the_same_weights(place: Path, case: str) -> None:
    how, name = case.split("-")
    ends = [code for folder, code in json.loads((place / "codes.json").read_text()) if folder == case]
    assert ends == [ASKED.get(how, -signal.SIGKILL)] * (len(CASES[name]) if how == "kill" else 1)
    for file in ("last.safetensors", "best.safetensors"):
        assert (place / case / file).read_bytes() == (place / f"whole-{name}" / file).read_bytes()
    assert history(place / case) == history(place / f"whole-{name}")
    assert not list((place / case).glob(".*.tmp"))


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2


def test_out_of_time_it_goes_on_later(tmp_path: Path) -> None:
    found = []
    for limits in ([None], [1e-9, 1e-9, None]):
        out = tmp_path / str(len(limits))
        for limit in limits:
            model = nn.Linear(5, 2)
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
            result = fit(model, problem(), Standard(), epochs=2, batch_size=8, out=out, time_limit=limit)
            assert result.finished == (limit is None)
        found.append(model.weight.detach())
        again = nn.Linear(5, 2)
        finished = fit(again, problem(), Standard(), epochs=2, batch_size=8, out=out)
        assert finished.history == result.history
        assert finished.best == result.best
        assert torch.equal(again.weight, model.weight), "a finished training is not run again"
    assert torch.equal(*found)


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    fit(nn.Linear(5, 2), problem(), Standard(), epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"holds a training with epochs=1, now 2: .*resume=False"):
        fit(nn.Linear(5, 2), problem(), Standard(), epochs=2, out=tmp_path)
    with pytest.raises(ValueError, match=r"strategy='Standard', now 'FastFGSM'"):
        fit(nn.Linear(5, 2), problem(), sp.FastFGSM(sp.Linf(0.1)), epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"callbacks=\['HealthCheck'\], now \[\]"):
        fit(nn.Linear(5, 2), problem(), Standard(), epochs=1, out=tmp_path, health=False)
    fit(nn.Linear(5, 2), problem(), Standard(), epochs=2, out=tmp_path, resume=False)
    before = load_file(tmp_path / "last.safetensors")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state.pt can't be read .*start anew with resume=False") as raised:
        fit(nn.Linear(5, 2), problem(), Standard(), epochs=2, out=tmp_path)
    assert "\n" not in str(raised.value)
    assert torch.equal(load_file(tmp_path / "last.safetensors")["weight"], before["weight"])
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        fit(nn.Linear(5, 2), problem(), Standard(), epochs=2, out=tmp_path / "state.pt")


LATER = ("moments of x", "validation", "moments of validation x", "validation_attack", "callbacks' settings")
THREAT = sp.Linf(0.1)


def ensemble(seed: int) -> sp.EnsembleTraining:
    torch.manual_seed(seed)
    return sp.EnsembleTraining(sp.FGSM(THREAT), [nn.Linear(5, 2)])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"data": (1 - problem()[0], problem()[1])}, "moments of x"),
        ({"validation": (problem()[0], 1 - problem()[1])}, "validation"),
        ({"validation": (1 - problem()[0], problem()[1])}, "moments of validation x"),
        ({"validation": False}, "validation"),
        ({"validation_attack": sp.PGD(sp.Linf(0.5), steps=1)}, "validation_attack"),
        ({"callbacks": [sp.training.MaxNorm(2.0)]}, "callbacks' settings"),
        ({"strategy": ensemble(1)}, "moments of the weights of sources"),
    ],
)
def test_other_data_validation_callbacks_or_sources_are_not_gone_on_with(
    tmp_path: Path, changed: dict[str, Any], name: str
) -> None:
    given: dict[str, Any] = {
        "data": problem(), "strategy": ensemble(0), "validation": problem(), "callbacks": [sp.training.MaxNorm(1.0)],
        "epochs": 1, "health": False, "out": tmp_path,
    }  # fmt: skip

    def start(**other: Any) -> None:
        settings = {**given, **other}
        fit(nn.Linear(5, 2), settings.pop("data"), settings.pop("strategy"), **settings)

    start()
    with pytest.raises(
        ValueError, match=rf"holds a training with {name}=.*resume=False \(--fresh on the command"
    ) as raised:
        start(**changed)
    assert "\n" not in str(raised.value)
    x, y = problem()
    start(data=(x * (1 + 2e-7), y), validation=(x * (1 - 2e-7), y), strategy=ensemble(0))  # rounded otherwise
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["identity"] = {key: value for key, value in state["identity"].items() if key not in (*LATER, name)}
    torch.save(state, tmp_path / "state.pt")
    start(**changed)  # a state of before these were kept


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 2)), r"\(0.weight was of shape \(3, 5\), is of shape \(5, 2\)\)"),
        (
            nn.Sequential(OrderedDict(a=nn.Linear(5, 3), b=nn.Linear(3, 2))),
            r"\(a.weight was missing, is of shape \(3, 5\)\)",
        ),
    ],
)
def test_another_network_does_not_go_on(tmp_path: Path, other: nn.Module, said: str) -> None:
    """As many parameters, with other names or shapes: nothing of the state gets in."""
    settings: dict[str, Any] = {"epochs": 1, "out": tmp_path, "health": False, "validation": False}
    fit(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), problem(), Standard(), **settings)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["identity"]["parameters"] = sum(p.numel() for p in other.parameters())
    torch.save(state, tmp_path / "state.pt")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=rf"holds a training of another network {said}: choose another folder"):
        fit(other, problem(), Standard(), **settings)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


class Growing(nn.Linear):
    """With buffers that begin empty, as observers' do, and a state of its own."""

    def __init__(self) -> None:
        super().__init__(5, 2)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.ones(2)
        return super().forward(x)

    def get_extra_state(self) -> torch.Tensor:
        return torch.ones(len(self.seen))

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.got = state

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.seen = torch.zeros_like(state[prefix + "seen"])
        super()._load_from_state_dict(state, prefix, *rest)


def test_buffers_may_grow_between_two_starts(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "out": tmp_path, "health": False, "validation": False}
    fit(Growing(), problem(), Standard(), **settings)
    again = Growing()
    assert fit(again, problem(), Standard(), **settings).finished
    assert torch.equal(again.got, torch.ones(2))


def test_interrupted_while_it_validates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.training.validation import Validation

    whole = nn.Linear(5, 2)
    nn.init.ones_(whole.weight)
    model = copy.deepcopy(whole)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8}
    expected = fit(whole, problem(), Standard(), **settings)

    def interrupted(self: Validation, model: nn.Module, crew: Any, stopped: Any, seed: int = 0) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        stopped()

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped while epoch 1 was validated"):
            fit(model, problem(), Standard(), out=tmp_path, **settings)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["position"]) == (0, 5), "the first epoch is learned, and not validated"
    found = fit(nn.Linear(5, 2), problem(), Standard(), out=tmp_path, **settings)
    assert [row.loss for row in found.history] == [row.loss for row in expected.history]
    assert [row.validation_accuracy for row in found.history] == [row.validation_accuracy for row in expected.history]
    assert torch.equal(load_file(tmp_path / "last.safetensors")["weight"], whole.weight)


def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(tmp_path: Path) -> None:
    class Interrupt:
        def after_epoch(self, run: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(nn.Linear(5, 2), problem(), Standard(), epochs=3, batch_size=8, out=tmp_path, callbacks=[Interrupt()])
    said = f"stopped in epoch 2 of 3, after batch 1 of 5, kept in {tmp_path}: the same call goes on from there"
    assert str(caught.value) == said


class Signalling(Dataset[tuple[torch.Tensor, int]]):
    """Ctrl-C, as its workers hear it."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return problem()[0][i], i % 2


def test_workers_do_not_hear_ctrl_c() -> None:
    loader = DataLoader(Signalling(), batch_size=8, num_workers=1, multiprocessing_context="fork")
    assert fit(nn.Linear(5, 2), loader, Standard(), epochs=1, validation=False).finished
