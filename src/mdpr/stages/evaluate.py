"""evaluate: the untouched test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mdpr.params import EvaluateParams, TrackingParams
from mdpr.stages.stage import In, Made, Out

if TYPE_CHECKING:
    from mdpr.artifacts import TrackedRun
    from mdpr.evaluation.report.document import Folders
    from mdpr.evaluation.tables import Results
    from mdpr.model.inference import Classifier


def evaluate(
    prepared: In,
    probe: In,
    knowledge: In,
    features: In,
    model: In,
    evaluation: Out,
    scores: Out,
    *,
    params: EvaluateParams,
    tracking: TrackingParams,
) -> Made:
    """Write metrics, the per-class table, predictions and the report; then add them to the run that tune opened.

    `scores` holds the accuracies in percent, one file per shot group. Raises `ArtifactError` if the model was tuned for
    other classes or on another backbone than the probe's.
    """
    from mdpr import artifacts
    from mdpr.artifacts.truth import read_truth
    from mdpr.evaluation.report.document import Folders, read_audit, write_report
    from mdpr.evaluation.score_table import write_scores
    from mdpr.evaluation.scoring import evaluate_splits, measure_pictures
    from mdpr.evaluation.tables import Results
    from mdpr.monitoring.recording import ReferenceRecorder, log_source

    folders = Folders(prepared, probe, knowledge, features, model, evaluation)
    classes, run = artifacts.read_classes(prepared), artifacts.read_run(model)
    names = [item.name for item in classes]
    frozen = artifacts.read_probe(probe, names)
    classifier = _load_classifier(folders, names, frozen.fingerprint)
    prior_CV = artifacts.read_features(features, names).prior_CV if classifier.config.tune.routing else None
    read_audit(knowledge, features)  # the report shows it: that it is missing must be known before images are scored

    reference = ReferenceRecorder()
    baselines = artifacts.read_baselines(probe, frozen)
    predicted = evaluate_splits(classifier, frozen, prior_CV, prepared, params, reference.add, baselines)
    pictures = measure_pictures(artifacts.read_split(prepared, "test"), classifier.image_size_px)
    results = Results.of(
        predicted, classes, frozen.rival_C, frozen.log_prior_C, truth=read_truth(prepared), pictures=pictures
    )

    evaluation.mkdir()
    results.write(evaluation)
    reference.write(evaluation, log_source(classifier, tracking.model_name))
    write_scores(scores, results.scores)
    _write_origin(folders, run, frozen.fingerprint)
    write_report(folders, tracking.model_name, params.gallery_images)
    return Made(_line(results), then=_queue(folders, run, results.scores, params, tracking))


def _load_classifier(folders: Folders, names: Sequence[str], fingerprint: str) -> Classifier:
    """The tuned model; raises `ArtifactError` if it is of other classes or of another backbone than the probe's, or
    without the digests of the images that it has seen."""
    from mdpr.artifacts import read_seen
    from mdpr.errors import ArtifactError
    from mdpr.model.inference import Classifier

    classifier = Classifier.load(folders.model, folders.features)
    if list(classifier.class_names) != names:
        raise ArtifactError(f"{folders.model} was tuned for other classes than {folders.prepared} holds: rerun tune")
    classifier.backbone.check_fingerprint(folders.probe, fingerprint)
    read_seen(folders.model, "tune")
    return classifier


def _write_origin(folders: Folders, run: TrackedRun, fingerprint: str) -> None:
    """lineage.json, run.json, and the digests of the images that the model has seen."""
    import shutil

    from mdpr import artifacts
    from mdpr.mlops.runs import lineage_tags

    inputs = (folders.prepared, folders.probe, folders.knowledge, folders.features, folders.model)
    evaluation = folders.evaluation
    sources = {"MLflow run": f"{run.run_id} (experiment {run.experiment})", "backbone": fingerprint}
    digested = (*inputs, folders.prepared / "test.parquet")
    digests = {f"sha256 of {path.name}": artifacts.sha256(path) for path in digested}
    artifacts.write_json(evaluation / "lineage.json", sources | lineage_tags(inputs) | digests)
    found = {"test_sha256": digests[artifacts.TEST_DIGEST]}
    artifacts.write_json(evaluation / "run.json", run.model_copy(update=found))
    shutil.copyfile(folders.model / artifacts.SEEN_FILE, evaluation / artifacts.SEEN_FILE)


def _queue(
    folders: Folders,
    run: TrackedRun,
    scores: Mapping[str, Mapping[str, float]],
    params: EvaluateParams,
    tracking: TrackingParams,
) -> Callable[[], None]:
    """Put the results into the outbox; the function that is returned adds them to the run that tune opened."""
    from mdpr.mlops.runs import queue_results, result_metrics, split_inputs

    evaluation = folders.evaluation
    files = {f"evaluation/{path.relative_to(evaluation)}": path for path in evaluation.rglob("*") if path.is_file()}
    files |= {f"knowledge/{path.name}": path for path in folders.knowledge.glob("*.json")}
    tags = {"mdpr.evaluate": params.model_dump_json(), **run.digests}
    datasets = split_inputs(folders.prepared, ["test"])
    return queue_results(run, tracking, result_metrics(scores), files, datasets=datasets, tags=tags)


def _line(results: Results) -> str:
    """The accuracy of the final answer, over all classes and by shot group."""
    from mdpr.artifacts import SHOT_GROUPS

    fused = results.scores["fused"]
    groups = ", ".join(f"{group} {fused[group]:.1%}" for group in SHOT_GROUPS if group in fused)
    return f"evaluated: {len(results.predictions):,} test images, fused {fused['all']:.1%} ({groups})"
