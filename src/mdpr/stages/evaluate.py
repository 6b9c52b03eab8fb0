"""evaluate: the untouched test set."""

from __future__ import annotations

from mdpr.params import EvaluateParams, TrackingParams
from mdpr.stages.stage import In, Out


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
) -> None:
    """Write metrics, the per-class table, predictions and the report; add them to the run that tune opened.

    `scores` holds the accuracies in percent, one file per shot group.

    Raises `ArtifactError` if the model was tuned for other classes or on another backbone than the probe's.
    """
    from mdpr import artifacts
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.report.page import Folders, gather, make_figures, render_report
    from mdpr.evaluation.report.svg import write_figures
    from mdpr.evaluation.results import Results
    from mdpr.evaluation.score_table import write_scores
    from mdpr.evaluation.scoring import evaluate_splits
    from mdpr.mlops.runs import add_results, lineage_tags, result_metrics, split_inputs
    from mdpr.model.inference import Classifier

    classes = artifacts.read_classes(prepared)
    names = [item.name for item in classes]
    frozen = artifacts.read_probe(probe, names)
    run = artifacts.read_run(model)
    classifier = Classifier.load(model, features)
    if list(classifier.class_names) != names:
        raise ArtifactError(f"{model} was tuned for other classes than {prepared} holds: rerun tune")
    classifier.backbone.check_fingerprint(probe, frozen.fingerprint)

    routed = classifier.config.tune.routing
    prior_CV = artifacts.read_features(features, names).prior_CV if routed else None
    passed = evaluate_splits(classifier, frozen, prior_CV, prepared, params)
    results = Results.of(passed, classes, frozen.rival_C, frozen.log_prior_C)

    evaluation.mkdir()
    results.write(evaluation)
    write_scores(scores, results.scores)
    inputs = (prepared, probe, knowledge, features, model)
    test_sha256 = artifacts.sha256(prepared / "test.parquet")
    lineage = {
        "MLflow run": f"{run.run_id} (experiment {run.experiment})",
        "backbone": classifier.config.fingerprint,
        **lineage_tags(inputs),
        **{f"sha256 of {path.name}": artifacts.sha256(path) for path in inputs},
        artifacts.TEST_DIGEST: test_sha256,
    }
    artifacts.write_json(evaluation / "lineage.json", lineage)
    folders = Folders(prepared, probe, knowledge, features, model, evaluation)
    content = gather(folders, f"{tracking.model_name}: evaluation on the test set", params.gallery_images)
    figures = make_figures(content)
    (evaluation / "report.html").write_text(render_report(content, figures), encoding="utf-8")
    write_figures(evaluation / "figures", figures)
    artifacts.write_json(evaluation / "run.json", run.model_copy(update={"test_sha256": test_sha256}))

    files = {f"evaluation/{path.relative_to(evaluation)}": path for path in evaluation.rglob("*") if path.is_file()}
    files |= {f"knowledge/{path.name}": path for path in knowledge.glob("*.json")}
    add_results(
        run,
        tracking,
        result_metrics(results.scores),
        files,
        datasets=split_inputs(prepared, ["test"]),
        tags={"mdpr.knowledge_digest": classifier.config.knowledge_digest, **run.digests},
    )
