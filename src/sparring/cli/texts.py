"""Texts on the command line: their data, their models, their attacks, and ``sparring evaluate --task text``."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.cli import models
from sparring.cli.app import Outcome
from sparring.cli.console import note, watching
from sparring.cli.settings import TextSettings
from sparring.cli.values import did_you_mean
from sparring.cli.verdict import conclude, shard_of

if TYPE_CHECKING:
    from sparring.cli.evaluate import EvaluateSettings
    from sparring.data.text import LabelledTexts
    from sparring.text import Synonyms, TextAttack, TextClassifier, WordNet

# what an evaluation of texts is told; the rest of the options is about images
KNOWN = {
    "model", "data", "split", "skip_bad", "attacks", "synonyms", "tagger", "encoder", "batch_size", "max_samples", "time_limit",
    "seed", "device", "out", "shard", "fail_under", "junit", "config", "print_config", "json", "debug",
} | {field.name for field in fields(TextSettings)}  # fmt: skip


def evaluate(settings: "EvaluateSettings") -> Outcome:
    """How often does a text classifier withstand attack?"""
    from sparring import evaluation

    for field in fields(settings):
        given = getattr(settings, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name not in KNOWN and given != default:
            raise ValueError(f"--{field.name.replace('_', '-')} is about images: leave it out with --task text")
    chosen = attacks_of(settings)
    device = models.pick_device(settings.device)
    model = load_classifier(settings.model).to(device)
    texts = open_texts(settings, settings.data, settings.split, settings.skip_bad, model.classes)
    out = settings.out or Path("sparring-evaluate") / _slug(settings)
    _check_out(settings, out)
    shard = shard_of(settings.shard, settings)
    with watching(out) as progress:
        result = evaluation.evaluate(
            model,
            texts,
            attacks=chosen,
            batch_size=settings.batch_size,
            seed=settings.seed,
            max_samples=settings.max_samples,
            time_limit=settings.time_limit,
            out=out,
            shard=shard,
            progress=progress,
            model_info={"name": Path(settings.model).name, "spec": spec(settings.model)},
        )
    return conclude(result, settings, out, shard)


def spec(model: str) -> dict[str, Any]:
    """What a result remembers, to load the classifier again."""
    return {"task": "text", "model": str(Path(model).expanduser().resolve())}


def recorded(model: str | None, data: Any, document: dict[str, Any]) -> "tuple[TextClassifier, LabelledTexts | None]":
    """The classifier and the texts of a result: those that are named here, or those that it names. data: None for no texts.

    Another table is read like the result's own: the same columns, encoding and rows left out.
    """
    from sparring.data.text import TEXT_NAMES
    from sparring.data.text import open_texts as open_data

    known = document["model"]["spec"]
    if model is None and not (isinstance(known, dict) and "model" in known):
        raise ValueError("the folder does not say how to load its model: give --model, a folder of a text classifier")
    classifier = load_classifier(model or known["model"])
    if data is None:
        return classifier, None
    if isinstance(data, str):
        own = document["data"]["spec"] or {}
        columns = {name: own[name] for name in ("text_column", "label_column", "encoding") if own.get(name) is not None}
        settings = TextSettings(task="text", **({} if data in TEXT_NAMES else columns))
        return classifier, open_texts(
            settings, data, own.get("split", "test"), own.get("skip_bad", False), classifier.classes
        )
    return classifier, open_data(**data)


def load_classifier(folder: str) -> "TextClassifier":
    """The text classifier in a folder; FileNotFoundError or ValueError, in one line, where there is none."""
    from sparring.text import TextClassifier

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"--model {folder}: no such folder; with --task text it is what TextClassifier.save wrote"
        )
    return TextClassifier.load(path)


def open_texts(
    settings: TextSettings, data: str, split: str, skip_bad: bool, classes: list[str] | None
) -> "LabelledTexts":
    """The texts of the settings, whose labels must be the classes where those are known; what was skipped is said."""
    from sparring.data.text import TEXT_NAMES
    from sparring.data.text import open_texts as open_data

    try:
        texts = open_data(
            data, split, text_column=settings.text_column, label_column=settings.label_column, encoding=settings.encoding,
            skip_bad=skip_bad, classes=None if data in TEXT_NAMES else classes,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--data {error}.{did_you_mean(data, TEXT_NAMES)}".rstrip(".")) from error
    if classes is not None and texts.classes != classes:
        raise ValueError(
            f"--data {data} has the classes {', '.join(texts.classes)}, and the model {', '.join(classes)}: expected the same"
        )
    for bad in texts.skipped:
        note(f"skipped {bad}")
    return texts


def attacks_of(settings: "EvaluateSettings") -> "list[TextAttack]":
    """The attacks as typed: ``words:max_changed=0.4`` and ``embeddings:eps=5``."""
    typed = ["words"] if settings.attacks == ["adaptive"] else settings.attacks
    return [_attack(text, settings) for text in typed]


def _attack(text: str, settings: "EvaluateSettings") -> "TextAttack":
    from sparring.text import EmbeddingPGD, WordSubstitution

    name, _, rest = text.partition(":")
    arguments = models.parse_arguments(rest.split(","), f"--attacks {name}:") if rest else {}
    kinds: dict[str, Any] = {"words": WordSubstitution, "embeddings": EmbeddingPGD}
    if name.lower() not in kinds:
        raise ValueError(
            f"--attacks {name!r}: texts are attacked by words or embeddings.{did_you_mean(name, [*kinds])}"
        )
    kind = kinds[name.lower()]
    other = {"synonyms", "tagger", "encoder", "stop_words"}  # options of their own
    known = [field.name for field in fields(kind) if field.name not in other]
    for key in arguments:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(known)}"
            raise ValueError(f"--attacks {text}: {name} has no setting {key!r}.{hint}")
    if kind is EmbeddingPGD:
        if "eps" not in arguments:
            raise ValueError("--attacks embeddings needs a length, such as embeddings:eps=5")
        return EmbeddingPGD(**arguments)
    if not settings.synonyms:
        raise ValueError("--synonyms is missing: give a file of them, ppdb or wordnet; or --attacks embeddings:eps=5")
    return WordSubstitution(
        [_synonyms(each) for each in settings.synonyms],
        tagger=_tagger(settings.tagger),
        encoder=_encoder(settings.encoder),
        **arguments,
    )


def _synonyms(typed: str) -> "Synonyms | WordNet":
    from sparring.text import Synonyms, WordNet

    return WordNet() if typed == "wordnet" else Synonyms.ppdb() if typed == "ppdb" else Synonyms.read(typed)


def _tagger(typed: str | None) -> Any:
    from sparring.text import PatternTagger, WordNet

    return None if typed is None else PatternTagger() if typed == "pattern" else WordNet()


def _encoder(typed: str | None) -> Any:
    from sparring.text import SentenceEncoder

    return None if typed is None else SentenceEncoder(None if typed == "minilm" else typed)


def _check_out(settings: "EvaluateSettings", out: Path) -> None:
    if settings.time_limit is not None and not settings.time_limit > 0:
        raise ValueError(f"--time-limit {settings.time_limit:g}: expected seconds, above 0")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder, which need not be there yet")


def _slug(settings: "EvaluateSettings") -> str:
    """A folder name that tells runs apart: ``reviews-model-rotten-tomatoes-text``."""
    last = [re.split(r"[/:\\]", part.rstrip("/\\"))[-1] for part in (settings.model, settings.data)]
    return re.sub(r"[^\w.]+", "-", "-".join([*last, "text"]).lower()).strip("-.")
