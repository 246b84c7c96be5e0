"""docs/figures/two-moons.gif: six labels spread over two moons, epoch by epoch.

python docs/figures/make_moons.py [FILE] [--epochs N]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor, nn

import sparring as sp
from sparring.data import few_labels, two_moons
from sparring.inspection import style

POINTS, LABELS, EPS, GRID, DPI = 400, 6, 0.25, 120, 80
X, Y = (-1.6, 2.6), (-1.15, 1.65)
METHODS = {"labels only": sp.Standard, "VAT": lambda: sp.VAT(EPS)}


class Watch:
    """Keeps, after each epoch, the probability of class 1 on a grid, (GRID, GRID), and the error on all points."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        sides = torch.linspace(*Y, GRID), torch.linspace(*X, GRID)
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        self.grid = torch.stack([columns, rows], 2).view(-1, 2)
        self.seen: list[tuple[np.ndarray[Any, Any], float]] = []

    @torch.no_grad()
    def after_epoch(self, run: Any) -> None:
        shares = run.model(self.grid).softmax(1)[:, 1].view(GRID, GRID).numpy()
        error = float((run.model(self.x).argmax(1) != self.y).float().mean())
        self.seen.append((shares, error))


def learn(method: str, epochs: int, seed: int = 0) -> tuple[Watch, Tensor]:
    """What was seen while the network learned, and which points had labels."""
    x, y = two_moons(POINTS, noise=0.08, seed=seed)
    chosen = torch.from_numpy(few_labels(y.numpy(), LABELS, seed))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
    watch, strategy = Watch(x, y), METHODS[method]()
    # the same number of steps for both: an epoch is what the unlabelled points take
    given = {"unlabelled": x, "unlabelled_batch_size": POINTS} if strategy.takes_unlabelled else {}
    sp.fit(
        model, (x[chosen], y[chosen]), strategy, epochs=epochs, optimizer="adam", lr=0.005, schedule="constant",
        validation=False, callbacks=[watch], **given,
    )  # fmt: skip
    return watch, chosen


def page(watches: dict[str, Watch], chosen: Tensor, epoch: int) -> np.ndarray[Any, Any]:
    """The picture after this epoch (from 0), (H, W, 3) uint8."""
    figure = style.new_figure(9.4, 3.9)
    for axes, (method, watch) in zip(figure.subplots(1, len(watches)), watches.items()):
        shares, error = watch.seen[epoch]
        panel(axes, watch, shares, chosen)
        style.title(axes, f"{method}: epoch {epoch + 1}, error {error:.1%}")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def panel(axes: Axes, watch: Watch, shares: np.ndarray[Any, Any], chosen: Tensor) -> None:
    style.dress(axes)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(shares, extent=(*X, *Y), origin="lower", cmap=style.SIGNED, vmin=0, vmax=1, alpha=0.55, aspect="equal")
    axes.contour(shares, levels=[0.5], extent=(*X, *Y), colors=style.INK, linewidths=1.2)
    axes.scatter(*watch.x.T, s=7, color=style.MUTED, linewidths=0)
    for label, color, marker in ((0, style.CLEAN, "o"), (1, style.ROBUST, "s")):
        mine = watch.x[chosen][watch.y[chosen] == label]
        axes.scatter(*mine.T, s=70, color=color, marker=marker, edgecolors=style.PAPER, linewidths=1.5, zorder=3)


def make(path: Path, epochs: int = 240) -> dict[str, float]:
    """Writes the animation; the last error of each method."""
    learned = {method: learn(method, epochs) for method in METHODS}
    watches = {method: watch for method, (watch, _) in learned.items()}
    chosen = next(iter(learned.values()))[1]
    # early epochs one by one, later ones in larger strides
    numbers = sorted({round(i) for i in np.geomspace(1, epochs, min(epochs, 44))})
    pages = [page(watches, chosen, number - 1) for number in numbers]
    with style.settings():
        palette = Image.fromarray(np.concatenate(pages[:: max(1, len(pages) // 3)])).quantize(
            128, dither=Image.Dither.NONE
        )
    frames = [Image.fromarray(one).quantize(palette=palette, dither=Image.Dither.NONE) for one in pages]
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        durations = [130] * (len(frames) - 1) + [2500]
        frames[0].save(
            partial, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return {method: watch.seen[-1][1] for method, watch in watches.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("two-moons.gif"))
    parser.add_argument("--epochs", type=int, default=240)
    given = parser.parse_args()
    for method, error in make(given.file, given.epochs).items():
        print(f"{method}: error {error:.1%}")
