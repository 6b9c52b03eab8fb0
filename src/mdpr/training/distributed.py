"""One training run in several processes: the group that torchrun started, and sums over it.

Gradients are summed by one all-reduce per step over one flat tensor, not by `DistributedDataParallel`, for three
reasons: DDP regroups its buckets after the first backward pass, so that a resumed run would add in another order than
an uninterrupted one; it divides by the number of processes, but shards of unequal size need weights; and stop and
error checks must have the same result in all processes. The learned weights are a few megabytes at most, so
overlapping the exchange with the backward pass would gain little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdpr.errors import ConfigError, TrainingError
from mdpr.launch import Launch, read_launch
from mdpr.params import BackboneParams, TuneParams

TIMEOUT_S = 1800  # of an exchange; long, because loading and validation take unequal time


class DistributedContext:
    """The processes of a run. With one process every method is the identity."""

    def __init__(self, launch: Launch) -> None:
        self.rank, self.world, self.is_main = launch.rank, launch.world, launch.is_main

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes, in place.

        Raises `TrainingError` if another process has ended; that process prints the cause.
        """
        if self.world > 1:
            try:
                dist.all_reduce(value)
            except RuntimeError as error:  # what gloo and NCCL raise for a lost peer or a time-out
                reason = str(error).splitlines()[0][:200]
                raise TrainingError(
                    f"process {self.rank} of {self.world} lost the others ({reason}): the first error above is theirs"
                ) from error
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; the same result in all of them."""
        return bool(self.sum(torch.tensor(int(flag))).item()) if self.world > 1 else flag

    def sum_gradients(self, parameters: Sequence[nn.Parameter], terms_K: Tensor) -> Tensor:
        """Sum the gradients of `parameters` in place and return the sum of `terms_K`, in one exchange."""
        if self.world == 1:
            return terms_K
        learning = [parameter for parameter in parameters if parameter.grad is not None]
        pieces = [terms_K, *(parameter.grad.flatten() for parameter in learning if parameter.grad is not None)]
        flat = self.sum(torch.cat(pieces))
        terms_K, *summed = flat.split([len(piece) for piece in pieces])
        for parameter, gradient in zip(learning, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return terms_K


SINGLE_PROCESS = DistributedContext(Launch())


@contextmanager
def join(params: TuneParams, backbone: BackboneParams) -> Iterator[DistributedContext]:
    """The group of processes that torchrun started, or a single process without torchrun.

    Tensors on the CPU are exchanged by gloo, those on a GPU by NCCL; each process takes the GPU of its local rank.
    Raises `ConfigError` if a step has fewer images than there are processes, or a GPU is missing.
    """
    launch = read_launch()
    if launch.world == 1:
        yield DistributedContext(launch)
        return
    if params.batch_size < launch.world:
        raise ConfigError(
            f"tune.batch_size = {params.batch_size} is less than the {launch.world} processes: "
            "raise it or start fewer (torchrun --nproc-per-node)"
        )
    backend = "gloo"
    if backbone.device != "cpu" and torch.cuda.is_available():
        if launch.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {launch.local_rank} of this machine has no GPU of its own, {torch.cuda.device_count()} are "
                "visible: start fewer (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(launch.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    yield DistributedContext(launch)
    dist.destroy_process_group()  # skipped after an error: it would wait for the others, and the process ends anyway
