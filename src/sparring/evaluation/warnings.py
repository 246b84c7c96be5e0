"""What makes a verdict doubtful: each warning has a stable code and says what was seen, why it matters and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.records import DONE, Records
from sparring.evaluation.remaining import remaining
from sparring.evaluation.statistics import Proportion


@dataclass(frozen=True)
class Warning:
    """code: stable, for machines. message: seen, why and todo in one. docs/warnings.md has a section for each code."""

    code: str
    message: str
    seen: str = ""
    why: str = ""
    todo: str = ""


MISLED = ("masking", "zero-gradient", "nan-gradient", "loss-not-increasing", "one-step-beats-many", "eps-no-effect")


def loose_curve(warnings: Sequence[Mapping[str, str]]) -> str:
    """A sentence about the accuracy against eps, where gradients mislead: it is drawn by them. Empty where they don't.

    warnings: those of a result document.
    """
    codes = [warning["code"] for warning in warnings if warning["code"] in MISLED]
    if not codes:
        return ""
    return (
        f"below this run's eps the curve is a loose upper bound, since it follows gradients inwards from each example, and "
        f"they mislead here ({', '.join(codes)}): to know the accuracy at a smaller eps, evaluate there."
    )


def _warning(code: str, seen: str, why: str, todo: str) -> Warning:
    return Warning(code, f"{seen} {why} {todo}", seen, why, todo)


def judge(
    records: Records,
    *,
    classes: int,
    attacks: Sequence[Mapping[str, Any]] = (),
    checkup: Mapping[str, int] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> list[Warning]:
    """The warnings that this evidence calls for, the gravest first.

    attacks: rows of the result document, in order; `access` says what each asked of the model. checkup: what
    `checkup.check` found. plan: what the pilot saw, with how many samples `reached` each attack, and how many it `fooled`.
    """
    checkup = checkup or {}
    found = [*_outputs(records, classes), *_answers(records, checkup), *_masking(records, attacks, plan or {})]
    found += [*_gradients(records, checkup)]
    if not (
        _is_random(checkup) or _is_batched(checkup)
    ):  # the rest compares attacks, and luck or company decides there
        found += _other_attacks(checkup)
    found += [*_strength(records, checkup), *_examples(checkup), *_time(records)]
    return found


def judge_texts(records: Records, classes: int) -> list[Warning]:
    """The warnings that an evaluation of texts calls for."""
    found = list(_outputs(records, classes))
    labels = set(records.table["label"].tolist())
    if len(labels) == 1 and len(records) > 1:
        found.append(
            _warning(
                "one-class",
                f"All {len(records)} texts are of class {labels.pop()}.",
                "A model that always says this class would be right every time, and under every attack.",
                "Evaluate on texts of all classes; check how the labels were read.",
            )
        )
    return [*found, *_time(records)]


def clearly(count: int, total: int, share: float, least: int) -> bool:
    """Whether `count` of `total` is no accident: `least` or more, and 95% sure to be more than `share` of all.

    >>> clearly(2, 300, 0.01, 3), clearly(8, 300, 0.01, 3)
    (False, True)
    """
    return count >= least and Proportion(count, total).low > share


def _outputs(records: Records, classes: int) -> Iterator[Warning]:
    table = records.table
    total, right = len(table), int(table["correct"].sum())
    if total and bool(table["probabilities"].all()):
        yield _warning(
            "probabilities",
            "Every output row is non-negative and sums to 1: the model seems to return probabilities.",
            "Their gradients vanish where it is confident, which hides failures.",
            "Return logits: take the softmax off.",
        )
    if total >= 50 and right / total < min(2 / classes, 1 / classes + 0.1):
        yield _warning(
            "low-clean-accuracy",
            f"Only {right} of {total} clean samples are classified correctly, near guessing among {classes} classes.",
            "Robust accuracy says little then.",
            "Check preprocessing (sp.normalized), weights, and the order of classes.",
        )


def _is_random(checkup: Mapping[str, int]) -> bool:
    return 4 * checkup.get("repeats", 0) > checkup.get("samples", 0)


def _is_batched(checkup: Mapping[str, int]) -> bool:
    return 4 * checkup.get("company", 0) > checkup.get("samples", 0)


def _answers(records: Records, checkup: Mapping[str, int]) -> Iterator[Warning]:
    """Does the model answer the same question the same way?"""
    samples, right = checkup.get("samples", 0), int(records.table["correct"].sum())
    random = _is_random(checkup)
    if random and not checkup["combined"]:
        yield _warning(
            "random-model",
            f"Asked twice for the same batch, the model gave other logits for {checkup['repeats']} of {samples} samples, and "
            f"another class for {checkup['turned']}.",
            "An attack on one draw of a random model misses what the next draw shows: gradients are noisy, an example that "
            "fooled once may not fool again, and the robust accuracy comes out too high.",
            "Attack the expectation: wrap the model in sp.expectation, or turn the randomness off.",
        )
    if not random and _is_batched(checkup):
        yield _warning(
            "batch-statistics",
            f"For {checkup['company']} of {samples} samples the logits depend on what else is in the batch.",
            "Then a verdict belongs to a batch and not to a sample, and an attack can use the rest of the batch. As a rule "
            "a BatchNorm layer uses batch statistics: called through torch.nn.functional, or with track_running_stats=False.",
            "Use running statistics: a BatchNorm module in eval mode, or F.batch_norm(..., training=False).",
        )
    unconfirmed = int(records.table["unconfirmed"].sum())
    if unconfirmed > 0.001 * max(1, right):
        yield _warning(
            "not-reproducible",
            f"{unconfirmed} successes against {right} attacked samples were gone when the model was asked again, and were "
            "not counted.",
            "The model may be random, its output may depend on the rest of the batch, or lower precision (autocast) decided.",
            "Evaluate a deterministic model in full precision, or attack the expectation (sp.expectation).",
        )


def _gradients(records: Records, checkup: Mapping[str, int]) -> Iterator[Warning]:
    table = records.table
    right = int(table["correct"].sum())
    zero, broken = int((table["zero"] > 0).sum()), int((table["broken"] > 0).sum())
    if zero > max(2, 0.05 * right):
        yield _warning(
            "zero-gradient",
            f"The gradient was exactly zero at some step for {zero} of {right} attacked samples (a random direction was "
            "taken there).",
            "Saturated logits and non-differentiable parts hide failures from gradient attacks.",
            "Attack without them: remove the saturation, replace the part by a differentiable one (sp.straight_through), or "
            "add an attack that needs no gradients (sp.Square).",
        )
    if broken:
        yield _warning(
            "nan-gradient",
            f"The gradient held NaN or inf for {broken} of {right} attacked samples; those entries were left alone.",
            "The attack is weaker than it looks there.",
            "Look for divisions, square roots or logarithms at 0 in the model.",
        )
    climbs, rises = checkup.get("climbs", 0), checkup.get("rises", 0)
    if climbs >= 20 and rises < 0.85 * climbs and not _is_random(checkup):
        yield _warning(
            "loss-not-increasing",
            f"Of {climbs} small steps along the gradient only {rises} brought the sample nearer to failure.",
            "On a smooth model nearly all of them do: this model's gradient says little about its neighbourhood, and "
            "attacks that follow it stop early.",
            "Look for steps and sorting in the model (rounding, top-k, thresholds), replace them by smooth ones for the "
            "attack (sp.straight_through), or add an attack that needs no gradients (sp.Square).",
        )


def _masking(records: Records, attacks: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> Iterator[Warning]:
    """Attacks that see no gradients get on where those that do have stopped."""
    access = [attack.get("access") for attack in attacks]
    first = access.index("gradients") if "gradients" in access else len(access)
    blind = [i for i in range(first, len(access)) if access[i] in ("scores", "decisions")]
    if not blind or plan.get("random"):  # a search keeps what was luck
        return
    attack, reached, fooled = records.table["attack"], plan.get("reached", ()), plan.get("fooled", ())
    # those that were not shown to them, because they are nowhere near to failure, count as not fooled
    left = int((records.table["correct"] & ((attack < 0) | (attack >= blind[0]))).sum())
    measured = [i for i in blind if i < len(reached)]
    seen = [
        (int((attack[:, None] == blind).sum()), left, "samples"),
        (sum(fooled[i] for i in measured), max((reached[i] for i in measured), default=0), "samples of the pilot"),
    ]
    for found, shown, what in seen:
        if not (clearly(found, shown, 0.01, 3) or (found >= 5 and found > 0.01 * shown)):
            continue
        yield _warning(
            "masking",
            f"An attack without gradients fooled {found} of {shown} {what} that gradient attacks had left standing."
            + _raised(plan),
            "Gradients know more than queries do: where they find less, the model hides them, and the robust accuracy is "
            "likely too high still, and the accuracy at smaller eps even more so.",
            "Don't report this number as robustness. Find what masks the gradients (saturation, rounding, sharp "
            "activations, training against single steps), and attack with more restarts and with attacks adapted to it.",
        )
        return


def _raised(plan: Mapping[str, Any]) -> str:
    """What the pilot did about it."""
    if not plan.get("raised"):
        return ""
    who = "every sample" if plan["raised"] >= 1 else f"every sample with up to {plan['raised']:.0%} of its margin left"
    return f" The pilot had seen it coming: {who} was searched without gradients too."


def _other_attacks(checkup: Mapping[str, int]) -> Iterator[Warning]:
    """What the checkup's own attacks fool of the samples that stand."""
    standing, samples = checkup.get("standing", 0), checkup.get("samples", 0)
    once, ten = checkup.get("one_step", 0), checkup.get("ten_steps", 0)
    only = checkup.get("one_step_only", 0)
    lucky = clearly(only - checkup.get("ten_steps_only", 0), samples, 0.05, 3)
    if clearly(once, standing, 0.05, 3) or lucky:
        against = (
            f"{only} of {samples} samples that ten steps did not"
            if lucky
            else f"{once} of {standing} samples that stand"
        )
        yield _warning(
            "one-step-beats-many",
            f"A single gradient step of length eps fooled {against}.",
            "Many small steps can do all that one can: where they do less, they get stuck, and the robust accuracy is too "
            "high.",
            "Add restarts, larger steps and sp.Square; look for what makes the loss rough near the samples.",
        )
    sizes = {"of length eps": checkup.get("large_steps", 0), "of eps / 10": checkup.get("small_steps", 0)}
    best, most = max(sizes.items(), key=lambda item: item[1])
    if clearly(most - ten, standing, 0.05, 3):
        yield _warning(
            "step-size",
            f"Steps {best} fooled {most} of {standing} samples that stand, steps of eps / 4 only {ten} of them.",
            "The verdict hangs on the step size, so that other step sizes are likely to find more.",
            "Attack with several step sizes (sp.APGD adapts its own), and take the worst case.",
        )
    elif clearly(ten, standing, 0.05, 3):
        share = Proportion(ten, standing)
        yield _warning(
            "weak-attacks",
            f"Ten plain steps on the margin fooled {ten} of {standing} samples that stand: by that the attacks missed "
            f"{share.low:.0%} to {share.high:.0%} of those that they called robust.",
            "A plain attack should find nothing that they did not.",
            "Use attacks='adaptive', more steps, or steps of about eps / 4.",
        )


