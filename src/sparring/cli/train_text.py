"""``sparring train --task text``: a classifier of texts, from a table to a folder that ``TextClassifier.load`` reads."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import inspect
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sparring.cli import begun, models, train_tables
from sparring.cli.app import Outcome, Stopped
from sparring.cli.console import note, say, speaks, table
from sparring.cli.settings import DATA, MANY, MODEL, RUN, SeedSettings
from sparring.cli.train import CHECK, LEARN, Watch, epoch_row
from sparring.cli.values import did_you_mean

if TYPE_CHECKING:
    from sparring.data import LabelledTexts
    from sparring.text import TextClassifier
    from sparring.training import FitResult, Strategy

STRATEGY = Parameter(group=Group("Strategy", sort_key=4))
TAKES = {
    "standard": ("Standard", ()),
    "adversarial": ("TextAdversarial", ("eps", "weight")),
    "vat": ("TextVAT", ("eps", "weight")),
    "both": ("TextAdversarial", ("eps", "weight")),
    "fgm": ("FGM", ("eps",)),
    "freelb": ("FreeLB", ("eps", "steps", "step_size")),
    "smart": ("SMART", ("weight", "steps", "step_size")),
}
"""The class behind a name, and which options are its own."""
SMOOTH = ("vat", "both")
"""Those that learn from texts without labels."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextTrainSettings(SeedSettings):
    """Settings of ``sparring train --task text``."""

    task: Annotated[Literal["text", "images"], DATA] = "text"
    """text: these options; images: see sparring train --help."""
    data: Annotated[str, DATA] = "sms-spam"
    """A .csv or .tsv table, or a name: sms-spam, rotten-tomatoes, sst2, imdb, imdb-sample, ag-news."""
    text_column: Annotated[str | None, DATA] = None
    """The table's column of texts, by name or number from 0; left out, it is found."""
    label_column: Annotated[str | None, DATA] = None
    """The table's column of labels; left out, it is found."""
    encoding: Annotated[str, DATA] = "utf-8"
    """Of the table."""
    skip_bad: Annotated[bool, DATA] = False
    """Leave out rows without a text or a label, and name them, instead of stopping."""
    unlabelled: Annotated[str | None, DATA] = None
    """Texts to learn from without labels (vat, both, --pretrain): a table, whose labels nobody reads, if it has any, or one
    text a line (.txt), or a name."""
    model: Annotated[str, MODEL] = "lstm"
    """lstm, or a folder of a Hugging Face model."""
    model_args: Annotated[list[str], MODEL, MANY] = field(default_factory=list)
    """Of lstm: embedding=64 hidden=64 dense=30 dropout=0.5 pooling=mean"""
    vocabulary: Annotated[int, MODEL] = 20_000
    """Of lstm: at most so many words, the most frequent ones, that occur twice or more."""
    max_length: Annotated[int | None, MODEL] = None
    """Longer texts are cut to so many tokens; left out: 400, or what the model takes."""
    pretrain: Annotated[int, LEARN] = 0
    """First so many epochs as a language model of all the texts (lstm)."""
    strategy: Annotated[str, STRATEGY] = "adversarial"
    """standard, adversarial (Miyato), vat, both, fgm, freelb, smart (docs/text.md)."""
    eps: Annotated[float | None, STRATEGY] = None
    """L2 length of a perturbation, over all word vectors of a text (fgm: Frobenius norm, of the matrix). Of adversarial, vat,
    both, fgm; left out: 1/16 of a word vector's length, and 1 for fgm. (Miyato's 5, for vectors of 256 normalised numbers, is
    5/16, behind pre-training.)"""
    weight: Annotated[float | None, STRATEGY] = None
    """Of the term that adversarial, vat or smart adds; both: of the adversarial one, beside which the virtual one has 1."""
    steps: Annotated[int | None, STRATEGY] = None
    """freelb, smart: ascent steps a batch."""
    step_size: Annotated[float | None, STRATEGY] = None
    """freelb, smart: length of one."""
    ema: Annotated[float | None, STRATEGY] = None
    """Average the weights exponentially, with this decay, such as 0.998; the averages are validated and kept."""
    epochs: Annotated[int, LEARN] = 10
    """How often each text is learned from."""
    batch_size: Annotated[int, LEARN] = 64
    """Texts a batch."""
    by_length: Annotated[bool, LEARN, Parameter(negative="--no-by-length")] = True
    """Texts of like length share a batch, which spares padding; else chance alone deals them."""
    lr: Annotated[float | None, LEARN] = None
    """Highest rate of Adam; left out: 0.005 for lstm, 0.00003 else."""
    weight_decay: Annotated[float, LEARN] = 0.0
    """Pull of the weights towards zero."""
    max_grad_norm: Annotated[float, LEARN] = 1.0
    """Clip the gradients of all weights together to this L2 norm."""
    precision: Annotated[Literal["bf16", "fp16"] | None, LEARN] = None
    """Mixed precision; fp16 needs CUDA."""
    validation: Annotated[str | None, CHECK] = None
    """A table to validate on; left out: a named data set's validation part, else a tenth of the texts; none: no validation."""
    out: Annotated[Path | None, RUN] = None
    """Folder of the classifier, history and checkpoint; a training that was stopped goes on there.
    Left out: sparring-train/MODEL-DATA-STRATEGY."""
    fresh: Annotated[bool, RUN] = False
    """Start anew, whatever the folder holds."""
    save_every: Annotated[float, RUN] = 60.0
    """Seconds between two checkpoints within an epoch."""
    time_limit: Annotated[float | None, RUN] = None
    """Stop after so many seconds, and save."""
    quiet: Annotated[bool, RUN] = False
    """No progress bar."""


