"""What `verdict.py` measured, held against its targets, as tables for BENCHMARKS.md."""

from __future__ import annotations

from statistics import median
from typing import Any

from machine import table
from networks import NETWORKS
from sparring.evaluation.statistics import Proportion

Row = dict[str, Any]
Rows = dict[str, Row]

METHODS = ("adaptive", "autoattack", "torchattacks", "torchattacks-10", "PGD-20", "PGD-100")
REFERENCES = ("torchattacks", "autoattack")
PLAIN, MASKED, MEDIAN, FASTER = 200, 2000, 100, 50
BUDGETS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def passes(row: Row) -> float:
    """Forwards and backwards a robust sample."""
    return (row["forwards"] + row["backwards"]) / max(1, len(row["robust"]))


def truth(rows: Rows) -> set[int]:
    """The samples that no method fools."""
    return set.intersection(*(set(row["robust"]) for row in rows.values()))


def counted(rows: Rows, images: int) -> bool:
    """Whether passes a robust sample mean anything: at least one sample in twenty is robust."""
    return len(truth(rows)) >= 0.05 * images


def hides(name: str, rows: Rows) -> bool:
    """The network was made to mask its gradients, is random, or masks: queries found what gradients had left."""
    made = NETWORKS[name].masking or NETWORKS[name].random
    return made or any(row.get("searched") for row in rows.values())


def faults(name: str, rows: Rows, images: int) -> list[str]:
    """The targets that the cascade misses on this network, of those that can be judged."""
    ours, network = rows["adaptive"], NETWORKS[name]
    found = []
    references = [len(rows[method]["robust"]) for method in REFERENCES if method in rows]
    over = len(ours["robust"]) - min(references, default=images)
    if over > max(1, 0.001 * images):
        found.append(f"verdict {100 * over / images:+.1f}")
    if counted(rows, images) and passes(ours) > (MASKED if hides(name, rows) else PLAIN):
        found.append("passes")
    found_by_queries = max((row.get("searched") or 0 for row in rows.values()), default=0)
    if found_by_queries >= 5 and not {"masking", "random-model"} & set(ours["warnings"]):
        found.append("no masking warning")
    if not hides(name, rows) and "masking" in ours["warnings"]:
        found.append("false masking warning")
    if ours["unshown"] and not network.random:
        found.append(f"{ours['unshown']} not shown")
    theirs = rows.get("torchattacks")
    slower = theirs and theirs["seconds"] < FASTER * ours["seconds"]
    if slower and not hides(name, rows) and counted(rows, images):
        found.append("clock")
    return found


def percent(count: int, images: int) -> str:
    return f"{100 * count / images:.1f}"


def verdict_table(document: dict[str, Any], models: list[str], methods: list[str]) -> int:
    """Robust accuracy a method, and whether the cascade holds; the number of networks where it does not."""
    images, lines, short = document["settings"]["images"], [], 0
    for name in models:
        rows = document["rows"][name]
        cells = [f"{next(iter(rows.values()))['eps']:.4f}", percent(next(iter(rows.values()))["clean"], images)]
        for method in methods:
            cell = percent(len(rows[method]["robust"]), images) if method in rows else ""
            if cell and method == "adaptive":
                interval = Proportion(len(rows[method]["robust"]), images)
                cell += f" [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
            cells.append(cell)
        missed = faults(name, rows, images) if "adaptive" in rows else None
        short += bool(missed)
        cells.append("" if missed is None else "MISSED: " + ", ".join(missed) if missed else "holds")
        lines.append((name, *cells))
    head = ("network", "eps", "clean", *methods, "targets")
    table(f"Robust accuracy, %, of the first {images} test images", head, lines)
    return short


