"""How far a Trainer has come."""

from __future__ import annotations

import math
from typing import Any


def done(trainer: Any, position: float) -> float:
    """The fraction of training that lies behind when so many batches of this epoch do."""
    fractions = [0.0]
    if (trainer.max_epochs or -1) > 0:
        inside = position / trainer.num_training_batches if trainer.num_training_batches < math.inf else 0.0
        fractions.append((trainer.current_epoch + inside) / trainer.max_epochs)
    if trainer.max_steps > 0:
        fractions.append(trainer.global_step / trainer.max_steps)
    return min(max(fractions), 1.0)
