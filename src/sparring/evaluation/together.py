"""`evaluate` in many processes at once: each takes a share, the first one merges, and all of them get the result."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sparring.evaluation import shards
from sparring.evaluation.document import describe_model
from sparring.evaluation.merging import merge
from sparring.evaluation.placing import own_device
from sparring.evaluation.progress import Bar, Progress, Shared
from sparring.evaluation.result import EvaluationResult
from sparring.evaluation.source import Source, digest
from sparring.wrappers import Model

PATIENCE = timedelta(days=30)  # the slowest share decides; torchrun ends everybody when one process dies


def processes() -> int:
    """How many there are: in the process group that this one is in, or that torchrun has started."""
    if not distributed.is_available():
        return 1
    if distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if distributed.is_torchelastic_launched() else 1


@dataclass(frozen=True)
class Team:
    """The processes, and how they talk."""

    rank: int
    size: int
    group: Any

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks; nobody goes on before all have come here."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def tell(self, value: Any) -> Any:
        """The first process's value."""
        return self.gather(value if self.rank == 0 else None)[0]


@contextmanager
def joined() -> Iterator[Team]:
    """The team, for as long as the context lasts. What torchrun started stays joined: it can't be joined twice."""
    if not distributed.is_initialized():
        _join()
    # beside the user's own group: their backend may give up after minutes, and may know no objects
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), group)
    finally:
        distributed.destroy_process_group(group)


def _join() -> None:
    """Lightning Fabric joins what torchrun started, and starts nothing itself."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if world % here:
        raise ValueError(f"torchrun started {here} of {world} processes here: expected as many on every node")
    # torchrun keeps its store when it starts processes again, and there the addresses of those that died still stand
    store, rank, _ = next(rendezvous("env://"))
    store = distributed.PrefixStore(f"sparring-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
    fabric = Fabric(accelerator="cpu", devices=here, num_nodes=world // here, strategy=DDPStrategy())
    fabric.launch()
    atexit.register(_leave)
    if fabric.world_size != world or fabric.global_rank != rank:
        raise RuntimeError(f"joined as process {fabric.global_rank} of {fabric.world_size}, expected {rank} of {world}")


def _leave() -> None:
    """Before the interpreter is taken down: threads that talk to others, left running, now and then abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def together(
    evaluate: Callable[..., EvaluationResult],
    *,
    model: Model,
    data: Any,
    out: str | Path | None,
    device: torch.device | str | None,
    progress: bool | Callable[[Progress], None],
    **settings: Any,
) -> EvaluationResult:
    """`evaluate` with these arguments, shared out among the processes."""
    with ExitStack() as stack:
        team = stack.enter_context(joined())
        bare = stack.enter_context(_bare(model, team))
        _check_same(team, bare, data, settings["seed"], settings["indices"], settings["max_samples"])
        folder = _shared_folder(team, out)
        working = [shards.working(folder, (rank, team.size)) for rank in range(team.size)]
        show = stack.enter_context(Bar()) if progress is True and team.rank == 0 else progress
        report = (
            Shared([share.path / "progress.json" for share in working], team.rank, show) if callable(show) else None
        )
        if settings["query_log"] is not None:  # one file each: lines of several writers would mix
            log = Path(settings["query_log"])
            settings["query_log"] = log.with_stem(f"{log.stem}-{team.rank}-of-{team.size}")
        settings |= {"model": bare, "data": data, "out": folder, "shard": (team.rank, team.size)}
        result = evaluate(device=_device(bare, device), progress=report or False, **settings)
        if "shard" not in result.document["settings"]:
            return result  # that of an earlier start, whole, for all
        if report is not None and team.rank == 0:
            while not all(share.ended for share in working):
                time.sleep(0.5)
                report.show()
            report.show()  # another's end may have come between the last look and the question
        team.gather(None)
        del result
        error: Exception | None = None
        if team.rank == 0:
            try:
                if merge(folder).finished:
                    shards.remove(folder)
            except (OSError, ValueError) as found:
                error = found
        if (error := team.tell(error)) is not None:
            raise error
        if out is not None:
            return EvaluationResult.load(folder)
        # a temporary result lives as long as its object, so each process has one of its own
        result = EvaluationResult.load(EvaluationResult.load(folder).save(tempfile.mkdtemp(prefix="sparring-")))
        assert result.folder is not None
        weakref.finalize(result, shutil.rmtree, result.folder, ignore_errors=True)
        team.gather(None)
        if team.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return result


