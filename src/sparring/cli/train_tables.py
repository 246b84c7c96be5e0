"""The texts that ``sparring train --task text`` learns from and validates on, and what is to be said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparring.cli.console import note

if TYPE_CHECKING:
    from sparring.cli.train_text import TextTrainSettings
    from sparring.data import LabelledTexts
    from sparring.text import TextClassifier


def read(settings: TextTrainSettings) -> tuple[LabelledTexts, LabelledTexts | None, list[str]]:
    """What is learned from, what is held out where that is other texts, and texts without labels."""
    from sparring import data

    columns: dict[str, Any] = {"encoding": settings.encoding, "skip_bad": settings.skip_bad}
    columns |= {"text_column": settings.text_column, "label_column": settings.label_column}
    texts = data.open_texts(settings.data, "train", **columns)
    _tell_skipped(texts.skipped)
    held = None
    if settings.validation not in (None, "none"):
        held = data.open_texts(settings.validation, "validation", **columns, classes=texts.classes)
        _tell_skipped(held.skipped)
        _tell_missing(held)
    elif settings.validation is None and settings.data in data.TEXT_NAMES:
        held = data.open_texts(settings.data, "validation")
    return texts, held, [] if settings.unlabelled is None else _unlabelled(settings.unlabelled, columns)


def _unlabelled(spec: str, columns: dict[str, Any]) -> list[str]:
    from sparring.data.text import open_unlabelled_texts

    try:
        texts, skipped = open_unlabelled_texts(spec, **columns)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--unlabelled {error}") from None
    _tell_skipped(skipped)
    return texts


def _tell_skipped(skipped: tuple[str, ...]) -> None:
    if skipped:
        note(f"left out: {skipped[0]}{f' (and {len(skipped) - 1} more)' if len(skipped) > 1 else ''}")


def _tell_missing(held: LabelledTexts) -> None:
    """Say which classes the best epoch is chosen without."""
    there = sorted(set(held.labels))
    if len(there) < len(held.classes):
        others = ", ".join(name for number, name in enumerate(held.classes) if number not in there)
        only = f"only {held.classes[there[0]]!r}" if len(there) == 1 else f"no {others}"
        note(
            f"--validation {held.name} holds {only}: its accuracy, which chooses the best epoch, says nothing of {others}"
        )


def tell_unknown(classifier: TextClassifier, texts: LabelledTexts) -> None:
    """Say how much of what it will be tried on it can't read."""
    unknown = classifier.tokens.unknown_id
    if unknown is None:
        return
    x = classifier.encode(texts.texts)
    share = float((x.words & (x.ids == unknown)).sum() / x.words.sum().clamp_min(1))
    if share > 0.05:
        note(f"{share:.0%} of the words of {texts.name} are not in the vocabulary: they all read as [UNK]")
