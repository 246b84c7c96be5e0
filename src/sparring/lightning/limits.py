"""What can't be trained in here is refused before anything runs, in one line."""

from __future__ import annotations

from typing import Any

from sparring.training.strategy import Strategy

SPREAD = ("FSDP", "DeepSpeed", "ModelParallel", "XLA")  # what the classes of such strategies are called


def refuse(trainer: Any) -> None:
    """ValueError for a Trainer whose processes each hold a part of the network, or whose BatchNorm can't run here."""
    kinds = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    known = {"SingleDeviceStrategy", "DDPStrategy"} & set(kinds)
    if not known or any(kind.startswith(SPREAD) for kind in kinds):
        raise ValueError(
            f"Trainer(strategy=…) is {kinds[0]}: adversarial training needs the whole network in each process, on one device "
            "or with strategy='ddp'"
        )
    if _synchronised(trainer) and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "Trainer(sync_batchnorm=True): torch's SyncBatchNorm runs on GPUs only; leave it out on CPUs, where "
            "AdversarialModule averages the running statistics over the processes at every step"
        )


def refuse_by_hand(trainer: Any, strategy: Strategy) -> None:
    """ValueError for what would go wrong, or be passed over, where the gradients are averaged without DDP's reducer."""
    settings = getattr(trainer.strategy, "_ddp_kwargs", {})
    if settings.get("static_graph") or getattr(trainer.strategy, "_ddp_comm_hook", None) is not None:
        raise ValueError(
            "DDPStrategy(static_graph=…, ddp_comm_hook=…): AdversarialModule averages gradients itself, once before each "
            "step; leave them out"
        )
    attack = getattr(strategy, "attack", None)
    if _synchronised(trainer) and any(getattr(each, "stop_when_fooled", False) for each in (strategy, attack)):
        raise ValueError(
            f"{strategy.name} with stop_when_fooled=True: each process would ask its network another number of times, and "
            "sync_batchnorm waits for all of them; use one or the other"
        )


def refuse_settings(trainer: Any) -> None:
    """ValueError for what a Trainer would do before each step, were it its own."""
    for name, ours, off in (
        ("gradient_clip_val", "max_grad_norm", None),
        ("accumulate_grad_batches", "accumulate", 1),
    ):
        if (value := getattr(trainer, name)) and value != off:
            raise ValueError(f"Trainer({name}={value}): AdversarialModule steps by itself, give it {ours}={value}")


def _synchronised(trainer: Any) -> bool:
    return getattr(trainer.strategy, "_layer_sync", None) is not None
