"""The universal perturbation: closed forms, what it returns, `evaluate`, and its file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from networks import SHAPES, RowWise, convolutional, inputs, linear, mlp
from sparring.objective import margin
from sparring.threat import Threat


def of_class(model: nn.Module, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """The inputs that the model puts into this class."""
    mine = x[model(x).argmax(1) == label]
    return mine, torch.full((len(mine),), label)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("target", [None, 1])
def test_linear_linf_is_the_corner(rank: int, target: int | None) -> None:
    model = linear(SHAPES[rank])
    x = inputs(60, SHAPES[rank])[0]
    x, y = of_class(model, x - x.mean(0), 0)
    threat = sp.Linf(0.05, bounds=None)
    found = sp.UniversalPerturbation(threat, target=target).fit(model, (x, y), steps=20, batch_size=8)
    weight = model[1].weight.detach()
    torch.testing.assert_close(found.delta, (0.05 * (weight[1] - weight[0]).sign()).view(SHAPES[rank]))


def test_linear_l2_is_the_direction_of_the_weights() -> None:
    model = linear(SHAPES[4], seed=3)
    x, y = of_class(model, inputs(60, SHAPES[4])[0], 1)
    found = sp.UniversalPerturbation(sp.L2(0.3, bounds=None)).fit(model, (x, y), steps=20, batch_size=8)
    weight = model[1].weight.detach()
    best = weight[0] - weight[1]
    torch.testing.assert_close(found.delta, (0.3 * best / best.norm()).view(SHAPES[4]), rtol=0, atol=1e-7)


def test_targeted_takes_all_other_classes_to_one() -> None:
    """Rivals of the target keep their distance from one another: w_t − w_rival has one sign pattern for all of them."""
    model = linear((12,), classes=4, seed=1)
    with torch.no_grad():
        model[1].weight[:] *= 0.1
        model[1].weight[2] = torch.tensor([1.0, -1.0] * 6)
    x = inputs(200, (12,))[0]
    y = model(x).argmax(1)
    found = sp.UniversalPerturbation(sp.Linf(0.5, bounds=None), target=2).fit(model, (x, y), steps=20, batch_size=16)
    torch.testing.assert_close(found.delta, 0.5 * torch.tensor([1.0, -1.0] * 6, dtype=torch.float64))
    assert found.fooling_rate(model, (x, y)).value > 0.9
    adversarial = found(model, x, y)
    assert bool((adversarial.targets == 2).all())
    assert torch.equal(adversarial.success, model(adversarial.x).argmax(1) == 2)


def test_mask_and_box() -> None:
    """Only what the mask frees moves; an entry that is at the end of the box in every sample can't be won by pushing on."""
    model = linear((12,), seed=2)
    x, _ = inputs(80, (12,))
    x[:, 0] = 1.0
    x, y = of_class(model, x, 0)
    mask = torch.arange(12) != 5
    weight = model[1].weight.detach()
    best = (weight[1] - weight[0]).sign() * 0.1
    found = sp.UniversalPerturbation(sp.Linf(0.1, mask=mask)).fit(model, (x, y), steps=20, batch_size=8)
    assert found.delta is not None
    assert found.delta[5] == 0
    assert torch.allclose(found.delta[1:5], best[1:5])
    assert torch.allclose(found.delta[6:], best[6:])
    assert found.delta[0] == (best[0] if best[0] < 0 else 0)


def test_is_what_a_call_says_it_is() -> None:
    model = mlp((3, 4, 5))
    x = inputs(90, (3, 4, 5))[0]
    y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 4  # wrong to begin with
    found = sp.UniversalPerturbation(sp.Linf(0.1)).fit(model, (x, y), steps=30, batch_size=16)
    assert found.delta is not None
    adversarial = found(model, x, y)
    expected = (x + found.delta).clamp(0, 1)
    torch.testing.assert_close(adversarial.x, expected, rtol=0, atol=1e-12)
    logits = model(expected)
    assert torch.equal(adversarial.prediction, logits.argmax(1))
    assert torch.equal(adversarial.success, logits.argmax(1) != y)
    torch.testing.assert_close(adversarial.objective, margin(logits, y).detach())
    torch.testing.assert_close(adversarial.norm, (expected - x).abs().flatten(1).amax(1))
    assert (adversarial.forwards, adversarial.backwards) == (90, 0)
    rate = found.fooling_rate(model, (x, y))
    assert (rate.count, rate.total) == (int(adversarial.success[5:].sum()), 85)


