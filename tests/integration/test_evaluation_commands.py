"""evaluate on a really tuned model, then what people do with its folder: make the report again, compare runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from mdpr.artifacts import read_metrics, read_model_config, read_predictions, read_seen, read_split, write_json
from mdpr.cli import cli
from mdpr.errors import ArtifactError, TrackingError
from mdpr.evaluation.ablations import ABLATION_NAMES
from mdpr.model.inference import Classifier
from mdpr.params import Params, TrackingParams
from mdpr.stages.stage import load_stage, run_stage

pytestmark = pytest.mark.integration


@pytest.fixture
def data(tmp_path: Path, encoded: Mapping[str, Path], small_params: Params, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like data/, evaluated; results are in an MLflow store beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, path in encoded.items():
        (folder / name).symlink_to(path)
    paths = {name: folder / name for name in (*encoded, "model", "evaluation", "scores")}
    tune = small_params.tune.model_copy(update={"epochs": 1})
    tracking = TrackingParams(system_metrics=False)
    params = replace(small_params, tune=tune, tracking=tracking)
    for name in ("tune", "evaluate"):
        run_stage(load_stage(name), paths, params)
    sections = {"tracking": tracking.model_dump(), "evaluate": {"gallery_images": 4}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    return folder


def test_what_is_missing_is_named_before_an_image_is_read(data: Path, small_params: Params) -> None:
    paths = {name: data / name for name in ("prepared", "probe", "knowledge", "features", "model")}
    made = {"evaluation": data / "again", "scores": data / "scores-again"}
    paths["prepared"] = shutil.copytree(data / "prepared", data / "prepared-copy")
    (paths["prepared"] / "test.parquet").unlink()
    for port, file in (("knowledge", "audit.json"), ("features", "audit.json"), ("model", "seen.safetensors")):
        copy = shutil.copytree(data / port, data / f"{port}-copy")
        (copy / file).unlink()
        with pytest.raises(ArtifactError, match=f"{port}-copy/{file} is missing: run "):
            run_stage(load_stage("evaluate"), paths | made | {port: copy}, small_params)


def test_what_validation_chose_is_served_as_it_was_evaluated(
    encoded: Mapping[str, Path], small_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on plain cross entropy, adjusted afterwards: evaluate, predict and the registry's metrics agree."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    changes = {"epochs": 1, "base_loss": "ce", "routing": False, "post_hoc": "validated"}
    params = replace(
        small_params,
        tune=small_params.tune.model_copy(update=changes),
        evaluate=small_params.evaluate.model_copy(update={"gallery_images": 1}),
        tracking=TrackingParams(system_metrics=False),
    )
    paths = dict(encoded) | {name: tmp_path / name for name in ("model", "evaluation", "scores")}
    for name in ("tune", "evaluate"):
        run_stage(load_stage(name), paths, params)
    config = read_model_config(paths["model"])
    assert config.tau > 0
    assert config.val_accuracy["fused"] > config.val_accuracy["base"]

    predictions = read_predictions(paths["evaluation"])
    assert (predictions["fused_top1"] != predictions["base_top1"]).any()
    images = read_split(paths["prepared"], "test")
    served = Classifier.load(paths["model"], paths["features"]).predict([images.image(row) for row in range(40)])
    assert [item.class_index for item in served] == predictions["fused_top1"][:40].tolist()
    assert [item.probability for item in served] == pytest.approx(predictions["fused_probability"][:40].tolist())
    variants = pd.read_csv(paths["evaluation"] / "variants.csv").set_index("variant")
    scores = read_metrics(paths["evaluation"])
    assert variants.loc["without_logit_adjustment", "all"] == pytest.approx(scores["base"]["all"], abs=1e-6)
    assert scores["fused"]["all"] != scores["base"]["all"]
    report = (paths["evaluation"] / "report.html").read_text(encoding="utf-8")
    assert "Without the logit adjustment" in report
    assert "Fused (final answer)" in report


def test_the_folder_its_report_and_its_run(data: Path, tmp_path: Path) -> None:
    evaluation = data / "evaluation"
    variants = pd.read_csv(evaluation / "variants.csv")
    assert list(variants["variant"][: len(ABLATION_NAMES)]) == list(ABLATION_NAMES)
    assert set(variants["kind"]) == {"ablation", "robust"}
    metrics = read_metrics(evaluation)
    assert metrics["chance"]["all"] == pytest.approx(0.1)
    assert all(metrics[name]["all"] > 0.3 for name in ("zero_shot", "nearest_mean", "logistic"))
    assert "Logistic regression" in (evaluation / "report.html").read_text(encoding="utf-8")
    predictions, seen = read_predictions(evaluation), read_seen(evaluation, "evaluate")
    assert seen is not None
    assert not set(predictions["image"]) & set(seen.tolist())
    assert set(pd.read_csv(evaluation / "routing.csv")["shot"]) <= {"many", "medium", "few"}
    assert "Not decided yet" in (evaluation / "report.html").read_text(encoding="utf-8")

    decision = {
        "decision": "promoted",
        "reason": "better than zero-shot",
        "model_name": "mdpr",
        "version": "1",
        "champion_before": None,
        "champion_after": "1",
        "checks": [],
    }
    write_json(data / "promotion.json", {"format": "mdpr-promotion/1", **decision})
    runner = CliRunner()
    made = runner.invoke(cli, ["report", "render"], catch_exceptions=False)
    page = Path(made.output.strip())
    assert page == Path("data/report.html")
    html = page.read_text(encoding="utf-8")
    assert "better than zero-shot" in html
    assert "Not decided yet" not in html
    (data / "knowledge").unlink()
    result = runner.invoke(cli, ["report", "render"])
    assert isinstance(result.exception, ArtifactError)
    assert "name it with --knowledge" in str(result.exception)
    assert page.read_text(encoding="utf-8") == html  # whole or not at all

    run_id = json.loads((evaluation / "run.json").read_text())["run_id"]
    compared = runner.invoke(cli, ["compare", str(evaluation), f"runs:/{run_id}", "--json"], catch_exceptions=False)
    assert {item["difference"] for item in json.loads(compared.output)["differences"]} == {0.0}
    result = runner.invoke(cli, ["compare", str(evaluation), "runs:/none"])
    assert isinstance(result.exception, TrackingError)
