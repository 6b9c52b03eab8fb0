"""The training loop: optimiser steps, validation, the best epoch, and how a run stops and resumes.

`fit` is the entry. The parts it is made of stand above it: precision, schedule, validation, the gradients of one step,
and `TrainingState`, which is everything that changes while training runs.

Shapes: B images of a micro-batch, S steps of an epoch so far, K terms of the loss, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader

from mdpr.artifacts import ShotGroup, read_classes, read_split
from mdpr.errors import ConfigError, Diverged, Interrupted
from mdpr.evaluation.metrics import group_means
from mdpr.images.loading import (
    ORDERS,
    ImageTable,
    MicroBatch,
    eval_transform,
    make_loader,
    plan_epoch,
    scoring_batch_size,
    shard,
    train_transform,
)
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.model.fusion import RecallCounter, Validated, weigh
from mdpr.params import TuneParams
from mdpr.progress import track
from mdpr.training.checkpoint import Snapshot, seed_step
from mdpr.training.distributed import SINGLE_PROCESS, DistributedContext
from mdpr.training.losses import Objective

logger = logging.getLogger(__name__)

EVAL_BATCH_FACTOR = 4  # validation keeps no gradients: a larger batch fits
CHECK_EVERY_STEPS = 20  # reading a loss value makes the host wait for the GPU, so not after every step
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": AdamW, "sgd": partial(SGD, momentum=0.9)}
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # fp32 runs without autocast

Row = dict[str, float]
LoadedBatch = tuple[MicroBatch, tuple[Tensor, Tensor]]  # images float32 (B, 3, H, W), labels int64 (B,)


def check_terms(terms: Sequence[Tensor], names: Sequence[str], *, epoch: int, start: int) -> None:
    """Raise `Diverged` at the first of an epoch's steps from `start`, and its first term, that is not finite.

    `terms` holds the values (K,) of every step of the epoch so far.
    """
    value_SK = torch.stack(list(terms[start:]))
    bad = (~value_SK.isfinite()).nonzero().tolist()
    if bad:
        step, term = bad[0]
        raise Diverged(
            f"the loss term {names[term]} is {value_SK[step][term].item()} at step {start + step} of epoch "
            f"{epoch + 1}: lower tune.learning_rate, or tune.precision = fp32"
        )


class Precision:
    """Mixed precision by name: `autocast()` for the model, `scaler` for the gradients (active with fp16 only).

    Learned weights stay float32; logits, cosines and losses are computed in float32.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device_type = device.type
        # float16 has no gradients below 6e-8; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, HALF_TYPES.get(self.name), enabled=self.name in HALF_TYPES)


def check_precision(name: str, device: torch.device) -> None:
    """Raise `ConfigError` for fp16 without a GPU: on a CPU it is many times slower than fp32."""
    if name == "fp16" and device.type != "cuda":
        raise ConfigError(f"tune.precision = fp16 needs a CUDA GPU, backbone.device is {device.type}: use bf16 or fp32")


def make_schedule(optimizer: Optimizer, params: TuneParams, steps_per_epoch: int) -> LRScheduler:
    """Warm-up from 1/(w + 1) of `tune.learning_rate` over w steps, then a cosine down to `tune.min_learning_rate`."""
    steps_per_epoch = 1 if params.schedule == "epoch" else steps_per_epoch
    total = params.epochs * steps_per_epoch
    warmup = min(round(params.warmup_epochs * steps_per_epoch), total - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=params.min_learning_rate)
    if warmup == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup])


def mean_terms(terms: Sequence[Tensor], names: Sequence[str], images: int, batch_size: int) -> Row:
    """Each weighted term's mean over the images of an epoch, from its means (K,) over each step's batch."""
    size_S = torch.full((len(terms),), batch_size, dtype=torch.float64)
    size_S[-1] = images - batch_size * (len(terms) - 1)
    mean_K = (torch.stack(list(terms)).cpu().double() * (size_S / images)[:, None]).sum(dim=0)
    return dict(zip(names, mean_K.tolist(), strict=True))


