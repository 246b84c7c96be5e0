"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparring.ascent import Trace


@dataclass(frozen=True, eq=False)
class Adversarial:
    """The best iterate of each of B samples, and what it cost.

    x: (B, *S), the dtype and device of the inputs. success: (B,) bool, the prediction is wrong, or the target where there
    is one. prediction: (B,) int64, −1 where the logits were not finite. objective: (B,) what the attacker maximised.
    norm: (B,) size of the change in the threat's norm. An attack that searches for the smallest perturbation gives the nearest
    example also where that is beyond eps (success says whether it is within), and where it found none the input, with a
    norm of inf. targets: (B,) int64 or None.
    forwards, backwards: samples passed through the model in each direction, in total.
    zero_gradients, broken_gradients: (B,) steps at which a sample's gradient was all zero (a random direction was taken
    instead), or held NaN or inf (those entries were left alone).
    trace: objective, prediction and confidence per step, where `trace=True` asked for it.
    """

    x: Tensor
    success: Tensor
    prediction: Tensor
    objective: Tensor
    norm: Tensor
    forwards: int
    backwards: int
    zero_gradients: Tensor
    broken_gradients: Tensor
    targets: Tensor | None = None
    trace: Trace | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        largest = float(self.norm.max()) if len(self) else 0.0
        return (
            f"Adversarial({int(self.success.sum())} of {len(self)} succeeded, norm ≤ {largest:.4g}, "
            f"{self.forwards} forwards, {self.backwards} backwards)"
        )