DEFAULT = TextTrainSettings()


def train_text(settings: TextTrainSettings = DEFAULT) -> Outcome:
    """Train a classifier of texts; what is kept is a folder that TextClassifier.load reads."""
    _check(settings)
    import torch

    from sparring.training import fit
    from sparring.training.history import Bar
    from sparring.training.settings import check

    texts, held, others = train_tables.read(settings)
    device = models.pick_device(settings.device)
    torch.manual_seed(settings.seed)
    classifier = _classifier(settings, texts, [*texts.texts, *others]).to(device)
    out = settings.out or Path("sparring-train") / _slug(settings)
    call = _call(settings, classifier, texts, held, others, out)
    check(call.arguments)  # what can't be is said before the folder is touched
    with begun.Folder(out, begun.began(settings, classifier, texts, held, others)).entered(settings.fresh) as folder:
        train_tables.tell_unknown(classifier, held if held is not None else texts)
        watch = Watch()
        with Bar() as show:
            try:
                shown = watch.then(None if settings.quiet else show)
                if settings.pretrain:
                    _pretrain(settings, classifier, [*texts.texts, *others], out, shown)
                result = fit(*call.args, **{**call.kwargs, "progress": shown})
            except KeyboardInterrupt:
                raise Stopped(f"{watch.text()} is kept in {out}; the same command goes on from there") from None
        return _tell(settings, classifier, result, folder, watch.last is None and result.finished)


def _call(
    settings: TextTrainSettings,
    classifier: "TextClassifier",
    texts: "LabelledTexts",
    held: "LabelledTexts | None",
    others: list[str],
    out: Path,
) -> inspect.BoundArguments:
    """What `fit` is called with."""
    from sparring.training import fit

    strategy = build(settings, classifier)
    learned = _loader(settings, classifier, *classifier.tensors(texts.texts, texts.labels))
    given: dict[str, Any] = {"validation": settings.validation != "none" and None}
    if held is not None:
        given["validation"] = classifier.tensors(held.texts, held.labels)
    if others and strategy.takes_unlabelled:
        both = classifier.numbers([*texts.texts, *others])  # in the paper the labelled texts are among them
        given |= {"unlabelled": _loader(settings, classifier, both), "unlabelled_batch_size": settings.batch_size}
    names = ("epochs", "batch_size", "weight_decay", "max_grad_norm", "precision", "save_every", "time_limit", "seed")
    call = inspect.signature(fit).bind(
        classifier, learned, strategy, optimizer="adamw" if settings.weight_decay else "adam", lr=_rate(settings),
        validation_samples=None, health=False, out=out, resume=not settings.fresh,
        **given, **{name: getattr(settings, name) for name in names},
    )  # fmt: skip
    call.apply_defaults()
    return call


def _loader(settings: TextTrainSettings, classifier: "TextClassifier", *tensors: Any) -> Any:
    """Token numbers (N, T), and labels where there are some, for `fit`."""
    from torch.utils.data import DataLoader, TensorDataset

    from sparring.text import LengthBatches

    data = TensorDataset(*tensors)
    if not settings.by_length:
        return data
    return DataLoader(data, batch_sampler=LengthBatches(classifier.lengths(tensors[0]), settings.batch_size))


def _check(settings: TextTrainSettings) -> None:
    if settings.strategy not in TAKES:
        hint = did_you_mean(settings.strategy, TAKES) or f" Known: {', '.join(TAKES)}"
        raise ValueError(f"--strategy {settings.strategy!r}: no such strategy for texts.{hint}")
    takes = TAKES[settings.strategy][1]
    for name in ("eps", "weight", "steps", "step_size"):
        if getattr(settings, name) is not None and name not in takes:
            takers = ", ".join(other for other, (_, options) in TAKES.items() if name in options)
            raise ValueError(f"--{name.replace('_', '-')} is no setting of {settings.strategy}, but of {takers}")
    if settings.unlabelled is not None and settings.strategy not in SMOOTH and not settings.pretrain:
        raise ValueError(
            f"--unlabelled: {settings.strategy} learns nothing from texts without labels; --strategy vat and both do, and "
            "--pretrain"
        )
    if settings.model != "lstm" and not Path(settings.model).expanduser().is_dir():
        raise ValueError(f"--model {settings.model!r}: expected lstm, or the folder of a Hugging Face model")
    if settings.model != "lstm" and (settings.pretrain or settings.model_args):
        raise ValueError("--pretrain and --model-args are for lstm: a Hugging Face model brings its own")
    if settings.pretrain < 0:
        raise ValueError(f"--pretrain {settings.pretrain}: expected a number of epochs, 0 or more")