def make_row(epoch: int, learning_rate: float, terms: Row, accuracy: Mapping[str, Mapping[str, float]]) -> Row:
    """epoch, learning_rate, loss, loss_{term} and val_{branch}_{group}."""
    row: Row = {"epoch": epoch, "learning_rate": learning_rate, "loss": sum(terms.values())}
    row |= {f"loss_{name}": value for name, value in terms.items()}
    return row | {f"val_{branch}_{group}": v for branch, groups in accuracy.items() for group, v in groups.items()}


@torch.no_grad()
def validate(
    model: MDPR,
    loader: DataLoader,
    shots: Sequence[ShotGroup],
    distributed: DistributedContext = SINGLE_PROCESS,
    choose_fusion: bool = False,
) -> dict[str, dict[str, float]]:
    """branch -> group -> class-balanced accuracy (0..1) for base, fused and, with a router, routed.

    Class features and the router's table are computed once. Each process counts the images of its own loader; the
    counts are summed, so that every process gets the same result. `choose_fusion` sets the weight of a `Validated`
    fusion to the one that is best on these images, and calibrates gla on them. Leaves the model in evaluation mode.
    """
    model.eval()
    constants = model.constants()
    if choose_fusion:
        passes = ((label_B, model(image.to(model.backbone.device), constants=constants)) for image, label_B in loader)
        model.fusion.calibrate(((y, (out.base_BC, out.routed_BC, out.expert_BC)) for y, out in passes), distributed.sum)
    branches = ("base", "fused") if model.router is None else ("base", "routed", "fused")
    candidates = Validated.CANDIDATES if choose_fusion and isinstance(model.fusion, Validated) else ()
    counter = RecallCounter(len(branches) + len(candidates), len(shots))
    for image_B3HW, label_B in loader:
        outputs = model(image_B3HW.to(model.backbone.device), constants=constants)
        answers = (getattr(outputs, f"{branch}_BC") for branch in branches)
        weighed = (weigh(outputs.base_BC, outputs.routed_BC, weight) for weight in candidates)
        counter.add(label_B, chain(answers, weighed))
    counter.sum(distributed.sum)
    groups = [group_means(recall_C, shots) for recall_C in counter.recall_KC()]
    accuracy = dict(zip(branches, groups, strict=False))
    if candidates:
        assert isinstance(model.fusion, Validated)
        of_candidates = groups[len(branches) :]
        accuracy["fused"] = of_candidates[model.fusion.choose([group["all"] for group in of_candidates])]
    return accuracy


def accumulate_gradients(
    objective: Objective, batches: Iterable[LoadedBatch], precision: Precision, *, seed: int, epoch: int, step: int
) -> dict[str, Tensor]:
    """Add the gradients of a step's loss to the learned parameters; return the weighted terms, detached, by name.

    Every term is a mean over images, so the sum over micro-batches, each weighted by its share of the images, equals
    the whole batch. With fp16 the gradients are still scaled.
    """
    device = objective.model.backbone.device
    totals: dict[str, Tensor] = {}
    for part, (image_B3HW, label_B) in batches:
        seed_step(seed, epoch, step, part.offset)
        label_B = label_B.to(device, non_blocking=True)
        with precision.autocast():
            outputs = objective.model(image_B3HW.to(device, non_blocking=True), label_B)
        terms = objective.terms(outputs, label_B, epoch)
        loss = torch.stack(list(terms.values())).sum()
        precision.scaler.scale(part.share * loss).backward()
        for name, term in terms.items():
            weighted = part.share * term.detach()
            totals[name] = totals[name] + weighted if name in totals else weighted
    return totals


@dataclass(frozen=True)
class Best:
    """The best epoch so far: its learned weights and its overall validation accuracy by branch."""

    state: dict[str, Tensor]
    epoch: int
    val_accuracy: dict[str, float]


@dataclass(frozen=True)
class FitResult(Best):
    """The best epoch of a run, and the history of all epochs."""

    history: list[Row]


