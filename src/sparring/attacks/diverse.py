"""Input diversity: gradients of randomly changed inputs, which transfer better."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from sparring.ascent import Pool
from sparring.attacks.sign import MIFGSM
from sparring.borrow import Borrowed
from sparring.noise import Noise
from sparring.rows import Rows
from sparring.transforms import ResizedAndPadded, need_images


@dataclass(frozen=True)
class DIFGSM(MIFGSM):
    """Diverse-inputs iterative FGSM, made to transfer. Xie et al. (2019), with the momentum of Dong et al. (2018).

    At each step, with this `probability`, the model sees each sample shrunk to a random size, from `resize` times its side
    up, and put at a random place of a black canvas of its own size: the gradient fits the source's quirks less.
    decay=0 is the paper's DI-FGSM, decay=1 its M-DI-FGSM. Images (B, C, H, W) only, of any shape.

    What the model answers to a changed input is no success. So only the last iterate, which it sees as it is, is judged and
    returned: a sample takes all K steps, also in `evaluate`, which cost K backwards and K + 1 forwards as ever.
    step_size: in input units; default as for `IFGSM` (the paper takes eps / steps).
    """

    probability: float = 0.5
    resize: float = 0.9
    keep: str = field(default="last", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "last":
            raise ValueError(f"DIFGSM(keep={self.keep!r}): only the last iterate is seen as it is; expected 'last'")
        try:
            self.transform()
        except ValueError as error:
            raise ValueError(f"DIFGSM: {error}") from None

    def transform(self) -> ResizedAndPadded:
        return ResizedAndPadded(self.probability, self.resize)

    def begin(self, rows: Rows, noise: Noise) -> Tensor:
        need_images(rows.original, "DIFGSM")
        return super().begin(rows, noise)

    def pool(self, model: Borrowed, **settings: Any) -> Pool:
        return _DiversePool(model, self, self.climbs(), **settings)


class _DiversePool(Pool):
    """The loop, in which the gradient is taken through a random change of the input."""

    recipe: DIFGSM

    def _probe(self, rows: Rows, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows.forwards, rows.backwards = rows.forwards + 1, rows.backwards + 1
        transform = self.recipe.transform()
        numbers = Noise(self.seed, rows.index).uniform(
            (transform.numbers,), "diversity", rows.restart, rows.step, like=rows.x
        )
        return self.model.probe(point, partial(self._value, rows), rows.context, lambda x: transform.at(x, numbers))
