"""`Lab`: everything that one server has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from torch import Tensor

from sparring.borrow import borrow
from sparring.evaluation.cascade import NAMED
from sparring.lab import wire
from sparring.lab.jobs import Job, Jobs, Limits
from sparring.lab.networks import Network
from sparring.lab.pictures import MAX_BYTES, Pictures, Refused
from sparring.lab.requests import ATTACKS, EPS, MAX_QUERIES, MAX_STEPS, QUERIES, RATES, AttackName, Look, Order, nearest
from sparring.lab.results import Run


class Lab:
    """The networks, pictures, jobs and results of one server. ValueError where two networks share a name."""

    def __init__(
        self, networks: Iterable[Network], runs: dict[str, Run] | None = None, limits: Limits | None = None
    ) -> None:
        self.networks: dict[str, Network] = {}
        for network in networks:
            if network.name in self.networks:
                raise ValueError(f"two networks are called {network.name!r}: name them, as in first=… second=…")
            self.networks[network.name] = network
        self.runs = runs or {}
        self.pictures = Pictures()
        self.jobs = Jobs(limits or Limits())

    def close(self) -> None:
        self.jobs.close()
        self.pictures.close()

    def network(self, name: str) -> Network:
        if name not in self.networks:
            raise Refused(f"there is no network {name!r} on this server", 404)
        return self.networks[name]

    def run(self, name: str) -> Run:
        if name not in self.runs:
            raise Refused(f"there is no result {name!r} on this server", 404)
        return self.runs[name]

    def state(self) -> dict[str, Any]:
        """What the page is built from."""
        names: list[list[str]] = []  # each list of class names once: several networks may share it
        networks = []
        for network in self.networks.values():
            classes = list(network.classes)
            if classes not in names:
                names.append(classes)
            networks.append({"name": network.name, "shape": network.shape, "classes": names.index(classes)})
        return {
            "networks": networks,
            "classes": names,
            "samples": [
                {"token": token, "name": picture.name, "label": picture.label, "side": picture.side}
                for token, picture in self.pictures.samples()
            ],
            "attacks": [{"name": name, "title": title, **_has(name)} for name, title in ATTACKS.items()],
            "rates": RATES,
            "eps": EPS,
            "max_steps": MAX_STEPS,
            "queries": QUERIES,
            "max_queries": MAX_QUERIES,
            "max_bytes": MAX_BYTES,
            "runs": [run.summary() for run in self.runs.values()],
        }

    def look(self, asked: Look) -> dict[str, Any]:
        """The picture as this network takes it, and what it sees in it."""
        network = self.network(asked.network)
        x = self.pictures.tensor(asked.picture, network.shape)
        with network.turn, borrow(network.model) as model:
            logits = model.look(x[None].to(network.device))[0]
        return {"picture": wire.picture(x), **wire.top(network, logits)}

    def order(self, order: Order) -> Job:
        """A new job in the queue."""
        network = self.network(order.network)
        return self.jobs.add(Job(order, network, self.picture(order, network), self.jobs.limits))

    def picture(self, order: Look, network: Network) -> Tensor:
        return self.pictures.tensor(order.picture, network.shape)


def _has(name: AttackName) -> dict[str, Any]:
    """Which of the page's settings an attack has, and what it asks of a network."""
    known = {f.name for f in fields(NAMED[name])}
    return {
        "steps": "steps" in known,
        "queries": "queries" in known,
        "optimizer": "optimizer" in known,
        "nearest": nearest(name),
        "access": NAMED[name].access,
    }
