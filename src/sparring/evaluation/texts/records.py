"""What is known of each text: the table of all evaluations, and beside it the texts themselves."""

from __future__ import annotations

import json
from typing import Any

from sparring.evaluation.records import Records

Entry = dict[str, Any]


class TextRecords(Records):
    """Beside each row the text, and for each attack an entry: whether it fooled, what it cost, and where it did fool a text
    in which words were changed, that text (`text`), the numbers of those words (`changed`) and how many it has (`words`).
    """

    def __init__(self, attacks: int, room: int = 1024) -> None:
        super().__init__(attacks, room)
        self.texts: dict[int, str] = {}
        self.entries: dict[int, list[Entry]] = {}

    def beside(self, index: int) -> dict[str, Any]:
        return {"text": self.texts[index], "attacks": self.entries.get(index, [])}

    def take(self, line: str | bytes) -> int:
        place, values = super().take(line), json.loads(line)
        self.texts[values["index"]], self.entries[values["index"]] = values["text"], list(values["attacks"])
        return place

    def copied(self, other: Records, place: int) -> int:
        assert isinstance(other, TextRecords)
        here, index = super().copied(other, place), int(other.table[place]["index"])
        self.texts[index], self.entries[index] = other.texts[index], other.entries[index]
        return here

    def entry(self, index: int, attack: int) -> Entry | None:
        """What this attack did to this text; None where it never came to it."""
        entries = self.entries.get(index, [])
        return entries[attack] if attack < len(entries) else None

    def fooled_by(self, attack: int) -> int:
        """How many texts this attack fools, whatever the others do."""
        return sum(len(entries) > attack and bool(entries[attack]["fooled"]) for entries in self.entries.values())
