"""evaluate as a Kubeflow component."""

from components.images import IMAGE_GPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output


@dsl.component(base_image=IMAGE_GPU, packages_to_install=[], install_kfp_package=False)
def evaluate(
    params: str,
    workspace: str,
    prepared: Input[Dataset],
    probe: Input[Artifact],
    knowledge: Input[Artifact],
    features: Input[Artifact],
    model: Input[Model],
    evaluation: Output[Artifact],
    scores: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    report: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Score the untouched test set: base, routed, fused, by all / many / medium / few.

    Args:
        params: YAML text with the sections tracking and evaluate.
        workspace: Folder that outlives a task that is killed; empty: none.
        prepared: The data set that prepare wrote.
        probe: The frozen model's bias; the zero-shot line of the report.
        knowledge: The sentences the report shows.
        features: The knowledge base in the model's joint space.
        model: The learned weights.

    Returns:
        evaluation: Metrics, per-class table, predictions, report.
        scores: Accuracies in percent, one file per shot group.
        metrics: Accuracies, for the UI.
        confusion: Confusion matrix of the fused prediction, for the UI.
        report: The report, for the UI.
        summary: Accuracy by shot group beside zero-shot and the champion, for the UI.
    """
    from mdpr.kubeflow.components import run_component, show_confusion, show_metrics, show_page, show_summary

    run_component(
        "evaluate",
        params,
        workspace,
        prepared=prepared,
        probe=probe,
        knowledge=knowledge,
        features=features,
        model=model,
        evaluation=evaluation,
        scores=scores,
    )
    show_metrics(evaluation, metrics)
    show_confusion(evaluation, confusion)
    show_page(evaluation, "report.html", report)
    show_summary(evaluation, params, summary)
