"""Draws the pictures of docs/gallery.md from the bundled Fashion-MNIST: `make gallery`, or the names of some.

Networks that take long to train are kept for the next time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from sparring import data, inspection, zoo
from sparring.experiments.networks import Recipe, trained
from sparring.inspection import style
from sparring.training.symptoms import Examination

HERE = Path(__file__).parent / "gallery"
EPS = 8 / 255
THREAT = sp.Linf("8/255")
QUIET: dict[str, Any] = {"validation": False, "health": False, "progress": False}
EVERY: list[Callable[[], None]] = []


def picture(draw: Callable[[], None]) -> Callable[[], None]:
    EVERY.append(draw)
    return draw


def save(figure: Figure, name: str) -> None:
    path = HERE / f"{name}.png"
    Image.fromarray(style.rendered(figure, 120)).save(path, optimize=True)


images = data.open("fashion-mnist:bundled", "train")
X, Y = images.tensors()
x, y = data.open("fashion-mnist:bundled", "test").tensors()
names = images.classes
plain_recipe = Recipe("small-cnn", epochs=6, lr=1e-3)
plain, _ = trained(plain_recipe, X, Y, 10)
robust, _ = trained(replace(plain_recipe, fgsm=2 * EPS, epochs=8), X, Y, 10)
BOTH = {"plain": plain, "trained on FGSM examples": robust}
fresh = zoo.build("small-cnn", seed=3).eval()


def sample(label: int, number: int = 0) -> Tensor:
    """A test image of that class which both networks get right."""
    with torch.no_grad():
        right = (plain(x).argmax(1) == y) & (robust(x).argmax(1) == y)
    return x[(right & (y == label)).nonzero().flatten()[number]]


def telling() -> tuple[Tensor, int]:
    """A test image on which the two networks differ: one of them is fooled inside the ball, the other is sure."""
    made = [sp.PGD(THREAT, steps=20)(net, x[:400], y[:400]).success for net in (plain, robust)]
    with torch.no_grad():
        sure = (robust(x[:400]).softmax(1).max(1).values > 0.9) & (plain(x[:400]).argmax(1) == y[:400])
    row = int((made[0] & ~made[1] & sure).nonzero()[0])
    return x[row], int(y[row])


def seen(net: nn.Module, pictures: Tensor) -> list[tuple[str, float]]:
    with torch.no_grad():
        chance, predicted = net(pictures).softmax(1).max(1)
    return [(names[i], sure) for i, sure in zip(predicted.tolist(), chance.tolist())]


@picture
def ascents() -> None:
    sandal = sample(5, 4)
    trained_way = inspection.ascend_class(plain, sandal, 8, confidence=0.95, names=names)
    trained_way.save(HERE / "ascend-trained.gif")
    save(trained_way.figure(), "ascend-trained")
    untrained = inspection.ascend_class(fresh, sandal, 8, names=names)
    save(untrained.figure(), "ascend-untrained")
    print(trained_way, untrained)


@picture
def saliency() -> None:
    figure = style.new_figure(10.2, 10.0)
    for part, (title, net) in zip(
        figure.subfigures(3, 1), {"untrained": fresh, "trained": plain, "trained on FGSM examples": robust}.items()
    ):
        inspection.saliency(net, sample(5, 4), 5, names=names, fig=part)
        part.suptitle(title, x=0.01, ha="left", fontsize=12, color=style.INK)
    save(figure, "saliency")


@picture
def confused() -> None:
    with torch.no_grad():
        logits = plain(x)
    top, classes = logits.topk(2, 1)
    close = ((top[:, 0] - top[:, 1]) < 0.2) & (top[:, 1] > 3) & (y == classes[:, 1])
    row = int(close.nonzero()[0, 0])
    _, gradients = inspection.logit_gradients(plain, x[[row]], classes[[row]])
    pair, values = classes[row].tolist(), top[row].tolist()
    save(
        inspection.confused_logits(
            x[row], gradients[0], (pair[0], pair[1]), (values[0], values[1]), label=int(y[row]), names=names
        ),
        "confused-logits",
    )


@picture
def triptych() -> None:
    boot = sample(9)[None]
    made = sp.PGD(THREAT, steps=20)(plain, boot, torch.tensor([9])).x
    save(
        inspection.triptych(
            boot[0], made[0], before=seen(plain, boot)[0], after=seen(plain, made)[0], note="L∞ norm 8/255"
        ),
        "triptych",
    )


@picture
def examples() -> None:
    rows = torch.stack([sample(label) for label in (0, 2, 3, 5, 7, 8, 9)])
    labels = torch.tensor([0, 2, 3, 5, 7, 8, 9])
    made = sp.PGD(sp.Linf("16/255"), steps=20)(plain, rows, labels).x
    save(inspection.gallery(rows, made, before=seen(plain, rows), after=seen(plain, made)), "examples")


@picture
def curves() -> None:
    results = {name: sp.evaluate(net, (x[:300], y[:300]), sp.Linf("16/255")) for name, net in BOTH.items()}
    save(
        inspection.accuracy_curves(
            {name: r.curve for name, r in results.items()},
            eps=EPS,
            eps_typed="8/255",
            title="Fashion-MNIST, 300 test images",
        ),
        "accuracy-curves",
    )


@picture
def norms() -> None:
    least = {name: sp.FMN(THREAT, steps=100)(net, x[:400], y[:400]).norm for name, net in BOTH.items()}
    few = {name: sizes[sizes > 0] for name, sizes in least.items()}  # of those that are right to begin with
    save(inspection.norm_histogram(few, norm="linf", eps=EPS, eps_typed="8/255", bins=32), "norms")


@picture
def surfaces() -> None:
    clear, label = telling()
    for name, draw in (("loss-surface", inspection.loss_surface), ("decision-plane", inspection.decision_plane)):
        figure = style.new_figure(11.4, 4.6)
        for axes, (title, net) in zip(figure.subplots(1, 2), BOTH.items()):
            more = {"highest": 6.0, "points": 41} if name == "loss-surface" else {"names": names, "reach": 3.0}
            draw(net, clear, label, EPS, title=title, ax=axes, **more)  # type: ignore[operator]
        save(figure, name)


@picture
def along() -> None:
    clear, label = telling()
    save(inspection.logits_along(plain, clear, label, reach=0.15, names=names), "logits-along")


@picture
def optimizers() -> None:
    boot = sample(9)[None]
    losses, reached = {}, {}
    for name in ("SGD", "RMSprop", "Adam"):
        attack = sp.OptimizerAttack(None, name, lr=0.01, steps=60, trace=True)
        trace = attack(plain, boot, torch.tensor([9]), targets=torch.tensor([8])).trace
        assert trace is not None
        losses[name] = (-trace.objective[:, 0]).tolist()
        hits = (trace.prediction[:, 0] == 8).nonzero().flatten().tolist()
        reached[name] = hits[0] if hits else None
    save(
        inspection.loss_curves(
            losses,
            reached=reached,
            log=True,
            ylabel="cross-entropy of the target",
            title="An ankle boot towards a bag, lr 0.01",
        ),
        "loss-curves",
    )


@picture
def transfer() -> None:
    linear, _ = trained(Recipe("softmax", epochs=6, lr=1e-3), X, Y, 10)
    nets = {"plain": plain, "softmax": linear, "FGSM-trained": robust}
    save(sp.transfer_matrix(nets, (x, y), sp.Linf("24/255"), max_samples=300).figure(), "transfer")


@picture
def trainings() -> None:
    runs = {}
    for name, strategy in {
        "standard": sp.Mixed(sp.FGSM(THREAT), alpha=1.0),
        "FastFGSM": sp.FastFGSM(THREAT),
        "PGD, 3 steps": sp.PGDTraining(THREAT, steps=3),
    }.items():
        runs[name] = sp.fit(
            zoo.build("small-cnn", seed=0), (X[:5000], Y[:5000]), strategy, epochs=8, lr=0.05, batch_size=128, schedule="cosine",
            validation=(x[:500], y[:500]), validation_attack=sp.PGD(THREAT, steps=5), health=False, progress=False,
        )  # fmt: skip
    save(inspection.training_curves(runs), "training-curves")


@picture
def regions() -> None:
    points, labels = data.two_moons(160, noise=0.12)
    figure = style.new_figure(10.4, 4.5)
    for axes, (title, strategy) in zip(
        figure.subplots(1, 2),
        {"standard": sp.Standard(), "PGD training, eps 0.3": sp.PGDTraining(sp.L2(0.3, bounds=None), steps=5)}.items(),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        sp.fit(net, (points, labels), strategy, epochs=200, lr=0.05, batch_size=32, **QUIET)
        inspection.decision_regions(net, points, labels, ax=axes)
        axes.set_xlabel(title)
    save(figure, "decision-regions")


@picture
def drift() -> None:
    net = zoo.build("small-resnet", in_channels=1, seed=0)
    learner = torch.optim.SGD(net.train().parameters(), lr=0.05)
    for part in torch.arange(500).split(50):  # a plain loop: fit would settle the statistics in the end
        nn.functional.cross_entropy(net(X[part]), Y[part]).backward()
        learner.step()
        learner.zero_grad()
    found = Examination(net, X[:200], Y[:200]).drift()
    values = {
        "shift of the mean, in σ": [layer.shift for layer in found],
        "stretch, log of the variances' ratio": [layer.stretch for layer in found],
    }
    save(inspection.layer_bars([layer.name for layer in found], values, limit=0.5), "batchnorm-drift")


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for draw in EVERY:
        if not wanted or draw.__name__ in wanted:
            draw()
            print(draw.__name__, flush=True)
