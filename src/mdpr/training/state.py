"""All that changes while training goes on, and how it becomes a snapshot and comes back. K terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from mdpr.model.classifier import MDPR
from mdpr.training.checkpoint import Snapshot
from mdpr.training.history import Row
from mdpr.training.precision import Precision
from mdpr.training.schedule import make_schedule


@dataclass(frozen=True)
class Best:
    """The epoch that validation prefers so far: its learned weights and its overall accuracy by branch."""

    weights: dict[str, Tensor]
    epoch: int
    val_accuracy: dict[str, float]


@dataclass
class TrainingState:
    """Where training is: `step` optimiser steps of `epoch` are done.

    `terms` are the weighted loss terms (K,) of those steps, `term_names` their names, `learning_rate` that of the
    epoch's first step, `history` the rows of the epochs that are complete.
    """

    model: MDPR
    optimizer: AdamW
    schedule: LRScheduler
    precision: Precision
    epoch: int = 0
    step: int = 0
    learning_rate: float = 0.0
    term_names: list[str] = field(default_factory=list)
    terms: list[Tensor] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)
    best: Best | None = None

    @classmethod
    def at_start(cls, model: MDPR, steps_per_epoch: int) -> TrainingState:
        params = model.params
        optimizer = AdamW(learning_parameters(model), lr=params.learning_rate, weight_decay=params.weight_decay)
        schedule = make_schedule(optimizer, params, steps_per_epoch)
        precision = Precision(params.precision, model.backbone.device)
        return cls(model, optimizer, schedule, precision, learning_rate=float(schedule.get_last_lr()[0]))

    def finished(self) -> bool:
        """Whether all epochs are done, or none was better for `tune.early_stopping_patience` epochs."""
        params, patience = self.model.params, self.model.params.early_stopping_patience
        if self.epoch >= params.epochs:
            return True
        return patience is not None and self.best is not None and self.epoch - 1 - self.best.epoch >= patience

    def begin_next_epoch(self, row: Row, best: Best) -> None:
        self.history.append(row)
        self.best = best
        self.epoch, self.step = self.epoch + 1, 0
        self.terms = []
        self.learning_rate = float(self.schedule.get_last_lr()[0])

    def snapshot(self) -> Snapshot:
        assert self.terms or self.best is not None, "nothing is done yet"
        tensors = {f"weights.{name}": value for name, value in self.model.learned_state().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        if self.terms:
            tensors["terms"] = torch.stack(self.terms)
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": self.learning_rate,
            "term_names": self.term_names,
            "history": self.history,
            "schedule": self.schedule.state_dict(),
            "group_learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "scaler": self.precision.scaler.state_dict(),
            "best": None,
        }
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
            record["best"] = {"epoch": self.best.epoch, "val_accuracy": self.best.val_accuracy}
        return Snapshot(tensors, record)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from `snapshot`, in place; it comes from a run of the same configuration."""
        record, device = snapshot.record, self.model.backbone.device
        self.model.load_learned_state(_below(snapshot.tensors, "weights"))
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in _below(snapshot.tensors, "optimizer").items():
            index, _, moment = name.partition(".")
            optimizer["state"].setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(record["schedule"])
        for group, learning_rate in zip(self.optimizer.param_groups, record["group_learning_rates"], strict=True):
            group["lr"] = learning_rate
        if record["scaler"]:
            self.precision.scaler.load_state_dict(record["scaler"])
        self.epoch, self.step, self.learning_rate = record["epoch"], record["step"], record["learning_rate"]
        self.term_names, self.history = record["term_names"], record["history"]
        self.terms = list(snapshot.tensors["terms"].to(device)) if "terms" in snapshot.tensors else []
        if record["best"] is not None:
            self.best = Best(_below(snapshot.tensors, "best"), **record["best"])


def learning_parameters(model: MDPR) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
