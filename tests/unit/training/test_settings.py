"""Settings of training that cannot be: one line with both values. And the schedule, as its formula says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mdpr.artifacts import class_digest, read_classes, read_features, read_probe
from mdpr.errors import ArtifactError, ConfigError
from mdpr.launch import Launch, read_launch
from mdpr.model.backbone import Backbone
from mdpr.params import TuneParams, parse_params
from mdpr.params.tuning import LOSS_PRESETS
from mdpr.training.checkpoint import run_identity
from mdpr.training.distributed import join
from mdpr.training.loop import check_precision, make_schedule


def tune(**values: object) -> TuneParams:
    return parse_params({"tune": values}).tune


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"micro_batch_size": 64, "batch_size": 32},
            "tune: micro_batch_size = 64 is more than batch_size = 32: lower it",
        ),
        ({"warmup_epochs": 5, "epochs": 5}, "tune: warmup_epochs = 5 leaves nothing of epochs = 5: lower it"),
        (
            {"loss": "papre"},
            "tune.loss: 'papre' is no preset: there are paper, command_line, or give the group's keys",
        ),
        ({"sampling": "balanced"}, "tune.sampling = 'balanced': must be one of instance, class_balanced"),
        ({"precision": "fp8"}, "tune.precision = 'fp8': must be one of fp32, bf16, fp16"),
        ({"early_stopping_patience": 0}, "tune.early_stopping_patience = 0: must be greater than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(**values)
    assert str(caught.value) == message


def test_loss_takes_a_published_preset_by_name() -> None:
    paper, off = tune(loss="paper").loss, tune(loss="command_line").loss
    assert (paper.semantic, paper.prior_alignment, paper.knowledge_alignment, paper.ramp) == (0.1, 0.05, 0.1, True)
    assert (off.base, off.semantic, off.prior_alignment, off.knowledge_alignment) == (1.0, 0.1, 0.0, 0.0)
    assert list(LOSS_PRESETS) == ["paper", "command_line"]


def test_fp16_without_a_gpu_is_refused_with_both_values() -> None:
    message = "tune.precision = fp16 needs a CUDA GPU, backbone.device is cpu: use bf16 or fp32"
    with pytest.raises(ConfigError, match=message):
        check_precision("fp16", torch.device("cpu"))
    for name in ("fp32", "bf16"):
        check_precision(name, torch.device("cpu"))
    check_precision("fp16", torch.device("cuda"))


def test_more_processes_than_images_of_a_step_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"tune\.batch_size = 3 is less than the 4 processes: raise it or start fewer"
    ):
        join(tune(batch_size=3), parse_params({}).backbone).__enter__()


def test_processes_are_read_from_torchrun_s_environment() -> None:
    assert read_launch({}) == Launch(0, 1, 0)
    assert read_launch({"RANK": "3", "WORLD_SIZE": "1"}) == Launch(0, 1, 0)
    assert read_launch({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Launch(3, 4, 1)
    assert not Launch(3, 4, 1).is_main
    for rank, world in (("4", "4"), ("x", "4"), ("0", "-1"), ("0", "two")):
        with pytest.raises(ConfigError, match=f"RANK = '{rank}' and WORLD_SIZE = '{world}' do not fit"):
            read_launch({"RANK": rank, "WORLD_SIZE": world})


def test_class_lists_that_differ_in_order_or_number_are_named_with_both_digests(encoded: Mapping[str, Path]) -> None:
    names = [item.name for item in read_classes(encoded["prepared"])]
    for others in (names[::-1], names[:-1]):
        for read, port in ((read_features, "features"), (read_probe, "probe")):
            with pytest.raises(ArtifactError) as caught:
                read(encoded[port], others)
            message = str(caught.value)
            assert (
                f"(digest {class_digest(names)}) than the {len(others)} classes here (digest {class_digest(others)})"
                in (message)
            )


def test_a_run_is_known_by_all_that_changes_its_weights_and_nothing_else(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "features").write_text("one")
    inputs = [tmp_path / "features"]
    own = run_identity(tune(), backbone, 1, inputs)
    assert run_identity(tune(workers=4, checkpoint_every_steps=7), backbone, 1, inputs) == own
    for changes in ({"seed": 1}, {"loss": {"tau": 0.5}}, {"micro_batch_size": 8}, {"precision": "bf16"}):
        assert run_identity(tune(**changes), backbone, 1, inputs) != own
    assert run_identity(tune(), backbone, 2, inputs) != own
    inputs[0].write_text("two")
    assert run_identity(tune(), backbone, 1, inputs) != own


@pytest.mark.parametrize("warmup_epochs", [0, 0.5, 2])
def test_the_schedule_rises_then_follows_the_cosine(warmup_epochs: float) -> None:
    params = tune(epochs=5, warmup_epochs=warmup_epochs, learning_rate=0.1, min_learning_rate=0.01)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=params.learning_rate)
    schedule, rates = make_schedule(optimizer, params, steps_per_epoch=4), []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    w = round(4 * warmup_epochs)
    expected = [0.1 * (step + 1) / (w + 1) for step in range(w)]
    expected += [0.01 + 0.09 * (1 + math.cos(math.pi * step / (20 - w))) / 2 for step in range(20 - w)]
    assert rates == pytest.approx(expected)
    assert schedule.get_last_lr()[0] == pytest.approx(0.01)


def test_the_published_schedule_moves_once_per_epoch() -> None:
    params = tune(schedule="epoch", epochs=5, learning_rate=0.1, min_learning_rate=0.01)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=params.learning_rate)
    schedule, rates = make_schedule(optimizer, params, steps_per_epoch=4), []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.01 + 0.09 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)])
