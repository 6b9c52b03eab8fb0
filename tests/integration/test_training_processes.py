"""Several real processes under torchrun: their sums, and what becomes of the others when one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys

import torch

from mdpr.params import parse_params
from mdpr.errors import TrainingError
from mdpr.training.distributed import join

sections = parse_params({"backbone": {"device": "cpu"}})
with join(sections.tune, sections.backbone) as distributed:
    learned = [torch.nn.Parameter(torch.zeros(*shape)) for shape in ((2, 3), (4,), (1,))]
    learned[0].grad = torch.full((2, 3), 10.0 ** distributed.rank)
    learned[2].grad = torch.full((1,), float(distributed.rank))
    terms = distributed.sum_gradients(learned, torch.tensor([0.5, distributed.rank]))
    assert terms.tolist() == [1.0, 1.0], terms
    assert learned[0].grad.tolist() == [[11.0] * 3] * 2, learned[0].grad
    assert learned[1].grad is None
    assert learned[2].grad.tolist() == [1.0]
    assert distributed.any(distributed.rank == 1) and not distributed.any(False)
    assert distributed.is_main == (distributed.rank == 0)
    print("summed", flush=True)
    if distributed.rank == 1:
        sys.exit("an image of this process is broken")
    try:
        distributed.any(False)
    except TrainingError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)
"""


def test_processes_sum_exactly_and_none_waits_for_one_that_failed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.count("summed") == 2, done.stderr
    assert done.returncode != 0
    assert "an image of this process is broken" in done.stderr
    # torchrun may end the other one before it has said so; what it must not do is wait.
    assert "error: process 0 of 2 lost the others (" in done.stdout or "SIGTERM" in done.stderr
