"""The adaptive cascade: cheap attacks for all, dear ones for the samples that they may still fool.

How much of its clean margin the attacks so far have left a sample is its *closeness*, 1 at the clean input and 0 at the
boundary. A sample goes on to an attack if its closeness is at most that attack's gate. On most networks later attacks
hardly bring a sample closer, and so only those that nearly fell go on; on networks that mask their gradients they bring
much, above all those that need no gradients, and then many go on. Which is the case a pilot tells (`pilot.py`): a few
samples that all go through the attacks that are `measured`, and whose gains set the gates for everybody else.

Between the two lie networks whose margin is *rugged*: two climbs from random starts end well apart, so that another start
finds what this one missed, though no search brings samples closer on average. The pilot's samples that stand climb twice
(`twin`), and how far apart they end opens the last few attacks, which all begin anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sparring.attacks import APGD, Attack, MarginAscent, Square
from sparring.threat import Threat

# a long climb from the best so far, and a short search: what both gain on the pilot tells whether gradients are masked
SEARCHES = (4, 5)
USUAL = 0.028  # their gain where they are not
TWIN = 10  # steps of a climb that tells how rugged the margin is
SMOOTH = 0.009  # ruggedness up to which another start hardly finds more


@dataclass(frozen=True)
class Gate:
    """Who goes on to an attack.

    near: the closeness up to which a sample does, whatever the pilot says. gains: of these attacks on the pilot's samples;
    they open the gate wider, to `factor` times what their sum has over `usual`, but not beyond `most`. rugged: it is the
    ruggedness that does so, where gains have not opened the search already. blind: samples whose gradient was zero somewhere
    go on as well, as their closeness says nothing.
    """

    near: float
    gains: tuple[int, ...] = ()
    factor: float = 0.0
    most: float = math.inf
    usual: float = 0.0
    blind: bool = False
    rugged: bool = False


@dataclass(frozen=True)
class Step:
    attack: Attack
    gate: Gate
    measured: bool = False  # whether the pilot's samples all take it


def twin(threat: Threat) -> Attack:
    """The climb whose ends, from two random starts, tell how rugged the margin is."""
    return APGD(threat, steps=TWIN, objective="soft-margin")


def _anew(threat: Threat) -> list[Step]:
    """Other starts, other slopes, and a search from its own start, for rugged networks."""

    def gate(factor: float, most: float) -> Gate:
        return Gate(0.0, (), factor, most, SMOOTH, rugged=True)

    climbs = [
        Step(APGD(threat, steps=20, objective="soft-margin"), gate(20.0, 0.25)),
        Step(APGD(threat, steps=20, objective="dlr"), gate(20.0, 0.25)),
        Step(APGD(threat, steps=20, rivals=3, objective="logit-difference"), gate(20.0, 0.25)),
    ]
    if threat.norm == "l1":
        return climbs
    search = [
        Step(Square(threat, queries=1000), gate(10.0, 0.12)),
        Step(Square(threat, queries=2000, p_init=0.3, start="given"), gate(2.5, 0.03)),
    ]
    return climbs + search


def steps(threat: Threat) -> list[Step]:
    """The cascade under this threat. l1 has no attack without gradients."""
    climb = MarginAscent(threat, steps=10, rivals=None, reach=0.5, start="given")
    ascent = [
        Step(MarginAscent(threat, rivals=1), Gate(math.inf), measured=True),
        Step(MarginAscent(threat, first=1, rivals=1, start="given"), Gate(0.65), measured=True),
        # what no single rival shows: away from all of them at once, as cross-entropy leads
        Step(APGD(threat, steps=20, objective="soft-margin"), Gate(0.5)),
        Step(APGD(threat, steps=20, rivals=3, objective="logit-difference"), Gate(0.2, blind=True)),
        Step(replace(climb, steps=20), Gate(0.03, (4,), 6.0), measured=True),
    ]
    if threat.norm == "l1":
        return ascent + _anew(threat)

    def gate(factor: float, most: float, near: float = 0.0, blind: bool = False) -> Gate:
        return Gate(near, SEARCHES, factor, most, USUAL, blind)

    search = [
        Step(
            Square(threat, queries=100, p_init=0.2, start="given"),
            gate(18.0, math.inf, 0.01, blind=True),
            measured=True,
        ),
        Step(climb, gate(18.0, 0.85, 0.005)),
        Step(Square(threat, queries=1000, p_init=0.3, start="given"), gate(18.0, 0.85, 0.005)),
        Step(climb, gate(14.0, 0.4, 0.005)),
        Step(Square(threat, queries=2000, p_init=0.5, start="given"), gate(14.0, 0.4)),
        Step(climb, gate(5.0, 0.15)),
        Step(Square(threat, queries=3000), gate(5.0, 0.15)),  # anew: the others are stuck
        Step(climb, gate(5.0, 0.15)),
    ]
    return ascent + search + _anew(threat)