def test_far_above_a_random_sign_perturbation() -> None:
    model = mlp((24,), classes=3, seed=4)
    x = inputs(400, (24,))[0]
    y = model(x).argmax(1)
    threat = sp.Linf(0.15)
    found = sp.UniversalPerturbation(threat).fit(model, (x[:200], y[:200]), steps=100, batch_size=32)
    rates = []
    for seed in range(10):
        sign = torch.randn(24, generator=torch.Generator().manual_seed(seed)).sign()
        random = replace(found, delta=0.15 * sign.double())
        rates.append(random.fooling_rate(model, (x[200:], y[200:])).value)
    assert found.fooling_rate(model, (x[200:], y[200:])).value > max(rates) + 0.15


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0.001, 0.9),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 100),
    classes=st.integers(2, 5),
)
def test_inside_ball_and_box(norm: Any, eps: float, dtype: torch.dtype, seed: int, classes: int) -> None:
    model = mlp((2, 3), classes=classes, seed=seed)
    x = inputs(12, (2, 3), seed=seed)[0].to(dtype)
    y = model(x.double()).argmax(1)
    found = sp.UniversalPerturbation(Threat(norm, eps)).fit(
        lambda z: model(z.double()), (x, y), steps=6, batch_size=4, seed=seed
    )
    assert found.delta is not None
    assert found.delta.dtype == torch.promote_types(dtype, torch.float32)
    size = found.delta.double().abs().max() if norm == "linf" else found.delta.double().norm()
    assert float(size) <= eps * (1 + 1e-6)
    moved = found(lambda z: model(z.double()), x, y).x
    assert moved.dtype == dtype
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert bool((found.threat.size(x, moved) <= eps * (1 + 1e-6)).all())


def test_evaluate_counts_it_at_any_batch_size() -> None:
    model = RowWise((3, 6))
    x = inputs(60, (3, 6))[0]
    y = model(x).argmax(1)
    threat = sp.Linf(0.1)
    found = sp.UniversalPerturbation(threat).fit(model, (x, y), steps=20)
    assert found.record is not None
    expected = int((~found(model, x, y).success).sum())
    for batch_size in (7, 60):
        result = sp.evaluate(model, (x, y), threat, attacks=[found], batch_size=batch_size)
        (row,) = result.document["attacks"]
        assert row["robust_accuracy"]["count"] == expected < 60
        assert (row["name"], row["forwards"], row["backwards"]) == ("UniversalPerturbation", 60, 0)
        assert row["settings"]["fit"] == found.record.to_dict()
    other = replace(found, delta=-found.delta)  # type: ignore[operator]
    assert other.settings()["sha256"] != found.settings()["sha256"] == row["settings"]["sha256"]


def test_file_gives_back_the_same_bits(tmp_path: Path) -> None:
    model = mlp((3, 4, 5), dtype=torch.float32)
    x = inputs(40, (3, 4, 5), dtype=torch.float32)[0]
    y = model(x).argmax(1)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    attack = sp.UniversalPerturbation(sp.L2("1/3", mask=mask), target=1, softness=0.5, step_size=0.1)
    found = attack.fit(model, (x, y), steps=12, batch_size=8)
    assert found.delta is not None
    path = found.save(tmp_path / "new" / "universal.safetensors")
    again = sp.UniversalPerturbation.load(path)
    assert again.delta is not None
    assert torch.equal(again.delta, found.delta)
    assert again.settings() == found.settings()
    assert again.record == found.record
    assert repr(again.threat) == repr(found.threat) == "L2(1/3, masked)"
    assert torch.equal(again(model, x, y).x, found(model, x, y).x)
    assert [p.name for p in path.parent.iterdir()] == ["universal.safetensors"]


def test_autocast_and_no_box_survive_the_file(tmp_path: Path) -> None:
    attack = sp.UniversalPerturbation(sp.Linf(0.1, bounds=None), autocast=torch.bfloat16)
    again = sp.UniversalPerturbation.load(replace(attack, delta=torch.ones(3)).save(tmp_path / "a.safetensors"))
    assert again.autocast is torch.bfloat16
    assert again.threat.bounds is None
    assert again.record is None