def _rate(settings: TextTrainSettings) -> float:
    if settings.lr is not None:
        return settings.lr
    return 5e-3 if settings.model == "lstm" else 3e-5


def build(settings: TextTrainSettings, classifier: "TextClassifier") -> "Strategy":
    """The strategy, with what stands round it."""
    import sparring
    from sparring.training import EMA, Part, VirtualAdversarial

    name, takes = TAKES[settings.strategy]
    options = {each: value for each in takes if (value := getattr(settings, each)) is not None}
    size = float(f"{1 / 16 * classifier.vector_length():.3g}") if settings.eps is None else settings.eps
    if settings.strategy in ("adversarial", "vat", "both"):
        options["eps"] = size
    made: Strategy = getattr(sparring, name)(**options, seed=settings.seed)
    parts: list[Part] = [VirtualAdversarial(size)] if settings.strategy == "both" else []
    parts += [] if settings.ema is None else [EMA(settings.ema)]
    return made.with_(*parts) if parts else made


def _classifier(settings: TextTrainSettings, texts: "LabelledTexts", known: list[str]) -> "TextClassifier":
    from sparring import zoo
    from sparring.text import TextClassifier, build_tokenizer

    if settings.model != "lstm":
        return TextClassifier.pretrained(settings.model, texts.classes, max_length=settings.max_length)
    tokenizer = build_tokenizer(known, settings.vocabulary, min_count=2)
    args = {"embedding": 64, "hidden": 64, "pooling": "mean", **models.parse_arguments(settings.model_args)}
    network = zoo.build(
        "lstm", seed=settings.seed, vocabulary=tokenizer.get_vocab_size(), classes=len(texts.classes), **args
    )
    made = TextClassifier(network, tokenizer, texts.classes, max_length=settings.max_length)
    made.normalize_embedding(known)
    return made


def _pretrain(
    settings: TextTrainSettings, classifier: "TextClassifier", texts: list[str], out: Path, show: Any
) -> None:
    """As a language model, unless the classifier's own training has begun."""
    from sparring.training.language import pretrain

    if (out / "state.pt").exists() and not settings.fresh:
        return
    say(f"Pre-training as a language model of {len(texts):,} texts:")
    result = pretrain(
        classifier, texts, epochs=settings.pretrain, lr=2e-3, seed=settings.seed, out=out / begun.LANGUAGE, progress=show,
        resume=not settings.fresh, save_every=settings.save_every,
    )  # fmt: skip
    say(f"It foretells {result.history[-1].accuracy or 0:.1%} of the next words. Now the classes:")


def _tell(
    settings: TextTrainSettings, classifier: "TextClassifier", result: "FitResult", folder: begun.Folder, old: bool
) -> Outcome:
    from sparring.data import TEXT_NAMES

    out = folder.path
    if old:
        note(f"{out} already holds this training, finished: nothing was learned again (--fresh starts anew)")
    if result.history:
        rows = {"best": result.best, "last": result.history[-1]}
        table([epoch_row(name, epoch) for name, epoch in rows.items() if epoch is not None])
    if result.best_weights is not None:
        result.load_best(classifier)
    if speaks() and not (old and folder.written()):  # of many processes one; of a finished training nothing changes
        folder.keep(classifier, result.finished)
    seconds = sum(epoch.seconds for epoch in result.history)
    say(
        f"{seconds:.0f} s of training. The classifier ({'best' if result.best else 'last'} epoch), history and log: {out}"
    )
    if not result.finished:
        say("Time ran out: the same command goes on from there (with another --time-limit, or without).", style="bold")
    tested = settings.data if settings.data in TEXT_NAMES else "TEST.csv"
    command = shlex.join(["sparring", "evaluate", "--task", "text", "--model", str(out), "--data", tested])
    if result.finished:
        say("Now find out what it withstands, on texts that it has never seen:", style="bold")
        say(f"  {command}")
    document = {"settings": settings.document(), **result.to_json(), "classes": classifier.classes, "folder": str(out)}
    return Outcome({**document, "evaluate": command})


def _slug(settings: TextTrainSettings) -> str:
    last = [re.split(r"[/:\\]", part.rstrip("/\\"))[-1] for part in (settings.model, settings.data)]
    return re.sub(r"[^\w.]+", "-", "-".join([*last, settings.strategy]).lower()).strip("-.")
