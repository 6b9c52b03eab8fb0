"""The training loop: AdamW, cosine, the best epoch by validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdpr.artifacts import ShotGroup
from mdpr.data.loading import ImageTable, make_loader
from mdpr.errors import TrainingError
from mdpr.model.classifier import MDPR
from mdpr.progress import track
from mdpr.training.objective import Objective
from mdpr.training.reproducibility import seed_step
from mdpr.training.validation import validate

logger = logging.getLogger(__name__)

EVAL_BATCH_FACTOR = 4  # no gradients are kept in validation, so a larger batch fits
CHECK_EVERY_STEPS = 20  # reading a loss makes the host wait for the GPU: not after every step


@dataclass(frozen=True)
class TrainingData:
    """Both splits with the transforms they need, and what the classes look like in training."""

    train: ImageTable
    val: ImageTable
    counts: Sequence[int]
    shots: Sequence[ShotGroup]


@dataclass(frozen=True)
class Fitted:
    """The epoch that validation chose."""

    state: dict[str, Tensor]
    epoch: int
    val_accuracy: dict[str, float]
    history: list[dict[str, float]]


def fit(
    model: MDPR,
    objective: Objective,
    data: TrainingData,
    on_epoch: Callable[[dict[str, float], int], None] = lambda row, epoch: None,
) -> Fitted:
    """Train the learned parameters of `model` and return those of the best epoch.

    An epoch is judged by class-balanced validation accuracy of the branch `tune.select_by` (of the base where there
    is no router); the earlier of two equal ones wins. `on_epoch` gets each row of the history: learning_rate, loss,
    the terms of the loss, and val_{branch}_{group}.
    The same seed gives the same numbers on the same machine: every step seeds torch's generator (dropout) anew.
    Raises `TrainingError` where a term of the loss is no longer a number, with the step and the term.
    """
    params = model.params
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
    )
    steps_per_epoch = -(-len(data.train) // params.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=params.epochs * steps_per_epoch, eta_min=params.min_learning_rate
    )
    best: Fitted | None = None
    history: list[dict[str, float]] = []
    for epoch in range(params.epochs):
        learning_rate = schedule.get_last_lr()[0]
        terms = _train_epoch(model, objective, data.train, optimizer, schedule, epoch)
        loader = make_loader(data.val, params.batch_size * EVAL_BATCH_FACTOR)
        accuracy = validate(model, loader, data.shots)
        row: dict[str, float] = {"epoch": epoch, "learning_rate": float(learning_rate), "loss": sum(terms.values())}
        row |= {f"loss_{name}": value for name, value in terms.items()}
        row |= {f"val_{branch}_{group}": v for branch, groups in accuracy.items() for group, v in groups.items()}
        history.append(row)
        on_epoch(row, epoch)
        chosen = accuracy.get(params.select_by, accuracy["base"])["all"]
        overall = {branch: groups["all"] for branch, groups in accuracy.items()}
        logger.info(
            "epoch %d/%d: loss %.4f, validation %s",
            epoch + 1,
            params.epochs,
            row["loss"],
            ", ".join(f"{branch} {100 * value:.1f}" for branch, value in overall.items()),
        )
        if best is None or chosen > best.val_accuracy.get(params.select_by, best.val_accuracy["base"]):
            state = {name: value.clone() for name, value in model.learned_state().items()}
            best = Fitted(state, epoch, overall, history)
    assert best is not None, "epochs is at least 1"
    return best


def _train_epoch(
    model: MDPR,
    objective: Objective,
    dataset: ImageTable,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> dict[str, float]:
    """One pass over the training set; the mean of each weighted term over images."""
    params, device = model.params, model.backbone.device
    model.train()
    loader = make_loader(dataset, params.batch_size, seed=params.seed, epoch=epoch)
    names: list[str] = []
    values: list[Tensor] = []  # (terms,) a step, left on the device until they are read
    sizes: list[int] = []
    for step, (image_B3HW, label_B) in enumerate(track(loader, f"tune, epoch {epoch + 1}/{params.epochs}")):
        seed_step(params.seed, epoch, step)
        label_B = label_B.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            outputs = model(image_B3HW.to(device), label_B)
            terms = objective.terms(outputs, label_B, epoch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        names = list(terms)
        values.append(torch.stack([term.detach() for term in terms.values()]))
        sizes.append(len(label_B))
        if step % CHECK_EVERY_STEPS == 0:
            _check(values[-CHECK_EVERY_STEPS:], names, epoch, step)
    _check(values[-CHECK_EVERY_STEPS:], names, epoch, len(values) - 1)
    weight = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    means = (torch.stack(values).cpu().double() * weight[:, None]).sum(dim=0)
    return dict(zip(names, means.tolist(), strict=True))


def _check(values: list[Tensor], names: list[str], epoch: int, last_step: int) -> None:
    """Raise at the first step, and the first term of it, that is not a finite number."""
    bad = (~torch.stack(values).isfinite()).nonzero().tolist()
    if bad:
        row, term = bad[0]
        step = last_step - len(values) + 1 + row
        raise TrainingError(
            f"the loss term {names[term]} is {values[row][term].item()} at step {step} of epoch {epoch + 1}: "
            "lower tune.learning_rate, or tune.precision = fp32"
        )
