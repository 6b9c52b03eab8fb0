"""A real (untrained) model on the embedded backbone, registered and promoted by real MLflow over sqlite."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from mdpr import artifacts
from mdpr.cli import cli
from mdpr.errors import ArtifactError, TrackingError
from mdpr.mlops import promotions, releases
from mdpr.mlops.gate import Policy, describe, read_policy
from mdpr.mlops.releases import Parts, requirements
from mdpr.mlops.store import Store
from mdpr.model.inference import Classifier
from mdpr.params import RegisterParams, TrackingParams

pytestmark = pytest.mark.integration
TRACKING = TrackingParams(experiment="shoes", model_name="shoes", system_metrics=False)
CLASSES, ROWS = 10, 10 * 30  # as `evaluated` makes them up
Evaluated = Callable[..., Path]
Retrained = Callable[[Path], Parts]


@pytest.fixture
def policy(project_root: Path) -> Policy:
    return read_policy(project_root / "mlflow" / "promotion.yaml")


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


def promote(registered: artifacts.Registration, evaluation: Path, policy: Policy) -> artifacts.Promotion:
    """Where no image is looked at: the champion has answered the same ones."""
    return promotions.promote(registered, evaluation, evaluation, policy, evaluation.with_name("checkpoint"))


def judge(registered: artifacts.Registration, evaluation: Path, policy: Policy) -> promotions.Judgement:
    return promotions.judge(registered, evaluation, evaluation, policy)


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
    assert json.loads(version.tags["mdpr.test.percent"])["all"] == 80
    assert "mdpr.version" in json.loads(version.tags["mdpr.origin"])
    assert len(version.tags) < 8
    assert "| fused | 80.0 | 80.0 | – | 80.0 |" in version.description
    assert "Not judged yet" in version.description

    # --- the first model
    artifacts.write_json(tmp_path / "registration.json", registered)
    seen = run(
        *("promote", "--dry-run", "--prepared", str(first), "--evaluation", str(first)),
        *("--registration", str(tmp_path / "registration.json")),
    )
    assert "version 1 of shoes would be promoted" in " ".join(seen.split())
    assert aliases(store) == {"challenger": "1"}
    outcome = promote(registered, first, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", None, "1")
    again = promote(registered, first, policy)
    assert (again.decision, again.reason) == ("kept", "version 1 is the champion already")
    seen = run(
        *("promote", "--dry-run", "--prepared", str(first), "--evaluation", str(first)),
        *("--registration", str(tmp_path / "registration.json")),
    )
    assert seen.strip() == "version 1 of shoes would not be promoted: version 1 is the champion already"  # no table
    version = store.client.get_model_version("shoes", "1")
    assert f"promoted: {outcome.reason}" in version.description
    assert all(f"\n- {describe(check)}" in version.description for check in outcome.checks)
    assert json.loads(version.tags["mdpr.gate.checks"]) == [check.model_dump() for check in outcome.checks]
    logged = store.client.download_artifacts(registered.run_id, "evaluation/promotion.json", str(tmp_path))
    assert artifacts.Promotion.read(Path(logged)) == outcome
    releases.register(parts, first, TRACKING, register_params)
    assert (
        store.client.get_model_version("shoes", "1").description == version.description
    )  # the gate's decision survives

    # --- a worse one, one of other classes, a better one
    other = retrained(tmp_path / "model")
    worse = evaluated(tmp_path / "worse", 0.7, TRACKING)
    outcome = promote(releases.register(other, worse, TRACKING, register_params), worse, policy)
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("kept", "1", "1")
    assert outcome.checks[0].value < -5
    assert store.client.get_model_version("shoes", "2").tags["mdpr.gate.decision"] == "kept"
    renamed = evaluated(tmp_path / "renamed", 0.95, TRACKING, name="other {}")
    registered = releases.register(other, renamed, TRACKING, register_params)
    assert "none of the champion's classes" in promote(registered, renamed, policy).reason
    assert aliases(store) == {"challenger": "2", "champion": "1"}
    better = evaluated(tmp_path / "better", 0.95, TRACKING)
    registered = releases.register(other, better, TRACKING, register_params)
    later = policy.later_models.model_copy(update={"max_latency_ratio": 1000.0})
    outcome = promote(registered, better, policy.model_copy(update={"later_models": later}))
    assert (outcome.decision, outcome.champion_before, outcome.champion_after) == ("promoted", "1", "2")
    (ratio,) = (check for check in outcome.checks if "latency" in check.name)  # of the same architecture
    assert 0 < ratio.value <= ratio.estimate < 100
    assert aliases(store) == {"challenger": "2", "champion": "2", "previous": "1"}
    with pytest.raises(ArtifactError, match="is not what version 2 was registered with"):
        promote(registered, worse, policy)

    # --- the table, and back
    rows = json.loads(run("registry", "list", "--json"))
    assert [(row["version"], row["aliases"], row["all"], row["gate"]) for row in rows] == [
        ("2", ["challenger", "champion"], 95, "promoted"),
        ("1", ["previous"], 80, "promoted"),
    ]
    assert {"champion", "challenger", "previous"} <= set(run("registry", "list").split())
    run("promote", "--rollback")
    assert aliases(store) == {"challenger": "2", "champion": "1", "previous": "2"}
    with pytest.raises(TrackingError, match="was itself rolled back"):
        promotions.rollback("shoes")
    assert "was rolled back: remove its tag" in promote(registered, better, policy).reason
    assert aliases(store)["champion"] == "1"


def test_a_model_from_elsewhere_brings_its_results(
    store: Store, parts: Parts, evaluated: Evaluated, register_params: RegisterParams, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    foreign = artifacts.TrackedRun(run_id="f" * 32, experiment="elsewhere", test_sha256="t")
    artifacts.write_json(evaluation / "run.json", foreign)
    registered = releases.register(parts, evaluation, TRACKING, register_params)
    assert registered.run_id != foreign.run_id
    assert store.client.get_run(registered.run_id).data.metrics["test/fused/all"] == 80
    assert promote(registered, evaluation, policy).decision == "promoted"


def test_a_registry_without_the_version_says_what_to_do(
    store: Store, evaluated: Evaluated, policy: Policy, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    registered = artifacts.Registration(
        model_name="shoes", version="3", run_id="r", model_digest="d", alias="challenger", source="s"
    )
    with pytest.raises(TrackingError, match="version 3 of shoes is not in this MLflow registry: run register"):
        promote(registered, evaluation, policy)
    with pytest.raises(TrackingError, match="shoes has no version with the alias champion: there is nothing"):
        promotions.rollback("shoes")


# --- the gate reads what was registered ---------------------------------------------------------------------


def set_metric(branch: str, figure: str, value: object) -> Callable[[Path], None]:
    def edit(evaluation: Path) -> None:
        metrics = json.loads((evaluation / "metrics.json").read_text())
        metrics[branch][figure] = value
        (evaluation / "metrics.json").write_text(json.dumps(metrics))

    return edit


def set_shots(pattern: str, shot: str) -> Callable[[Path], None]:
    def edit(evaluation: Path) -> None:
        path = evaluation / "per_class.csv"
        path.write_text(path.read_text().replace(pattern, shot))

    return edit


def answer_all(evaluation: Path) -> None:
    table = artifacts.read_predictions(evaluation)
    artifacts.write_predictions(evaluation, table.assign(fused_top1=table["label"]))


EDITS = {
    "groups": set_shots(",few", ",many"),
    "two of ten groups": set_shots("c9,few", "c9,many"),
    "an index in words": set_shots("9,c9,few", "nine,c9,few"),
    "calibration": set_metric("fused", "ece", 0.0),
    "accuracy": set_metric("fused", "all", 0.99),
    "a word": set_metric("fused", "ece", "abc"),
    "no number": set_metric("fused", "ece", None),
    "another branch": set_metric("zero_shot", "all", 0.0),
    "answers": answer_all,
    "training images": lambda evaluation: artifacts.write_seen(evaluation, train_N=np.arange(3), val_N=np.arange(2)),
}


@pytest.mark.parametrize("how", EDITS)
def test_what_was_edited_since_is_refused(
    how: str, registered_once: tuple[artifacts.Registration, Path], policy: Policy, tmp_path: Path
) -> None:
    registration, evaluation = registered_once
    edited = tmp_path / "edited"
    shutil.copytree(evaluation, edited)
    EDITS[how](edited)
    for decide in (judge, promote):
        with pytest.raises(ArtifactError, match="is not what version 1 was registered with"):
            decide(registration, edited, policy)
    assert judge(registration, evaluation, policy).decision.promote


@pytest.fixture
def registered_once(
    store: Store, parts: Parts, evaluated: Evaluated, register_params: RegisterParams, tmp_path: Path
) -> tuple[artifacts.Registration, Path]:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    return releases.register(parts, evaluation, TRACKING, register_params), evaluation


def test_a_later_evaluation_of_the_champions_run_does_not_touch_what_the_gate_reads(
    store: Store,
    registered_once: tuple[artifacts.Registration, Path],
    retrained: Retrained,
    evaluated: Evaluated,
    register_params: RegisterParams,
    policy: Policy,
    tmp_path: Path,
) -> None:
    registration, evaluation = registered_once
    promote(registration, evaluation, policy)
    again = evaluated(tmp_path / "again", 0.2, TRACKING, artifacts.read_run(evaluation))  # artifacts of the same names
    better = evaluated(tmp_path / "better", 0.95, TRACKING)
    other = releases.register(retrained(tmp_path / "model"), better, TRACKING, register_params)
    outcome = judge(other, better, policy).decision
    assert outcome.promote
    gain = next(check for check in outcome.checks if check.name == "all, points against the champion, lower bound")
    assert gain.estimate == pytest.approx(15.0, abs=2)
    assert artifacts.read_run(again).run_id == registration.run_id


@pytest.mark.parametrize("run_id", ["../../x", "", "a'b", "x" * 10_000, "a\nb", 7])
def test_what_is_no_run_id_is_refused(
    run_id: object, parts: Parts, evaluated: Evaluated, register_params: RegisterParams, store: Store, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    run = json.loads((evaluation / "run.json").read_text())
    (evaluation / "run.json").write_text(json.dumps(run | {"run_id": run_id}))
    with pytest.raises(ArtifactError, match=r"run\.json: run_id") as caught:
        releases.register(parts, evaluation, TRACKING, register_params)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError):
        artifacts.read_run(evaluation)


# --- a champion of other test images ------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with real test images, as many as `evaluated` has rows."""
    rng, images = np.random.default_rng(0), []
    for _ in range(ROWS):
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(picture, "PNG")
        images.append(picture.getvalue())
    folder = tmp_path / "prepared"
    folder.mkdir()
    labels = np.repeat(np.arange(CLASSES), ROWS // CLASSES).tolist()
    artifacts.write_images(folder / "test.parquet", images, [""] * ROWS, labels)
    return folder


def test_a_champion_of_other_test_images_is_scored_on_those_of_today_and_only_once(
    store: Store,
    parts: Parts,
    retrained: Retrained,
    evaluated: Evaluated,
    register_params: RegisterParams,
    policy: Policy,
    prepared: Path,
    tmp_path: Path,
) -> None:
    images = artifacts.read_images(prepared / "test.parquet")
    image_N, label_N = artifacts.image_digests(images), images.labels_N
    seen_N = image_N[::7]  # the data were cut anew: these trained the first model
    first = evaluated(tmp_path / "first", 0.8, TRACKING, image_N=np.arange(ROWS), seen_N=seen_N)
    promote(releases.register(parts, first, TRACKING, register_params), first, policy)
    second = evaluated(tmp_path / "second", 0.9, TRACKING, image_N=image_N)
    registered = releases.register(retrained(tmp_path / "model"), second, TRACKING, register_params)

    # --- a preview keeps nothing
    version = store.client.get_model_version("shoes", "1")
    preview = promotions.judge(registered, second, prepared, policy).decision
    assert store.client.get_model_version("shoes", "1").tags == version.tags
    assert aliases(store)["champion"] == "1"

    # --- what the served model itself says, without the images that it was trained on
    assert f"{len(seen_N)} of {ROWS} test images trained the champion" in preview.reason
    classifier = Classifier.load(parts.model, parts.features)
    answered = classifier.predict([images.image(row) for row in range(ROWS)], top_k=1)
    use_N = ~np.isin(image_N, seen_N)
    own_N = artifacts.read_predictions(second)["fused_top1"].to_numpy() == label_N
    their_N = np.array([item.class_index for item in answered]) == label_N
    gain_C = [(own_N * 1.0 - their_N)[use_N & (label_N == c)].mean() for c in range(CLASSES)]
    check = next(item for item in preview.checks if item.name == "all, points against the champion, lower bound")
    assert check.estimate == pytest.approx(100 * np.mean(gain_C))

    # --- the answers are on the disk before the store has them, and are not made again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.client.__class__, "_call", refuse_uploads(store.client.__class__._call))
        assert promotions.judge(registered, second, prepared, policy, tmp_path / "kept").decision == preview
    (tmp_path / "kept" / "state.safetensors").chmod(0o444)
    (prepared / "test.parquet").rename(prepared / "away.parquet")
    assert promotions.judge(registered, second, prepared, policy, tmp_path / "kept").decision == preview
    shutil.rmtree(tmp_path / "kept")
    outcome = promotions.promote(registered, second, prepared, policy, tmp_path / "kept")  # now the store has them
    assert (outcome.decision, outcome.reason) == ("promoted", preview.reason)
    assert not (tmp_path / "kept").exists()

    # --- an edited file of answers is not believed: the images are needed again
    assert promotions.rollback("shoes") == ("2", "1")
    store.client.delete_model_version_tag("shoes", "2", "mdpr.rolled_back")
    run_id = store.client.get_model_version("shoes", "1").tags["mdpr.results_run_id"]
    (item,) = store.client.list_artifacts(run_id, "gate/answers")
    path = Path(store.client.download_artifacts(run_id, item.path, str(tmp_path)))
    arrays, metadata = artifacts.read_tensors(path, "promote")
    artifacts.write_tensors(path, arrays | {"base_top1": np.zeros(ROWS, np.int64)}, metadata)
    store.client.log_artifact(run_id, str(path), "gate/answers")
    with pytest.raises(ArtifactError, match="is missing"):
        promotions.judge(registered, second, prepared, policy)
    (prepared / "away.parquet").rename(prepared / "test.parquet")
    assert promotions.judge(registered, second, prepared, policy).decision == preview

    # --- other images than those that the challenger answered
    artifacts.write_images(prepared / "test.parquet", [images.image(0)] * ROWS, [""] * ROWS, label_N.tolist())
    with pytest.raises(ArtifactError, match="holds other test images"):
        promotions.judge(registered, second, prepared, policy)


def refuse_uploads(call: Callable[..., object]) -> Callable[..., object]:
    def instead(self: object, name: str, *arguments: object, **options: object) -> object:
        if name.startswith("log_artifact"):
            raise TrackingError("no space left")
        return call(self, name, *arguments, **options)

    return instead


# --- killed halfway -----------------------------------------------------------------------------------------

REGISTER = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from mdpr.mlops import releases
from mdpr.mlops.releases import Parts
from mdpr.params import RegisterParams, TrackingParams

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(MlflowClient, sys.argv[1], die)
knowledge, features, model, evaluation, pyfunc = map(Path, sys.argv[2:])
tracking = TrackingParams(experiment="shoes", model_name="shoes", system_metrics=False)
releases.register(Parts(knowledge, features, model), evaluation, tracking, RegisterParams(pyfunc=str(pyfunc)))
"""


@pytest.mark.parametrize(
    "at",
    [
        "log_outputs",
        "log_model_artifacts",
        "finalize_logged_model",
        "_create_model_version",
        "set_logged_model_tags",
        "set_registered_model_alias",
    ],
)
def test_a_killed_register_is_finished_by_the_next(
    at: str, store: Store, parts: Parts, evaluated: Evaluated, register_params: RegisterParams, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "evaluation", 0.8, TRACKING)
    folders = [parts.knowledge, parts.features, parts.model, evaluation, register_params.pyfunc]
    command = [sys.executable, "-c", REGISTER, at, *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    registration = releases.register(parts, evaluation, TRACKING, register_params)
    experiment = store.client.get_experiment_by_name("shoes")
    (model,) = store.client.search_logged_models([experiment.experiment_id])
    assert (model.status, model.model_uri) == ("READY", registration.source)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "shoes", "version": 1}]
    assert aliases(store) == {"challenger": "1"}
    assert mlflow.pyfunc.load_model("models:/shoes@challenger") is not None


def test_logged_models_are_ranked_by_what_they_scored(
    store: Store,
    registered_once: tuple[artifacts.Registration, Path],
    retrained: Retrained,
    evaluated: Evaluated,
    register_params: RegisterParams,
    tmp_path: Path,
) -> None:
    better = releases.register(
        retrained(tmp_path / "model"), evaluated(tmp_path / "better", 0.95, TRACKING), TRACKING, register_params
    )
    experiment = store.client.get_experiment_by_name("shoes")
    order = [{"field_name": "metrics.test/fused/all", "ascending": False}]
    ranked = store.client.search_logged_models([experiment.experiment_id], order_by=order)
    assert [model.model_uri for model in ranked] == [better.source, registered_once[0].source]
    assert ranked[0].params["selected_epoch"] == "0"
    assert {metric.key: metric.value for metric in ranked[0].metrics}["test/fused/all"] == 95
    (history,) = store.client.get_metric_history(better.run_id, "test/fused/all")
    assert history.value == 95  # percent, once in the run


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