@contextmanager
def _bare(model: Model, team: Team) -> Iterator[Model]:
    """The network inside of what trains it in many processes: each attacks at its own pace, so nothing may wait for others.

    `DistributedDataParallel` trains with the first process's buffers; so they count here, and each gets its own back.
    """
    kept: list[torch.Tensor] = []
    wrapped: Any = model
    while isinstance(wrapped, DistributedDataParallel) or type(wrapped).__name__ == "_FabricModule":
        if isinstance(wrapped, DistributedDataParallel) and wrapped.broadcast_buffers:
            kept = [buffer.clone() for buffer in wrapped.module.buffers()]
        wrapped = wrapped.module
    model = wrapped
    if isinstance(model, nn.Module) and any(hasattr(p, "placements") for p in model.parameters()):
        raise ValueError(
            "the model's parameters are spread over processes (FSDP): evaluate a copy that is whole in each"
        )
    if not kept or not isinstance(model, nn.Module):
        yield model
        return
    for buffer, first in zip(model.buffers(), team.tell([buffer.cpu() for buffer in kept]), strict=True):
        buffer.copy_(first)
    try:
        yield model
    finally:
        for buffer, own in zip(model.buffers(), kept, strict=True):
            buffer.copy_(own)


def _device(model: Model, device: torch.device | str | None) -> torch.device | None:
    """Where it was told, else where the model is; from the CPU each process goes to a GPU of its own, where there are any."""
    if device is not None:
        return own_device(torch.device(device))
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if first is not None and first.device.type == "cpu" and torch.cuda.is_available():
        return own_device(torch.device("cuda"))
    return None


def _check_same(
    team: Team, model: Model, data: Any, seed: int, indices: torch.Tensor | None, max_samples: int | None
) -> None:
    """ValueError, in all processes, where they were given different models, or different data: the shares are dealt here."""
    weights = describe_model(model, None)["sha256"]
    for rank, theirs in enumerate(team.gather(weights)):
        if theirs != weights:
            raise ValueError(f"the models of processes {team.rank} and {rank} have different weights: expected copies")
    source = Source(data, 1, None, seed, indices)
    if source.total is not None and min(source.total, max_samples or source.total) < team.size:
        raise ValueError(
            f"{team.size} processes for {min(source.total, max_samples or source.total)} samples: use fewer processes"
        )
    first = None
    if source.available is not None:
        batch = next(iter(source))
        first = (source.available, digest(batch.x, batch.y))
    for rank, other in enumerate(team.gather(first)):
        if other != first:
            raise ValueError(
                f"processes {team.rank} and {rank} were given different data: expected all of it in each, the shares are "
                "dealt by evaluate; or evaluate in one process alone with shard=(0, 1)"
            )


def _shared_folder(team: Team, out: str | Path | None) -> Path:
    """`out`, or a temporary folder. ValueError where not all processes see the same one."""
    wanted = (
        Path(out).absolute()
        if out is not None
        else Path(tempfile.mkdtemp(prefix="sparring-"))
        if team.rank == 0
        else None
    )
    folder: Path = team.tell(wanted)
    token = folder / f".{team.tell(uuid.uuid4().hex)}"
    if team.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    team.gather(None)
    seen = token.exists()
    for _ in range(20 if not seen else 0):  # network file systems may lag behind
        time.sleep(0.25)
        seen = seen or token.exists()
    blind = [rank for rank, sees in enumerate(team.gather(seen)) if not sees]
    if team.rank == 0:
        token.unlink()
    if blind:
        raise ValueError(
            f"process {blind[0]} does not see {folder}: give out=, a folder on a file system that all processes share"
        )
    return folder
