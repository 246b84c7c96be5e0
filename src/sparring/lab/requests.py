"""What a page may ask for, checked; the attack that it means, and the command line that does the same."""

from __future__ import annotations

import math
import shlex
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sparring.attacks import Attack, GradientAttack, HopSkipJump
from sparring.attacks.minimal import MinimalAttack
from sparring.evaluation.cascade import NAMED
from sparring.lab.networks import Network
from sparring.lab.pictures import Refused
from sparring.threat import Threat, parse_eps

AttackName = Literal["pgd", "fgsm", "rfgsm", "ifgsm", "mifgsm", "fmn", "optimizer", "square", "hopskipjump"]
ATTACKS: dict[AttackName, str] = {
    "pgd": "PGD",
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM",
    "mifgsm": "MI-FGSM",
    "rfgsm": "R+FGSM",
    "optimizer": "An optimiser",
    "fmn": "FMN: least change",
    "square": "Square",
    "hopskipjump": "HopSkipJump",
}
Optimizer = Literal["SGD", "Adam", "RMSprop", "AdamW", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax", "Rprop"]
RATES: dict[str, float] = {
    "Adam": 0.01, "SGD": 1.0, "RMSprop": 0.01, "AdamW": 0.01, "NAdam": 0.01, "RAdam": 0.1, "Adagrad": 0.01,
    "Adadelta": 1.0, "Adamax": 0.01, "Rprop": 0.01,
}  # fmt: skip
"""Learning rates to start from: of Adam and its like a step in input units; SGD's multiplies the gradient."""
EPS = {"linf": "8/255", "l2": "3", "l1": "200"}
MAX_STEPS = 300
QUERIES = 1000
MAX_QUERIES = 10_000
SIZES = [2 ** ((i - 9) / 2) for i in range(12)]
"""What a sweep multiplies eps by: up to twice, in steps of √2, because ordinary networks fall far below the usual eps."""

Token = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Look(Asked):
    """What does this network see in this picture?"""

    network: Name
    picture: Token


class Order(Look):
    """One attack. target: a class to reach, or any wrong one. sweep: at a row of sizes of the change, not at eps alone."""

    attack: AttackName = "pgd"
    norm: Literal["linf", "l2", "l1", "none"] = "linf"
    eps: Annotated[str, StringConstraints(max_length=24)] = "8/255"
    steps: int = Field(20, ge=1, le=MAX_STEPS)
    queries: int = Field(QUERIES, ge=1, le=MAX_QUERIES)
    target: int | None = Field(None, ge=0, le=1_000_000)
    objective: Literal["cross-entropy", "margin", "dlr", "logit"] = "cross-entropy"
    optimizer: Optimizer = "Adam"
    lr: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    sweep: bool = False
    client: Annotated[str, StringConstraints(max_length=64)] = ""


def attack_of(order: Order) -> Attack:
    """The attack that is meant. Refused, in one line, where the settings do not go together."""
    cls: type[Attack] = NAMED[order.attack]
    try:
        threat = _threat(order)
        return cls(threat, **settings_of(order))
    except ValueError as error:
        raise Refused(str(error)) from None


def _threat(order: Order) -> Threat:
    if order.norm == "none":
        if order.attack != "optimizer" or order.sweep:
            raise ValueError("without a limit on the change only an optimiser works, and there is no eps to sweep")
        return Threat("l2", math.inf)
    if order.sweep and nearest(order.attack):
        raise ValueError(f"{NAMED[order.attack].__name__} looks for the least change itself: there is no eps to sweep")
    if order.attack == "hopskipjump" and order.target is not None:
        raise ValueError(
            "HopSkipJump reaches a class only from a picture of it, and there is no picture of it to begin with: take "
            "any wrong class, or Square"
        )
    eps = parse_eps(order.eps)
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={order.eps!r}: expected a number above 0, such as 8/255")
    return Threat(order.norm, eps, typed=order.eps)


def nearest(attack: AttackName) -> bool:
    """Whether it looks for the smallest change, instead of staying within eps."""
    return issubclass(NAMED[attack], MinimalAttack | HopSkipJump)


def settings_of(order: Order) -> dict[str, Any]:
    """Those of the settings that this attack has."""
    cls = NAMED[order.attack]
    known = {f.name for f in fields(cls)}
    wanted: dict[str, Any] = {
        "steps": order.steps,
        "queries": order.queries,
        "optimizer": order.optimizer,
        "lr": rate(order),
    }
    if issubclass(cls, GradientAttack) and order.objective != "cross-entropy":
        wanted["objective"] = order.objective
    return {name: value for name, value in wanted.items() if name in known}


def rate(order: Order) -> float:
    return RATES[order.optimizer] if order.lr is None else order.lr


def command(order: Order, network: Network, picture: str) -> str:
    """``sparring attack …`` that makes the same example; of a sweep, the one at eps."""
    file = f"./{picture}" if picture.startswith("-") else picture
    words = ["sparring", "attack", file, *network.arguments, "--size", str(network.shape[1])]
    if network.shape[0] == 1:
        words += ["--channels", "1"]
    words += ["--norm", order.norm]
    if order.norm != "none":
        words += ["--eps", order.eps]
    if order.target is not None:
        words += ["--target", str(order.target)]
    words += ["--attack", order.attack]
    for name, value in settings_of(order).items():
        words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--seed", str(order.seed)])
