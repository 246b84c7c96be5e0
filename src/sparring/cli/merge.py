"""``sparring merge``: one result out of the shards of an evaluation."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from sparring.cli.app import Outcome
from sparring.cli.console import waiting
from sparring.cli.verdict import VerdictSettings, conclude, limit_of

SHARDS = Parameter(group=Group("Shards", sort_key=0))


@Parameter(name="*")
@dataclass(frozen=True)
class Folder:
    """The last base of a settings class, so that its field comes first: only then can it be given by position."""

    folder: Annotated[Path, SHARDS]
    """The --out of the shards: the folder that holds shard-0-of-4 and its siblings. The result goes there, too."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeSettings(VerdictSettings, Folder):
    """Settings of ``sparring merge``."""


def merge(settings: MergeSettings) -> Outcome:
    """Make one result out of the shards of an evaluation: every sample exactly once, or an error that says what is missing."""
    from sparring import evaluation

    limit_of(settings)
    with waiting(f"merging the shards in {settings.folder}"):
        result = evaluation.merge(settings.folder)
    return conclude(result, settings, settings.folder)
