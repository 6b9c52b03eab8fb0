"""evaluate: the untouched test set."""

from __future__ import annotations

from mdpr.config import EvaluateParams, TrackingParams
from mdpr.stages.definition import In, Out


def evaluate(
    prepared: In,
    probe: In,
    knowledge: In,
    features: In,
    model: In,
    evaluation: Out,
    *,
    params: EvaluateParams,
    tracking: TrackingParams,
) -> None:
    """Write metrics, the per-class table, predictions and the report; add them to the run that tune opened.

    Raises `ArtifactError` where the model was tuned for other classes or on another backbone than the probe's.
    """
    import numpy as np

    from mdpr import artifacts
    from mdpr.data.images import decode_image
    from mdpr.data.loading import ImageTable, eval_transform, make_loader
    from mdpr.errors import ArtifactError
    from mdpr.evaluation.gallery import make_gallery, pick_tail_images
    from mdpr.evaluation.inference import predict
    from mdpr.evaluation.report import ReportContent, render_report
    from mdpr.evaluation.results import Results
    from mdpr.inference import Classifier
    from mdpr.progress import track
    from mdpr.tracking.runs import add_results, flatten, lineage_tags

    classes = artifacts.read_classes(prepared)
    names = [item.name for item in classes]
    frozen = artifacts.read_probe(probe, names)
    sentences_CV = artifacts.read_knowledge(knowledge / "knowledge.json", names).sentences_CV()
    history, run = artifacts.read_history(model), artifacts.read_run(model)
    classifier = Classifier.load(model, features)
    if list(classifier.class_names) != names:
        raise ArtifactError(f"{model} was tuned for other classes than {prepared} holds: rerun tune")
    if frozen.fingerprint != classifier.config.fingerprint:
        raise ArtifactError(f"{probe} was made with another backbone than {model}: rerun probe")

    test = artifacts.read_images(prepared / "test.parquet")
    transform = eval_transform(classifier.image_size_px, classifier.image_mean, classifier.image_std)
    loader = make_loader(ImageTable(test, transform, cache_max_bytes=0), params.batch_size)
    results = Results.of(predict(classifier, frozen, track(loader, "evaluate")), classes, frozen.rival_C)

    picked = pick_tail_images(results.predictions, classes, params.gallery_images)
    images = {
        row: decode_image(test["image"][row]["bytes"].as_py(), f"row {row} of test.parquet")
        for row in picked["index"].tolist()
    }
    inputs = (prepared, probe, knowledge, features, model)
    report = ReportContent(
        title=f"{tracking.model_name}: evaluation on the test set",
        results=results,
        history=history,
        selected_epoch=classifier.config.selected_epoch,
        prior_C=np.exp(frozen.log_prior_C),
        gallery=make_gallery(picked, classes, sentences_CV, images),
        lineage={
            "MLflow run": f"{run.run_id} (experiment {run.experiment})",
            "backbone": classifier.config.fingerprint,
            **lineage_tags(inputs),
            **{f"sha256 of {path.name}": artifacts.sha256(path) for path in inputs},
        },
    )

    evaluation.mkdir()
    results.write(evaluation)
    (evaluation / "report.html").write_text(render_report(report), encoding="utf-8")
    files = sorted(evaluation.iterdir())
    metrics = flatten({"test": results.scores})
    tracked = add_results(run, tracking, metrics, files)
    test_sha256 = artifacts.sha256(prepared / "test.parquet")
    artifacts.write_json(evaluation / "run.json", tracked.model_copy(update={"test_sha256": test_sha256}))
