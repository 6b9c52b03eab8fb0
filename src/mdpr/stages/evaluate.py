"""evaluate: the untouched test set."""

from __future__ import annotations

from mdpr.params import EvaluateParams, TrackingParams
from mdpr.stages.stage import In, Made, Out


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
    import shutil

    from mdpr import artifacts
    from mdpr.artifacts.truth import read_truth
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.report.document import Folders, write_report
    from mdpr.evaluation.score_table import write_scores
    from mdpr.evaluation.scoring import evaluate_splits, measure_pictures
    from mdpr.evaluation.tables import Results
    from mdpr.mlops.lineage import lineage_tags, split_inputs
    from mdpr.mlops.runs import queue_results, result_metrics
    from mdpr.model.inference import Classifier
    from mdpr.monitoring.recording import ReferenceRecorder, log_source

    classes, run = artifacts.read_classes(prepared), artifacts.read_run(model)
    names = [item.name for item in classes]
    frozen = artifacts.read_probe(probe, names)
    classifier = Classifier.load(model, features)
    if list(classifier.class_names) != names:
        raise ArtifactError(f"{model} was tuned for other classes than {prepared} holds: rerun tune")
    classifier.backbone.check_fingerprint(probe, frozen.fingerprint)
    prior_CV = artifacts.read_features(features, names).prior_CV if classifier.config.tune.routing else None

    reference = ReferenceRecorder()
    baselines = artifacts.read_baselines(probe, frozen)
    predicted = evaluate_splits(classifier, frozen, prior_CV, prepared, params, reference.add, baselines)
    truth = read_truth(prepared)
    pictures = measure_pictures(artifacts.read_split(prepared, "test"), classifier.image_size_px)
    results = Results.of(predicted, classes, frozen.rival_C, frozen.log_prior_C, truth=truth, pictures=pictures)

    evaluation.mkdir()
    results.write(evaluation)
    reference.write(evaluation, log_source(classifier, tracking.model_name))
    write_scores(scores, results.scores)
    shutil.copyfile(model / artifacts.SEEN_FILE, evaluation / artifacts.SEEN_FILE)
    inputs = (prepared, probe, knowledge, features, model)
    sources = {"MLflow run": f"{run.run_id} (experiment {run.experiment})", "backbone": frozen.fingerprint}
    digests = {f"sha256 of {path.name}": artifacts.sha256(path) for path in (*inputs, prepared / "test.parquet")}
    artifacts.write_json(evaluation / "lineage.json", sources | lineage_tags(inputs) | digests)
    write_report(Folders(*inputs, evaluation), tracking.model_name, params.gallery_images)
    found = {"test_sha256": digests[artifacts.TEST_DIGEST]}
    artifacts.write_json(evaluation / "run.json", run.model_copy(update=found))

    files = {f"evaluation/{path.relative_to(evaluation)}": path for path in evaluation.rglob("*") if path.is_file()}
    files |= {f"knowledge/{path.name}": path for path in knowledge.glob("*.json")}
    publish = queue_results(
        run,
        tracking,
        result_metrics(results.scores),
        files,
        datasets=split_inputs(prepared, ["test"]),
        tags={"mdpr.evaluate": params.model_dump_json(), **run.digests},
    )
    branch = "fused" if "fused" in results.scores else "base"
    groups = ", ".join(
        f"{group} {results.scores[branch][group]:.1%}"
        for group in artifacts.SHOT_GROUPS
        if group in results.scores[branch]
    )
    line = (
        f"evaluated: {len(results.predictions):,} test images, {branch} {results.scores[branch]['all']:.1%} ({groups})"
    )
    return Made(line, then=publish)
