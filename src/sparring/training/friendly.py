"""PGD that goes no further than it must."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from sparring.ascent import Pool
from sparring.attacks.pgd import PGD
from sparring.rows import Rows


@dataclass(frozen=True)
class FriendlyPGD(PGD):
    """Lets a sample go where the model errs on it, for the time number tau + 1. Zhang et al. (2020).

    Unlike `stop_when_fooled` of an attack it doesn't ask again in full precision whether the model really errs: nobody's
    verdict hangs on it.
    """

    tau: int = field(default=0, kw_only=True)

    def pool(self, model: Any, **settings: Any) -> Pool:
        return _Friendly(model, self, self.climbs(), **settings)


class _Friendly(Pool):
    def _leaving(self, rows: Rows) -> Tensor:
        wrong = rows.fools.long()
        rows.memory["wrong"] = rows.memory["wrong"] + wrong if "wrong" in rows.memory else wrong
        left: Tensor = rows.memory["wrong"] > cast(FriendlyPGD, self.recipe).tau
        return left
