"""Every attack beside the same attack of adv-lib, foolbox, torchattacks and ART, at equal budget, on the published networks.

    python benchmarks/attacks.py [--parts minimal gradient …] [--only TEXT] [--samples 100] [--json FILE] [--markdown FILE]

Each part is a module `attacks_<part>.py` beside this one. With `--json` every row is kept as soon as it is measured, and a
run that is started again with the same file goes on where it was. The target: no peer is better by more than 2% (of a
robust accuracy: or by more than one sample). With `--seeds` values are means over several, with half of their 95% interval.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from attack_rows import Row, joined
from machine import facts, table

PARTS = ("minimal", "gradient", "queries", "transfer")


def keep(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(document, indent=1))
        partial.replace(path)


def shown(row: Row) -> tuple[str, ...]:
    percent = row.measure == "robust accuracy"

    def value(number: float, name: str) -> str:
        told = f"{100 * number:.1f}%" if percent else f"{number:.4g}"
        if name not in row.spread:
            return told
        return told + (f" ±{100 * row.spread[name]:.1f}" if percent else f" ±{row.spread[name]:.2g}")

    best = row.best_peer
    verdict = {True: "yes", False: "MISSED", None: ""}[row.within]
    if row.within is False and row.noise:
        verdict += ", by less than the noise"
    peers = ", ".join(f"{name} {value(number, name)}" for name, number in sorted(row.peers.items()))
    budget = ", ".join(
        f"{name} {number:.3g}" if isinstance(number, float) else f"{number} {name}"
        for name, number in row.settings.items()
    )
    passes = " / ".join(f"{row.passes[name]:.0f}" for name in ("sparring", best) if name in row.passes)
    over = "" if row.excess is None else f"{100 * row.excess:+.1f}%" if math.isfinite(row.excess) else "worse"
    who = (row.attack, row.norm, row.network, budget, str(row.samples), row.measure)
    return (*who, value(row.ours, "sparring"), peers, over, verdict, passes)


HEAD = (
    "attack",
    "norm",
    "network",
    "budget",
    "samples",
    "measure",
    "sparring",
    "peers",
    "ours - best",
    "within 2%",
    "passes, best peer's",
)


def write(rows: list[Row], machine: dict[str, Any], file: TextIO | None = None) -> None:
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), file=file)
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
    table(
        f"Attacks beside the peers' (seed {seeds}; passes: forwards + backwards a sample)",
        HEAD,
        [*map(shown, rows)],
        file,
    )
    judged = [row for row in rows if row.within is not None]
    good = sum(bool(row.within) for row in judged)
    print(f"\n{good} of {len(judged)} rows within 2% of the best peer", file=file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", metavar="TEXT", default="", help="contests whose key holds this text")
    parser.add_argument("--samples", type=int, default=100, metavar="N", help="test images (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds", type=int, default=1, choices=range(1, 11), metavar="N", help="from --seed on, 1 to 10"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every row there, and go on from it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = facts(arguments.seed)
    measured: dict[str, Any] = {}
    if arguments.json is not None and arguments.json.exists():
        measured = json.loads(arguments.json.read_text())["rows"]
    rows: list[Row] = []
    for part in arguments.parts:
        module, seeds = (
            importlib.import_module(f"attacks_{part}"),
            range(arguments.seed, arguments.seed + arguments.seeds),
        )
        for same in zip(*(module.contests(arguments.samples, seed) for seed in seeds), strict=True):
            if arguments.only not in same[0].key:
                continue
            for contest in same:
                if contest.key not in measured:
                    row = contest.run()
                    measured[contest.key] = row.to_json()
                    keep(arguments.json, {"machine": machine, "rows": measured})
                    print(" | ".join(shown(row)), flush=True)
            rows.append(joined([Row(**measured[contest.key]) for contest in same]))
    write(rows, machine)
    if arguments.markdown is not None:
        partial = arguments.markdown.with_name(arguments.markdown.name + ".part")
        with open(partial, "w") as file:
            write(rows, machine, file)
        partial.replace(arguments.markdown)
    return int(any(row.within is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