@dataclass
class TrainingState:
    """Everything that changes while training runs: `step` optimiser steps of `epoch` are done.

    `terms` are the weighted loss terms (K,) of those steps, `term_names` their names, `learning_rate` is that of the
    epoch's first step, `history` holds the rows of complete epochs.
    """

    model: MDPR
    optimizer: Optimizer
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
        check_precision(params.precision, model.backbone.device)
        rates = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
        optimizer = OPTIMIZERS[params.optimizer](learning_parameters(model), **rates)
        schedule = make_schedule(optimizer, params, steps_per_epoch)
        precision = Precision(params.precision, model.backbone.device)
        return cls(model, optimizer, schedule, precision, learning_rate=float(schedule.get_last_lr()[0]))

    def finished(self) -> bool:
        """Whether all epochs are done, or the last `tune.early_stopping_patience` of them brought nothing better."""
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
            tensors |= {f"best.{name}": value for name, value in self.best.state.items()}
            record["best"] = {"epoch": self.best.epoch, "val_accuracy": self.best.val_accuracy}
        return Snapshot(tensors, record)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from `snapshot`, in place. It must come from a run of the same configuration."""
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


@dataclass(frozen=True)
class TrainingData:
    """Training and validation images with their transforms, and each class's training count and shot group."""

    train: ImageTable
    val: ImageTable
    counts: Sequence[int]
    shots: Sequence[ShotGroup]

    @classmethod
    def read(cls, prepared: Path, backbone: Backbone, params: TuneParams) -> TrainingData:
        """The splits of the folder `prepared`, transformed as `backbone` needs them."""
        classes = read_classes(prepared)
        preprocess = (backbone.image_size_px, backbone.image_mean, backbone.image_std)
        train, val = read_split(prepared, "train"), read_split(prepared, "val")
        return cls(
            train=ImageTable(train, train_transform(*preprocess, params.augment), seed=params.seed),
            val=ImageTable(val, eval_transform(*preprocess)),
            counts=[item.train_images for item in classes],
            shots=[item.shot for item in classes],
        )


@dataclass(frozen=True)
class TrainContext:
    """The surroundings of a run. The defaults are one process that is never interrupted.

    distributed  the processes that train together; `on_epoch` and `save` are called in the main one only
    on_epoch     gets each new row of the history and its epoch
    save         keeps a snapshot
    resume       a snapshot of an earlier run of the same configuration, to continue from
    stop         once set, the current step is finished, a snapshot saved and `Interrupted` raised
    """

    distributed: DistributedContext = SINGLE_PROCESS
    on_epoch: Callable[[Row, int], None] = lambda row, epoch: None
    save: Callable[[Snapshot], None] = lambda snapshot: None
    resume: Snapshot | None = None
    stop: Event = field(default_factory=Event)