def _strength(records: Records, checkup: Mapping[str, int]) -> Iterator[Warning]:
    tried, failed = checkup.get("unbounded", 0), checkup.get("unbounded_failed", 0)
    if clearly(failed, tried, 0.05, 3):
        yield _warning(
            "eps-no-effect",
            f"With no limit but the box, {failed} of {tried} samples still were not fooled.",
            "An attacker who may change everything can turn every picture into one of another class: an attack that "
            "fails there is broken, and so is its verdict at a smaller eps.",
            "Look for what stops the gradient: a detached tensor, rounding, saturated logits, clamps.",
        )
    left, total = remaining(records), len(records.table)
    if left is not None and left.late >= 5 and left.estimate > 0.01 * total:
        yield _warning(
            "restarts-find-more",
            f"Of the samples that fell, {left.late} did so in the second half of the effort ({left.effort} passes for a "
            f"sample that stood it all) and {left.before} in the quarter before it: twice the effort would fool about "
            f"{left.estimate:.0f} more (90% interval: {left.low} to {left.high}), and that is not the end.",
            "Attacks that have come to an end find next to nothing at last; these had not.",
            "Give them more steps and restarts, until the last ones find nothing new.",
        )


def _examples(checkup: Mapping[str, int]) -> Iterator[Warning]:
    tried, lost = checkup.get("rounded", 0), checkup.get("rounded_away", 0)
    if not _is_random(checkup) and clearly(lost, tried, 0.1, 3):
        yield _warning(
            "rounding",
            f"{lost} of {tried} adversarial examples fool no more when they are rounded to 8 bits, as in an image file, also "
            "after ten more steps.",
            "As they are, they don't prove that these samples fall to an attacker who sends image files; such an attacker "
            "may find others, or none.",
            "To know, evaluate a model that rounds its input to 8 bits first (sp.straight_through).",
        )


def _time(records: Records) -> Iterator[Warning]:
    in_flight = int((records.table["state"] != DONE).sum())
    if in_flight:
        yield _warning(
            "time-limit",
            f"Time ran out with {in_flight} samples still under attack; they count as not fooled.",
            "So the robust accuracy is a looser bound.",
            "Start again with the same out folder to go on.",
        )
