"""monitor as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def monitor(
    params: str,
    workspace: str,
    log: str,
    max_drop_points: float,
    max_label_shift: float,
    max_drift_auc: float,
    monitoring: Output[Artifact],
    page: Output[HTML],
) -> str:
    """Judge the champion's prediction log beside its test set: label shift, expected accuracy, drift of features.

    Args:
        params: YAML text with the section tracking.
        workspace: Folder that outlives a task that is killed; empty: none.
        log: Folder of the prediction log, as mdpr serve --log writes it.
        max_drop_points: Retrain if the expected accuracy falls by more points.
        max_label_shift: Retrain if the class shares differ by more (total variation).
        max_drift_auc: Retrain if a classifier distinguishes new images from test images with a higher AUC.

    Returns:
        monitoring: One JSON file: the figures, and the class shares as a deployment prior.
        page: The figures, for the UI.
        Output: retrain, keep, or wait for more answers; retrain if there is no champion yet.
    """
    from mdpr.kubeflow.tasks import run_monitor

    limits = {"max_drop_points": max_drop_points, "max_label_shift": max_label_shift, "max_drift_auc": max_drift_auc}
    return run_monitor(params, workspace, log, limits, monitoring=monitoring, page=page)