def cost_table(document: dict[str, Any], models: list[str], methods: list[str]) -> None:
    """Passes a robust sample and seconds; a ratio of seconds from two runs is marked."""
    images, lines, marked = document["settings"]["images"], [], False
    for name in models:
        rows = document["rows"][name]
        cells = [f"{passes(rows[m]):.0f}" if m in rows and counted(rows, images) else "" for m in methods]
        cells += [f"{rows[m]['seconds']:.1f}" if m in rows else "" for m in methods]
        ratio = ""
        if "adaptive" in rows and "torchattacks" in rows:
            ours, theirs = rows["adaptive"], rows["torchattacks"]
            other = ours["run"] != theirs["run"]
            marked |= other
            ratio = f"{theirs['seconds'] / ours['seconds']:.0f}x" + "*" * other
        lines.append((name, *cells, ratio, " ".join(rows.get("adaptive", {"warnings": []})["warnings"])))
    head = ("network", *methods, *(f"{m}, s" for m in methods), "adaptive is faster by", "its warnings")
    table("Passes (forwards + backwards) a robust sample, and seconds", head, lines)
    print("\nno passes where fewer than 5% stay robust" + ("; * seconds of two runs" if marked else ""))


def random_table(document: dict[str, Any], models: list[str], methods: list[str]) -> None:
    """What each method calls robust on a random network, and what most of its answers confirm."""
    images, lines = document["settings"]["images"], []
    for name in models:
        rows = document["rows"][name]
        if NETWORKS[name].random:
            told = {
                m: f"{percent(rows[m]['claimed'], images)} → {percent(len(rows[m]['robust']), images)}" for m in rows
            }
            lines.append((name, *(told.get(method, "") for method in methods)))
    if lines:
        table("Random networks, %: by the method's own word → by most of 201 answers", ("network", *methods), lines)


def hard_table(document: dict[str, Any], models: list[str]) -> None:
    """Are the hard networks what they should be? Clean accuracy kept, and PGD-20 far above the truth."""
    images, lines = document["settings"]["images"], []
    for name in models:
        rows = document["rows"][name]
        plain = document["rows"].get(f"{NETWORKS[name].dataset.split('-')[0]}-undefended", {})
        if not NETWORKS[name].masking or "PGD-20" not in rows:
            continue
        part = ""
        if plain:
            part = f"{100 * rows['PGD-20']['clean'] / next(iter(plain.values()))['clean']:.0f}"
        least, seen = len(truth(rows)), len(rows["PGD-20"]["robust"])
        lines.append((name, part, percent(least, images), f"{100 * (seen - least) / images:+.1f}"))
    if lines:
        head = ("network", "clean, % of undefended", "robust to all methods, %", "PGD-20 above, points")
        table("What the masks do", head, lines)


def curve_table(document: dict[str, Any], models: list[str]) -> None:
    """Robust accuracy that is left after so many passes a sample, from when each sample of the one run fell."""
    images = document["settings"]["images"]
    for method in ("adaptive", "autoattack"):
        lines = []
        for name in models:
            row = document["rows"][name].get(method)
            if row is None:
                continue
            robust = set(row["robust"])
            fallen = [p for i, p in enumerate(row["passes"]) if i not in robust]
            lines.append((name, *(percent(images - sum(p <= budget for p in fallen), images) for budget in BUDGETS)))
        if lines:
            head = ("network", *(str(budget) for budget in BUDGETS))
            table(f"{method}: robust accuracy, %, after so many passes a sample", head, lines)


def report(document: dict[str, Any], models: list[str], *, curve: bool = False) -> int:
    """Print the tables; 1 where a target is missed."""
    models = [name for name in models if document["rows"].get(name)]
    images = document["settings"]["images"]
    methods = list(dict.fromkeys(method for name in models for method in document["rows"][name]))
    methods.sort(key=METHODS.index)
    short = verdict_table(document, models, methods)
    cost_table(document, models, methods)
    random_table(document, models, methods)
    hard_table(document, models)
    if curve:
        curve_table(document, models)
    ordinary = [
        passes(document["rows"][name]["adaptive"])
        for name in models
        if "adaptive" in document["rows"][name]
        and not hides(name, document["rows"][name])
        and counted(document["rows"][name], images)
    ]
    if ordinary:
        middle = median(ordinary)
        short += middle > MEDIAN
        print(f"\nmedian over ordinary networks: {middle:.0f} passes a robust sample (target {MEDIAN})")
    print(f"{short} short of a target")
    return int(short > 0)