def test_files_that_are_none_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        sp.UniversalPerturbation.load(path)
    replace(sp.UniversalPerturbation(sp.Linf(0.1)), delta=torch.ones(3)).save(path)
    with pytest.raises(ValueError, match=r"a UniversalPerturbation: load it with sp\.UniversalPerturbation\.load"):
        sp.AdvGAN.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="not readable as a saved UniversalPerturbation, or cut short"):
        sp.UniversalPerturbation.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="not readable"):
        sp.UniversalPerturbation.load(path)
    from safetensors.torch import save_file

    save_file({"delta": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="weights without settings"):
        sp.UniversalPerturbation.load(path)


def test_several_inputs() -> None:
    """The attacked input gets the perturbation; the others go along, each with its own sample."""

    class Two(nn.Module):
        def forward(self, image: Tensor, shift: Tensor) -> Tensor:
            score = image.sum(1) + shift
            return torch.stack([score, -score], 1)

    model = sp.attacked_input(Two(), "image")
    generator = torch.Generator().manual_seed(0)
    x = {"image": torch.rand(50, 6, generator=generator), "shift": torch.rand(50, generator=generator)}
    y = torch.zeros(50, dtype=torch.int64)
    found = sp.UniversalPerturbation(sp.Linf(0.2, bounds=None)).fit(model, (x, y), steps=10, batch_size=8)
    torch.testing.assert_close(found.delta, torch.full((6,), -0.2))
    result = found(model, x, y)
    assert torch.equal(result.success, (x["image"].sum(1) - 1.2 + x["shift"]) < 0)


NET = linear((12,))
X = inputs(30, (12,))[0]
Y = NET(X).argmax(1)
ATTACK = sp.UniversalPerturbation(sp.Linf(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.UniversalPerturbation(sp.L0(3)), "expected linf, l2"),
        (lambda: sp.UniversalPerturbation(sp.L1(3)), "expected linf, l2"),
        (lambda: sp.UniversalPerturbation(sp.Linf(math.inf)), "finite eps"),
        (lambda: sp.UniversalPerturbation(sp.Linf(torch.tensor([0.1, 0.2]))), "one perturbation for all samples"),
        (lambda: sp.UniversalPerturbation(sp.Linf(0.1), target=-1), "expected a class number"),
        (lambda: sp.UniversalPerturbation(sp.Linf(0.1), targets="random"), "one class for all samples, as in target=3"),
        (lambda: sp.UniversalPerturbation(sp.Linf(0.1), softness=0.0), "above 0"),
        (lambda: sp.UniversalPerturbation(sp.Linf(0.1), step_size=0.0), "above 0"),
        (lambda: ATTACK(NET, X, Y), r"learned nothing yet: UniversalPerturbation\(\.\.\.\)\.fit\(model, data\)"),
        (lambda: ATTACK.save("nowhere"), "learned nothing yet"),
        (lambda: sp.evaluate(NET, (X, Y), sp.Linf(0.1), attacks=[ATTACK]), "learned nothing yet"),
        (lambda: ATTACK.fooling_rate(NET, (X, Y)), "learned nothing yet"),
        (lambda: ATTACK.fit(NET, (X[:0], Y[:0])), "data set is empty"),
        (lambda: ATTACK.fit(NET, (X, 1 - Y)), "0 of 30 samples the model gets right: too few"),
        (lambda: ATTACK.fit(NET, (X, Y), steps=0), "steps=0: expected a whole number"),
        (lambda: ATTACK.fit(NET, (X, Y), batch_size=0), "batch_size=0: expected a whole number"),
        (lambda: ATTACK.fit(NET, (X, Y), held_out=1.0), "held_out=1.0: expected a share"),
        (lambda: replace(ATTACK, target=2).fit(NET, (X, Y)), "target holds classes from 2 to 2, the model has 2"),
        (lambda: ATTACK.fit(NET, (X + 1, Y)), "outside the box"),
        (lambda: replace(ATTACK, delta=torch.ones(5))(NET, X, Y), r"shape \(12,\): .* learned for \(5,\)"),
    ],
)
def test_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_nothing_is_moved() -> None:
    """Model, modes, buffers, gradients and the global random state are as before, also after an error in `progress`."""
    model = convolutional(dtype=torch.float32).train()
    model[3].eval()
    x = inputs(24, (3, 6, 5), dtype=torch.float32)[0]
    y = model.eval()(x).argmax(1)
    model.train()
    model[3].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()

    def stop(message: str, done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.UniversalPerturbation(sp.Linf(0.1)).fit(model, (x, y), steps=2, progress=stop)
    sp.UniversalPerturbation(sp.Linf(0.1)).fit(model, (x, y), steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, True, False, True, True, True]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
