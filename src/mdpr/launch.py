"""Which of several processes this one is, from torchrun's environment variables. Loads no library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mdpr.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """`rank` of `world` processes, `local_rank` on its machine (the number of its GPU)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes outputs, logs, tracks and shows progress."""
        return self.rank == 0


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """torchrun's RANK, WORLD_SIZE and LOCAL_RANK; a single process if they are not set.

    Raises `ConfigError` if they contradict each other.
    """
    world = environment.get("WORLD_SIZE", "1")
    rank = environment.get("RANK", "0") if world != "1" else "0"
    local_rank = environment.get("LOCAL_RANK", "0") if world != "1" else "0"
    if not (world.isdigit() and rank.isdigit() and local_rank.isdigit() and int(rank) < int(world)):
        raise ConfigError(f"RANK = {rank!r} and WORLD_SIZE = {world!r} do not fit: start the processes with torchrun")
    return Launch(int(rank), int(world), int(local_rank))
