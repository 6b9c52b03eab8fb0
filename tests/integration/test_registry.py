"""A real (untrained) model on the embedded backbone, registered and promoted by real MLflow over sqlite."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from mdpr import artifacts
from mdpr.cli import cli
from mdpr.errors import ArtifactError, TrackingError
from mdpr.mlops import promotions, releases
from mdpr.mlops.gate import Policy, read_policy
from mdpr.mlops.served_model import Parts, requirements
from mdpr.mlops.store import Store
from mdpr.params import RegisterParams, TrackingParams

pytestmark = pytest.mark.integration
TRACKING = TrackingParams(experiment="shoes", model_name="shoes", system_metrics=False)
Evaluated = Callable[..., Path]
Retrained = Callable[[Path], Parts]


@pytest.fixture
def policy(project_root: Path) -> Policy:
    """The project's, but for the one bound that a busy machine breaks: a latency that is measured twice differs."""
    shipped = read_policy(project_root / "mlflow" / "promotion.yaml")
    later = shipped.later_models.model_copy(update={"max_latency_ratio": 1000.0})
    return shipped.model_copy(update={"later_models": later})


@pytest.fixture
def run(tmp_path: Path, project_root: Path) -> Callable[..., str]:
    """`mdpr ...` in the test's folder; returns its output."""
    sections = {
        "tracking": TRACKING.model_dump(),
        "promote": {"policy": str(project_root / "mlflow" / "promotion.yaml")},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))

    def call(*arguments: str) -> str:
        return str(CliRunner().invoke(cli, arguments, catch_exceptions=False).output)

    return call


def aliases(store: Store) -> dict[str, str]:
    return {alias: str(number) for alias, number in store.client.get_registered_model("shoes").aliases.items()}


