"""`AdversarialCallback`: a module of one's own, unchanged, learns from adversarial examples and is measured."""

from __future__ import annotations

from collections import namedtuple
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from sparring.training.strategy import Strategy

pl = pytest.importorskip("lightning.pytorch")

from sparring.lightning import AdversarialCallback, Indexed  # noqa: E402  # which needs Lightning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Lightning's own
THREAT = sp.Linf(0.1)
X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0.5).long() + (X[:, 1] > 0.7).long()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


class Own(pl.LightningModule):
    """Knows nothing of adversaries. Remembers what its training steps were given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.given: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.given.append(batch)
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch[:2]
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("own", float(len(batch[0])))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(*callbacks: Any, **given: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet, **given}
    return pl.Trainer(callbacks=list(callbacks), **settings)


def loader(data: Any = None, **given: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y) if data is None else data, **{"batch_size": 8, **given})


def by_hand(strategy: Strategy, epochs: int = 1) -> tuple[nn.Module, list[Tensor]]:
    """The same in a plain loop, and the examples."""
    net, seen = network(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()) if net.training else None)
    for _ in range(epochs):
        for start in range(0, 20, 8):
            for loss in strategy(net, (X[start : start + 8], Y[start : start + 8])):
                loss.value.backward()
                optimizer.step()
                optimizer.zero_grad()
    return net, seen


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("against", "strategy"),
    [
        (THREAT, sp.PGDTraining(THREAT)),
        (sp.FGSM(THREAT), sp.FGSMTraining(THREAT)),
        (sp.NFGSM(THREAT, bn="eval"), sp.NFGSM(THREAT, bn="eval")),
        (sp.Mixed(sp.FGSM(THREAT), alpha=0.5, fraction=0.5), sp.Mixed(sp.FGSM(THREAT), alpha=0.5, fraction=0.5)),
        (sp.PGDTraining(THREAT, schedule={0: 0, 2: 3}), sp.PGDTraining(THREAT, schedule={0: 0, 2: 3})),
    ],
    ids=["threat", "attack", "nfgsm", "fraction", "schedule"],
)
def test_trains_as_the_strategy_does(against: Any, strategy: Strategy) -> None:
    module, callback = Own(), AdversarialCallback(against)
    trainer(callback, max_epochs=3).fit(module, loader())
    net, examples = by_hand(strategy, 3)
    for mine, theirs in zip((batch[0] for batch in module.given), examples, strict=True):
        order = [*range(len(mine))]
        if callback.strategy.fraction < 1:  # there the clean ones come first
            count = round(len(mine) / 2)
            order = order[count:] + order[:count]
        assert (mine[order] - theirs).abs().max() < 1e-12
    assert all((p - q).abs().max() < 1e-12 for p, q in zip(net.parameters(), module.net.parameters(), strict=True))
    assert callback.strategy.batches == 9
    mine, theirs = (each.statistics.drift for each in (callback.strategy, strategy))
    assert (mine is None and theirs is None) or mine.forwards == theirs.forwards == 9


def test_a_part_of_one_sample_is_crafted_beside_its_neighbour() -> None:
    """Half of a last batch of two: alone it would have no batch statistics."""
    module = Own()
    data = TensorDataset(X[:10], Y[:10])
    trainer(AdversarialCallback(sp.Mixed(sp.FGSM(THREAT), alpha=0.5, fraction=0.5, bn="batch")), max_epochs=1).fit(
        module, DataLoader(data, batch_size=8)
    )
    assert [len(batch[0]) for batch in module.given] == [8, 2]
    changed = [(batch[0] - own).abs().amax(1) > 0 for batch, own in zip(module.given, (X[:8], X[8:10]), strict=True)]
    assert [each.tolist() for each in changed] == [[True] * 4 + [False] * 4, [True, False]]


def test_another_trainer_begins_anew() -> None:
    """What was kept for the samples was of another training."""
    data = Indexed(TensorDataset(X, Y))
    callback, given = AdversarialCallback(sp.PGDTraining(THREAT, 1, keep=True)), []
    for _ in range(2):
        module = Own()
        trainer(callback, max_epochs=2).fit(module, loader(data=data))
        given.append(torch.cat([batch[0] for batch in module.given]))
        assert callback.strategy.batches == len(module.given)
    assert torch.equal(*given)


def test_batches_keep_their_kind() -> None:
    Pair = namedtuple("Pair", "image label")
    kinds = {
        "tuple": lambda items: tuple(torch.stack(part) for part in zip(*items)),
        "named": lambda items: Pair(*(torch.stack(part) for part in zip(*items))),
        "dict": lambda items: dict(zip(("image", "label"), (torch.stack(part) for part in zip(*items)))),
    }
    for name, collate in kinds.items():
        module, plain = Own(), Own()
        trainer(AdversarialCallback(THREAT)).fit(module, loader(collate_fn=collate))
        trainer().fit(plain, loader(collate_fn=collate))
        for mine, theirs in zip(module.given, plain.given, strict=True):
            assert type(mine) is type(theirs)
            (x, y), (clean, label) = (list(b.values()) if name == "dict" else b for b in (mine, theirs))
            assert torch.equal(y, label)
            assert 0.05 < (x - clean).abs().max() <= 0.1 + 1e-12


def test_names_of_fields_and_of_the_network() -> None:
    class Named(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, i: int) -> Any:
            return {"image": X[i], "label": Y[i], "camera": 3}

    class Silent(Own):
        forward = pl.LightningModule.forward

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.raises(TypeError, match="'image', 'label', 'camera': expected"):
        trainer(AdversarialCallback(THREAT)).fit(Own(), loader(Named()))
    named = Own()
    trainer(AdversarialCallback(THREAT, fields=("image", "label"))).fit(named, loader(Named()))
    with pytest.raises(ValueError, match=r"Silent has no forward.*network="):
        trainer(AdversarialCallback(THREAT)).fit(Silent(), loader())
    with pytest.raises(ValueError, match="network='nett': the module has no such part; it has net"):
        trainer(AdversarialCallback(THREAT, network="nett")).fit(Own(), loader())
    silent = Silent()
    trainer(AdversarialCallback(THREAT, network="net")).fit(silent, loader())
    assert same(named.net, silent.net)


def test_kept_perturbations_need_numbers() -> None:
    made = sp.PGDTraining(THREAT, steps=1, keep=True)
    with pytest.raises(ValueError, match=r"Indexed\(data\)"):
        trainer(AdversarialCallback(made)).fit(Own(), loader())
    callback = AdversarialCallback(made)
    trainer(callback).fit(Own(), loader(Indexed(TensorDataset(X, Y)), shuffle=True))
    assert callback.strategy.kept.known[:20].all()


def test_the_module_is_given_back() -> None:
    class Fails(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("mine")

    for kind in (Own, Fails):
        module, callback = kind(), AdversarialCallback(THREAT)
        with pytest.raises(RuntimeError, match=r"^mine$") if kind is Fails else nullcontext():
            trainer(callback).fit(module, loader())
        assert "training_step" not in vars(module)
        assert all(p.requires_grad for p in module.parameters())
    module = Own()
    trainer(AdversarialCallback(THREAT, train=False)).fit(module, loader())
    assert torch.equal(torch.cat([batch[0] for batch in module.given]), X)


@pytest.mark.parametrize(
    "strategy",
    [
        sp.YOPO(THREAT),
        sp.Free(THREAT),
        sp.TRADES(THREAT),
        sp.PGDTraining(THREAT, alpha=0.5),
        sp.PGDTraining(THREAT).with_(sp.EMA()),
        sp.PGDTraining(THREAT, label_smoothing=0.1),
        sp.Standard(),
    ],
    ids=lambda strategy: strategy.name,
)
def test_strategies_with_more_than_examples_need_the_module(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=f"{strategy.name} as given needs AdversarialModule"):
        AdversarialCallback(strategy)
    AdversarialCallback(strategy, train=False)


def test_other_refusals() -> None:
    class Manual(Own):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match=r"Manual optimises by hand.*AdversarialModule"):
        trainer(AdversarialCallback(THREAT)).fit(Manual(), loader())
    with pytest.raises(TypeError, match="expected a threat, an attack or a strategy"):
        AdversarialCallback(0.1)
    with pytest.raises(ValueError, match="samples=0"):
        AdversarialCallback(THREAT, samples=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_measures_the_first_samples_of_each_epoch(precision: str) -> None:
    module, data = Own().float(), TensorDataset(X.float(), Y)
    attack = sp.PGD(THREAT, 4)
    callback = AdversarialCallback(attack, train=False, samples=13)
    run = trainer(callback, max_epochs=2, precision=precision)
    run.fit(module, loader(data), loader(data))
    net = module.net.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        clean = net(X[:13].float()).argmax(1) == Y[:13]
    cast = sp.PGD(THREAT, 4, autocast=torch.bfloat16) if precision != "32-true" else attack
    robust = clean & (cast(net, X[:13].float(), Y[:13]).prediction == Y[:13])
    assert robust.sum() < clean.sum()
    expected = [pytest.approx(right.double().mean().item()) for right in (clean, robust)]
    assert [run.callback_metrics[f"val_{name}_accuracy"].item() for name in ("clean", "robust")] == expected
    assert "own" in run.callback_metrics
    tested = run.test(module, loader(data, batch_size=3), verbose=False)[0]  # in inference mode
    assert [tested[f"test_{name}_accuracy"] for name in ("clean", "robust")] == expected


def test_state_is_in_the_checkpoint(tmp_path: Any) -> None:
    """Draws are keyed by the batch's number, so a training that goes on needs to know it."""
    made = lambda: AdversarialCallback(sp.PGDTraining(THREAT, steps=2))  # noqa: E731
    straight, resumed = Own(), Own()
    trainer(made(), max_epochs=2).fit(straight, loader())
    first = trainer(made())
    first.fit(resumed, loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = Own()
    trainer(made(), max_epochs=2).fit(again, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert same(straight.net, again.net)
    assert not same(straight.net, resumed.net)


def test_in_the_other_namespace() -> None:
    other = pytest.importorskip("pytorch_lightning")
    from sparring.lightning.pytorch_lightning import AdversarialCallback as Other

    class Mine(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    own, mine = Own(), Mine()
    trainer(AdversarialCallback(THREAT)).fit(own, loader())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet}
    other.Trainer(callbacks=[Other(THREAT)], **settings).fit(mine, loader())
    assert same(own.net, mine.net)
