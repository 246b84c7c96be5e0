"""Weights that became NaN or inf behind a finite loss are never kept: not in the model, not in files, not in averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparring as sp
from sparring.training.limits import Limits
from sparring.training.symptoms import not_finite

THREAT = sp.Linf(0.05)
BATCHES = 4


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 6, generator=generator)
    return x, (x[:, 0] > 0.5).long()


class Poisoned(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.nan


class Trap(nn.Module):
    """A finite answer with a NaN gradient at one of its weights, in the batch of this number (from 1)."""

    def __init__(self, at: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.at, self.seen = nn.Linear(6, 8), nn.Linear(8, 2), at, 0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.body(x))
        if self.training and torch.is_grad_enabled() and self.body.weight.requires_grad:
            self.seen += 1
            h = Poisoned.apply(h) if self.seen == self.at else h  # type: ignore[no-untyped-call]
        return self.head(h)  # type: ignore[no-any-return]


def train(model: nn.Module, strategy: sp.Strategy | None = None, **given: Any) -> Any:
    settings = {"epochs": 3, "batch_size": 16, "lr": 0.1, "validation": samples(), **given}
    return sp.fit(model, samples(), strategy or sp.Standard(), **settings)


CASES: dict[str, tuple[Callable[[], sp.Strategy], dict[str, Any]]] = {
    "plain": (sp.Standard, {}),
    "no validation": (sp.Standard, {"validation": False}),
    "attacked": (lambda: sp.FGSMTraining(THREAT), {}),
    "averaged": (lambda: sp.Standard().with_(sp.EMA(0.9)), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_a_gradient_made_nan_in_an_epochs_last_batch_are_taken_back(case: str, tmp_path: Path) -> None:
    """The files are those of the epoch before, and a training with the cause out of the way goes on from them."""
    make, given = CASES[case]
    model, strategy = Trap(at=2 * BATCHES), make()
    with pytest.raises(
        FloatingPointError,
        match=r"NaN or inf in body.weight, body.bias .*in epoch 2, batch 4: lower lr.*; the weights are .* after epoch 1",
    ) as raised:
        train(model, strategy, out=tmp_path, **given)
    assert "\n" not in str(raised.value)
    assert not not_finite(model)
    for part in strategy.parts:
        assert all(value.isnan().sum() == 0 for value in part.state_dict()["average"].values())  # type: ignore[union-attr]
    names = [name for name in ("last", "best") if given.get("validation") is not False or name == "last"]
    for name in names:
        assert all(value.isnan().sum() == 0 for value in load_file(tmp_path / f"{name}.safetensors").values())
    clean, whole = Trap(at=0), Trap(at=0)
    result = train(clean, make(), out=tmp_path, **given)
    assert result.finished
    assert len(result.history) == 3
    train(whole, make(), **given)
    assert all(torch.equal(a, b) for a, b in zip(clean.parameters(), whole.parameters(), strict=True))


def test_in_the_only_epoch_it_is_an_error_too(tmp_path: Path) -> None:
    model = Trap(at=BATCHES)
    with pytest.raises(FloatingPointError, match=r"in epoch 1, batch 4: .* before training"):
        train(model, epochs=1, out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), Trap(at=0).parameters(), strict=True))
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_save_in_mid_epoch_does_not_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "save", True)  # after every step
    with pytest.raises(FloatingPointError, match="in epoch 2, batch 2: "):
        train(Trap(at=BATCHES + 2), out=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["position"]) == (1, 1)
    assert state["model"]["body.weight"].isfinite().all()


def test_a_mask_is_not_taken_for_damage() -> None:
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert not_finite(norm) == []
    norm.running_var.fill_(torch.inf)  # type: ignore[union-attr]
    norm.mask[0] = torch.nan  # type: ignore[index,operator]
    assert not_finite(norm) == ["running_var", "mask"]


def test_what_was_not_finite_before_training_may_stay() -> None:
    model = Trap(at=0)
    model.register_buffer("unused", torch.tensor(torch.nan))
    model.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
    assert train(model, health=False).finished


@pytest.mark.parametrize("strategy", [sp.Standard(), sp.FGSMTraining(THREAT)])
def test_answers_that_are_not_finite_are_no_right_ones(strategy: sp.Strategy) -> None:
    """Weights so large that their products overflow: clean answers count as wrong, under attack it is an error."""
    model = Trap(at=0)

    class Large:
        def after_epoch(self, run: Any) -> None:
            pass

        def after_step(self, run: Any) -> None:
            if run.step == 2 * BATCHES - 1:
                with torch.no_grad():
                    for p in run.model.parameters():
                        p.mul_(1e30)

    x, _ = samples()
    settings: dict[str, Any] = {
        "validation": (x, torch.zeros(64, dtype=torch.long)),
        "callbacks": [Large()],
        "health": False,
    }
    if isinstance(strategy, sp.FGSMTraining):
        with pytest.raises(FloatingPointError, match=r"validation samples.* in epoch 2.* after epoch 1"):
            train(model, strategy, **settings)
        assert max(float(p.abs().max()) for p in model.parameters()) < 1e3
    else:
        assert train(model, strategy, epochs=2, **settings).history[1].validation_accuracy == 0