def test_from_the_first_model_to_a_rollback(
    store: Store,
    parts: Parts,
    retrained: Retrained,
    evaluated: Evaluated,
    register_params: RegisterParams,
    policy: Policy,
    run: Callable[..., str],
    tmp_path: Path,
) -> None:
    # --- the same model is one version
    first = evaluated(tmp_path / "first", 0.8, TRACKING)
    registered = releases.register(parts, first, TRACKING, register_params)
    assert releases.register(parts, first, TRACKING, register_params) == registered
    assert [str(item.version) for item in store.client.search_model_versions("name = 'shoes'")] == ["1"]
    version = store.client.get_model_version_by_alias("shoes", "challenger")
    assert version.tags["mdpr.model_digest"] == parts.digest() == registered.model_digest
    assert json.loads(version.tags["mdpr.test.fused"])["all"] == 0.8
    assert json.loads(version.tags["mdpr.latency"])["ms"] > 0
    assert "| fused | 80.0 | 80.0 | - | 80.0 |" in version.description
    assert "Not judged yet" in version.description

    # --- the first model
    artifacts.write_json(tmp_path / "registration.json", registered)
    seen = run(
        "promote", "--dry-run", "--evaluation", str(first), "--registration", str(tmp_path / "registration.json")
    )
    assert "version 1 of shoes would be promoted" in " ".join(seen.split())
    assert aliases(store) == {"challenger": "1"}
    outcome = promotions.promote(registered, first, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", None, "1")
    again = promotions.promote(registered, first, policy)
    assert (again.decision, again.reason) == ("kept", "version 1 is the champion already")
    version = store.client.get_model_version("shoes", "1")
    assert f"promoted: {outcome.reason}" in version.description
    assert json.loads(version.tags["mdpr.gate.checks"]) == [check.model_dump() for check in outcome.checks]
    logged = store.client.download_artifacts(registered.run_id, "evaluation/promotion.json", str(tmp_path))
    assert artifacts.read_promotion(Path(logged)) == outcome
    releases.register(parts, first, TRACKING, register_params)
    assert (
        store.client.get_model_version("shoes", "1").description == version.description
    )  # the gate's decision survives

    # --- a worse one, one of other classes, a better one
    other = retrained(tmp_path / "model")
    worse = evaluated(tmp_path / "worse", 0.7, TRACKING)
    outcome = promotions.promote(releases.register(other, worse, TRACKING, register_params), worse, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("kept", "1", "1")
    assert outcome.checks[0].value < -5
    assert store.client.get_model_version("shoes", "2").tags["mdpr.gate.decision"] == "kept"
    better = evaluated(tmp_path / "better", 0.95, TRACKING)
    registered = releases.register(other, better, TRACKING, register_params)
    label_set = store.client.get_model_version("shoes", "2").tags["mdpr.label_set"]
    store.client.set_model_version_tag("shoes", "2", "mdpr.label_set", "another")
    assert "knows other classes" in promotions.promote(registered, better, policy).reason
    assert aliases(store) == {"challenger": "2", "champion": "1"}
    store.client.set_model_version_tag("shoes", "2", "mdpr.label_set", label_set)
    outcome = promotions.promote(registered, better, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", "1", "2")
    assert aliases(store) == {"challenger": "2", "champion": "2", "previous": "1"}
    with pytest.raises(ArtifactError, match="is not what version 2 was registered with"):
        promotions.promote(registered, worse, policy)

    # --- the table, and back
    rows = json.loads(run("registry", "list", "--json"))
    assert [(row["version"], row["aliases"], row["all"], row["gate"]) for row in rows] == [
        ("2", ["challenger", "champion"], 0.95, "promoted"),
        ("1", ["previous"], 0.8, "promoted"),
    ]
    assert {"champion", "challenger", "previous"} <= set(run("registry", "list").split())
    run("promote", "--rollback")
    assert aliases(store) == {"challenger": "2", "champion": "1", "previous": "2"}
    with pytest.raises(TrackingError, match="was itself rolled back"):
        promotions.rollback("shoes")
    assert "was rolled back: remove its tag" in promotions.promote(registered, better, policy).reason
    assert aliases(store)["champion"] == "1"


def test_a_model_from_elsewhere_brings_its_results(
    store: Store, parts: Parts, evaluated: Evaluated, register_params: RegisterParams, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    foreign = artifacts.TrackedRun(run_id="f" * 32, experiment="elsewhere", test_sha256="t")
    artifacts.write_json(evaluation / "run.json", foreign)
    registered = releases.register(parts, evaluation, TRACKING, register_params)
    assert registered.run_id != foreign.run_id
    assert store.client.get_run(registered.run_id).data.metrics["test/fused/all"] == 0.8
    assert promotions.promote(registered, evaluation, policy).decision == "promoted"


def test_a_registry_without_the_version_says_what_to_do(
    store: Store, evaluated: Evaluated, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    registered = artifacts.Registration(
        model_name="shoes", version="3", run_id="r", model_digest="d", alias="challenger", source="s"
    )
    with pytest.raises(TrackingError, match="version 3 of shoes is not in this MLflow registry: run register"):
        promotions.promote(registered, evaluation, policy)
    with pytest.raises(TrackingError, match="shoes has no version with the alias champion: there is nothing"):
        promotions.rollback("shoes")


def test_a_class_called_like_a_path_or_a_script_is_text(
    store: Store,
    untrained: Callable[..., Parts],
    evaluated: Evaluated,
    register_params: RegisterParams,
    tmp_path: Path,
) -> None:
    names = {"c0": "../../../etc/passwd", "c1": "<script>alert(1)</script>", "c2": "${HOME}; rm -rf 'x' | {{ 7*7 }}"}
    parts = untrained(tmp_path, **names)
    before = set(tmp_path.parent.iterdir())
    registered = releases.register(parts, evaluated(tmp_path / "evaluation", 0.8, TRACKING), TRACKING, register_params)
    version = store.client.get_model_version("shoes", registered.version)
    assert not any(name in version.description for name in names.values())
    model = mlflow.pyfunc.load_model("models:/shoes@challenger")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    (answer,) = model.predict(pd.DataFrame({"image": [picture.getvalue()]}), params={"top_k": 10}).to_dict("records")
    assert answer["error"] is None
    assert set(names.values()) <= {item["class"] for item in answer["top_k"]}
    assert set(tmp_path.parent.iterdir()) == before


def test_requirements_leave_the_pipeline_out() -> None:
    pins = requirements()
    assert all("==" in pin and "+" not in pin for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "open-clip-torch", "safetensors"} <= names
    assert not names & {"kfp", "dvc", "langchain", "great-expectations"}