def fit(model: MDPR, objective: Objective, data: TrainingData, context: TrainContext | None = None) -> FitResult:
    """Train the learned parameters of `model` and return those of the best epoch.

    Epochs are compared by class-balanced validation accuracy of the branch `tune.select_by` (of base without a
    router); the earlier of two equal ones wins. A row of the history holds epoch, learning_rate, loss, the terms of
    the loss, val_{branch}_{group}, and base_weight of a `Validated` fusion.
    The same seed gives the same numbers on the same machine, also if the run was stopped and resumed: everything
    random in a step depends only on (seed, epoch, step) and on places in the step's batch.
    Raises `Diverged` if a term of the loss is no longer finite, with the step and the term, and `Interrupted` after a
    requested stop.
    """
    context = context or TrainContext()
    params = model.params
    state = TrainingState.at_start(model, steps_per_epoch=-(-len(data.train) // params.batch_size))
    if context.resume is not None:
        state.restore(context.resume)
        logger.info("resuming after step %d of epoch %d/%d", state.step, state.epoch + 1, params.epochs)
    while not state.finished():
        _train_epoch(state, objective, data.train, context)
        _close_epoch(state, data, context)
        _save(state, context)
        if context.distributed.any(context.stop.is_set()):
            _leave(state, context)
    assert state.best is not None, "epochs is at least 1"
    return FitResult(**vars(state.best), history=state.history)


def _train_epoch(state: TrainingState, objective: Objective, dataset: ImageTable, context: TrainContext) -> None:
    """Run the remaining steps of one pass over the training set."""
    model, params, distributed, epoch = state.model, state.model.params, context.distributed, state.epoch
    model.train()
    order = ORDERS[params.sampling](dataset.labels_N, params.seed, epoch)
    plan = plan_epoch(order, params.batch_size, params.micro_batch_size, distributed.rank, distributed.world)
    steps = plan[state.step :]
    loader = make_loader(
        dataset,
        [part.indices for step in steps for part in step],
        epoch=epoch,
        workers=params.workers,
        pin_memory=_is_cuda(model),
    )
    batches = iter(loader)  # of the whole epoch; each step below takes its own micro-batches
    title = f"tune, epoch {epoch + 1}/{params.epochs}"
    checked = state.step
    for step in track(steps, title) if distributed.is_main else steps:
        state.optimizer.zero_grad(set_to_none=True)
        loaded = zip(step, batches, strict=False)
        terms = accumulate_gradients(objective, loaded, state.precision, seed=params.seed, epoch=epoch, step=state.step)
        state.term_names = list(terms)
        state.terms.append(distributed.sum_gradients(learning_parameters(model), torch.stack(list(terms.values()))))
        scaler = state.precision.scaler
        scaler.step(state.optimizer)
        scaler.update()
        if params.schedule == "step" or step is steps[-1]:
            state.schedule.step()
        state.step += 1
        stop = distributed.any(context.stop.is_set())
        save = stop or bool(params.checkpoint_every_steps and state.step % params.checkpoint_every_steps == 0)
        if save or state.step - checked >= CHECK_EVERY_STEPS or step is steps[-1]:
            check_terms(state.terms, state.term_names, epoch=epoch, start=checked)
            checked = state.step
        if save:
            _save(state, context)
        if stop:
            _leave(state, context)


def _close_epoch(state: TrainingState, data: TrainingData, context: TrainContext) -> None:
    """Validate, add a row to the history, keep the better of this epoch and the best so far."""
    params, distributed, epoch = state.model.params, context.distributed, state.epoch
    size = scoring_batch_size((params.micro_batch_size or params.batch_size) * EVAL_BATCH_FACTOR, len(data.shots))
    start, stop = shard(len(data.val), distributed.rank, distributed.world)
    batches = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
    loader = make_loader(data.val, batches, workers=params.workers, pin_memory=_is_cuda(state.model))
    accuracy = validate(state.model, loader, data.shots, distributed, choose_fusion=True)
    terms = mean_terms(state.terms, state.term_names, len(data.train), params.batch_size)
    row = make_row(epoch, state.learning_rate, terms, accuracy)
    if isinstance(state.model.fusion, Validated):
        row["base_weight"] = round(state.model.fusion.base_weight.item(), 2)
    overall = {branch: groups["all"] for branch, groups in accuracy.items()}
    percent = ", ".join(f"{branch} {100 * value:.1f}" for branch, value in overall.items())
    logger.info("epoch %d/%d: loss %.4f, validation %s", epoch + 1, params.epochs, row["loss"], percent)

    best, branch = state.best, params.select_by if params.select_by in overall else "base"
    if best is None or overall[branch] > best.val_accuracy[branch]:  # of two equal epochs the earlier stays
        weights = {name: value.clone() for name, value in state.model.learned_state().items()}
        best = Best(weights, epoch, overall)
    state.begin_next_epoch(row, best)
    if distributed.is_main:
        context.on_epoch(row, epoch)


def _save(state: TrainingState, context: TrainContext) -> None:
    if context.distributed.is_main:
        context.save(state.snapshot())


def _leave(state: TrainingState, context: TrainContext) -> None:
    """Stop. No process leaves before the main one has saved the snapshot."""
    context.distributed.any(True)
    raise Interrupted(
        f"stopped by SIGTERM after step {state.step} of epoch {state.epoch + 1}: the same command goes on from there"
    )


def _is_cuda(model: MDPR) -> bool:
    return model.backbone.device.type == "cuda"
