"""params.yaml: every fault is one line that names the key, the value and what was allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdpr.errors import ConfigError
from mdpr.params import SECTIONS, TuneParams, apply_overrides, load_params, parse_params, read_yaml


def test_the_shipped_params_are_valid_and_name_every_section(project_root: Path) -> None:
    assert set(read_yaml(project_root / "params.yaml")) == set(SECTIONS)
    params = load_params(project_root / "params.yaml")
    assert set(params) == set(SECTIONS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.epoch=5", r"^tune\.epoch is not a setting; did you mean epochs\?$"),
        ("tuna.epochs=5", r"^tuna is not a section of params\.yaml; did you mean tune\?$"),
        ("tune.epochs=0", r"^tune\.epochs = 0: must be greater than or equal to 1$"),
        ("tune.epochs=many", r"^tune\.epochs = 'many': must be a valid integer"),
        ("tune.base_loss=cee", r"^tune\.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, "),
        ("tune.loss.semantics=1", r"^tune\.loss\.semantics is not a setting; did you mean semantic\?$"),
        ("prepare.few_below=500", r"^prepare: few_below = 500 must not exceed many_above = 100$"),
        ("probe.templates=['a photo']", r"^probe\.templates\.0 = 'a photo': string should match pattern"),
        ("epochs=5", r"^override 'epochs=5' must read section\.key=value"),
        ("tune.epochs", r"^override 'tune\.epochs' must read section\.key=value"),
        ("tune.epochs.x=5", r"epochs is a value, not a section"),
        ("tune.epochs=[", r"'\[' is not valid YAML"),
    ],
)
def test_faults_in_one_line(project_root: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(project_root / "params.yaml", [override])
    assert "\n" not in str(caught.value)


def test_nothing_to_learn_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="leave nothing to learn"):
        parse_params({"tune": {"prompting": "none", "routing": False}})


def test_files_that_are_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist: run from the project folder"):
        read_yaml(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("tune:\n  epochs: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml line 3 is not valid YAML"):
        read_yaml(broken)
    broken.write_text("- tune\n")
    with pytest.raises(ConfigError, match="must hold sections"):
        read_yaml(broken)


def test_overrides_leave_the_original_alone_and_sections_frozen() -> None:
    raw = {"tune": {"epochs": 3}}
    assert apply_overrides(raw, ["tune.epochs=5", "prepare.seed=1"]) == {"tune": {"epochs": 5}, "prepare": {"seed": 1}}
    assert raw == {"tune": {"epochs": 3}}
    tune = parse_params(raw)["tune"]
    assert isinstance(tune, TuneParams)
    with pytest.raises(ValueError, match="frozen"):
        tune.epochs = 4  # type: ignore[misc]
