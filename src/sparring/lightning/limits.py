"""What can't be trained in here is refused before anything runs, in one line."""

from __future__ import annotations

from typing import Any

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
    if getattr(trainer.strategy, "_layer_sync", None) is not None and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "Trainer(sync_batchnorm=True): torch's SyncBatchNorm runs on GPUs only; leave it out on CPUs, where "
            "AdversarialModule averages the running statistics over the processes at every step"
        )
