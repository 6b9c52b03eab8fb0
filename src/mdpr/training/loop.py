"""The training loop: steps, validation, the best epoch, and the places where a run may stop and go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdpr.artifacts import ShotGroup
from mdpr.data.loading import ImageTable, make_loader
from mdpr.data.sampling import ORDERS, plan_epoch, shard
from mdpr.errors import Interrupted
from mdpr.model.classifier import MDPR
from mdpr.progress import track
from mdpr.training.accumulation import accumulate_gradients
from mdpr.training.checkpoint import Snapshot
from mdpr.training.distributed import ALONE, Ranks
from mdpr.training.guard import check_terms
from mdpr.training.history import Row, is_better, make_row, mean_terms
from mdpr.training.interruption import StopRequest
from mdpr.training.objective import Objective
from mdpr.training.state import Best, TrainingState, learning_parameters
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
    history: list[Row]


@dataclass(frozen=True)
class Surroundings:
    """What a run meets outside of its own arithmetic. The defaults are one process that nobody interrupts.

    ranks     the processes that train together; `on_epoch` and `save` are called in the one that leads
    on_epoch  gets each new row of the history and its epoch
    save      keeps a snapshot from which `resume` goes on
    resume    what an earlier run of the same configuration kept
    stop      asked for from outside: the step that runs is finished, a snapshot kept, `Interrupted` raised
    """

    ranks: Ranks = ALONE
    on_epoch: Callable[[Row, int], None] = lambda row, epoch: None
    save: Callable[[Snapshot], None] = lambda snapshot: None
    resume: Snapshot | None = None
    stop: StopRequest = field(default_factory=StopRequest)


def fit(model: MDPR, objective: Objective, data: TrainingData, around: Surroundings | None = None) -> Fitted:
    """Train the learned parameters of `model` and return those of the best epoch.

    An epoch is judged by class-balanced validation accuracy of the branch `tune.select_by` (of the base where there
    is no router); the earlier of two equal ones wins. A row of the history holds learning_rate, loss, the terms of
    the loss, and val_{branch}_{group}.
    The same seed gives the same numbers on the same machine, whether or not the run was stopped and resumed on the
    way: all that is random in a step hangs on (seed, epoch, step) and on places in the step's batch.
    Raises `Diverged` where a term of the loss is no longer a number, with the step and the term, and `Interrupted`
    where a stop was asked for.
    """
    around = around or Surroundings()
    params = model.params
    state = TrainingState.at_start(model, steps_per_epoch=-(-len(data.train) // params.batch_size))
    if around.resume is not None:
        state.restore(around.resume)
        logger.info("going on after step %d of epoch %d/%d", state.step, state.epoch + 1, params.epochs)
    while not state.finished():
        _train_epoch(state, objective, data.train, around)
        _close_epoch(state, data, around)
        _save(state, around)
        if around.ranks.any(around.stop.made):
            _leave(state, around)
    assert state.best is not None, "epochs is at least 1"
    return Fitted(state.best.weights, state.best.epoch, state.best.val_accuracy, state.history)


def _train_epoch(state: TrainingState, objective: Objective, dataset: ImageTable, around: Surroundings) -> None:
    """What is left of one pass over the training set."""
    model, params, ranks, epoch = state.model, state.model.params, around.ranks, state.epoch
    model.train()
    order = ORDERS[params.sampling](dataset.labels_N, params.seed, epoch)
    steps = plan_epoch(order, params.batch_size, params.micro_batch_size, ranks.rank, ranks.world)[state.step :]
    loader = make_loader(
        dataset,
        [part.indices for step in steps for part in step],
        epoch=epoch,
        workers=params.workers,
        pin_memory=_is_cuda(state),
    )
    batches = iter(loader)  # of the whole epoch; each step below takes its own share of them
    title = f"tune, epoch {epoch + 1}/{params.epochs}"
    checked = state.step
    for step in track(steps, title) if ranks.leads else steps:
        state.optimizer.zero_grad(set_to_none=True)
        loaded = zip(step, batches, strict=False)
        terms = accumulate_gradients(objective, loaded, state.precision, seed=params.seed, epoch=epoch, step=state.step)
        state.term_names = list(terms)
        state.terms.append(ranks.sum_gradients(learning_parameters(model), torch.stack(list(terms.values()))))
        scaler = state.precision.scaler
        scaler.step(state.optimizer)
        scaler.update()
        state.schedule.step()
        state.step += 1
        asked = ranks.any(around.stop.made)
        every = params.checkpoint_every_steps
        save = asked or (every is not None and state.step % every == 0)
        if save or state.step - checked >= CHECK_EVERY_STEPS or step is steps[-1]:
            check_terms(state.terms, state.term_names, epoch=epoch, start=checked)
            checked = state.step
        if save:
            _save(state, around)
        if asked:
            _leave(state, around)


def _close_epoch(state: TrainingState, data: TrainingData, around: Surroundings) -> None:
    """Validate, write the row of the history, choose between this epoch and the best so far."""
    params, ranks, epoch = state.model.params, around.ranks, state.epoch
    size = (params.micro_batch_size or params.batch_size) * EVAL_BATCH_FACTOR
    start, stop = shard(len(data.val), ranks.rank, ranks.world)
    batches = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
    loader = make_loader(data.val, batches, workers=params.workers, pin_memory=_is_cuda(state))
    accuracy = validate(state.model, loader, data.shots, ranks)
    terms = mean_terms(state.terms, state.term_names, len(data.train), params.batch_size)
    row = make_row(epoch, state.learning_rate, terms, accuracy)
    overall = {branch: groups["all"] for branch, groups in accuracy.items()}
    percent = ", ".join(f"{branch} {100 * value:.1f}" for branch, value in overall.items())
    logger.info("epoch %d/%d: loss %.4f, validation %s", epoch + 1, params.epochs, row["loss"], percent)

    best = state.best
    if best is None or is_better(overall, best.val_accuracy, params.select_by):
        weights = {name: value.clone() for name, value in state.model.learned_state().items()}
        best = Best(weights, epoch, overall)
    state.begin_next_epoch(row, best)
    if ranks.leads:
        around.on_epoch(row, epoch)


def _save(state: TrainingState, around: Surroundings) -> None:
    if around.ranks.leads:
        around.save(state.snapshot())


def _leave(state: TrainingState, around: Surroundings) -> None:
    """Stop. No process goes before the one that keeps the snapshot has kept it."""
    around.ranks.any(True)
    raise Interrupted(
        f"stopped by SIGTERM after step {state.step} of epoch {state.epoch + 1}: the same command goes on from there"
    )


def _is_cuda(state: TrainingState) -> bool:
    return state.model.backbone.device.type == "cuda"
