"""What makes a verdict doubtful: each warning has a stable code and says what was seen and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.evaluation.records import DONE, Records


@dataclass(frozen=True)
class Warning:
    """code: stable, for machines. message: what was seen, why it matters, what to do."""

    code: str
    message: str


def judge(records: Records, *, classes: int) -> list[Warning]:
    """The warnings that these records call for."""
    table, found = records.table, []
    total = len(table)
    if total and bool(table["probabilities"].all()):
        found.append(
            Warning(
                "probabilities",
                "every output row is non-negative and sums to 1: the model seems to return probabilities. Their gradients "
                "vanish where it is confident, which hides failures. Return logits: take the softmax off.",
            )
        )
    right = int(table["correct"].sum())
    if total >= 50 and right / total < 2 / classes:
        found.append(
            Warning(
                "low-clean-accuracy",
                f"only {right} of {total} clean samples are classified correctly, near guessing among {classes} classes. "
                "Robust accuracy says little then. Check preprocessing (sp.normalized), weights, and the order of classes.",
            )
        )
    attacked = max(1, right)
    zero = int((table["zero"] > 0).sum())
    if zero > max(2, 0.05 * attacked):
        found.append(
            Warning(
                "zero-gradient",
                f"the gradient was exactly zero at some step for {zero} of {right} attacked samples (a random direction was "
                "taken there). Saturated logits or non-differentiable parts hide failures from gradient attacks. "
                "Attack without them: remove the saturation, or replace the part by a differentiable one.",
            )
        )
    broken = int((table["broken"] > 0).sum())
    if broken:
        found.append(
            Warning(
                "nan-gradient",
                f"the gradient held NaN or inf for {broken} of {right} attacked samples; those entries were left alone. "
                "The attack is weaker than it looks there. Look for divisions, square roots or logarithms at 0 in the model.",
            )
        )
    unconfirmed = int(table["unconfirmed"].sum())
    if unconfirmed > 0.001 * attacked:
        found.append(
            Warning(
                "not-reproducible",
                f"{unconfirmed} successes of {right} attacked samples were gone when the model was asked again, and were not "
                "counted. The model may be random, or its output may depend on the rest of the batch.",
            )
        )
    in_flight = int((table["state"] != DONE).sum())
    if in_flight:
        found.append(
            Warning(
                "time-limit",
                f"time ran out with {in_flight} samples still under attack; they count as not fooled, so the robust accuracy is "
                "a looser bound. Start again with the same out folder to go on.",
            )
        )
    return found
