"""close as a Kubeflow component: the last task of every run of a pipeline, however it ended."""

from components.images import IMAGE_CPU
from kfp import dsl


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def close(status: dsl.PipelineTaskFinalStatus, workspace: str) -> None:
    """Send MLflow what it does not have yet, and mark runs that a killed task left open as failed.

    Args:
        status: How the pipeline ended; Kubeflow fills it in.
        workspace: Folder with results that MLflow does not have yet; empty: none.
    """
    from mdpr.kubeflow.tasks import close_runs

    close_runs(status.state, workspace)
