"""close as a Kubeflow component: what is left to do when a run of the pipeline has ended, however it ended."""

from components.images import IMAGE_CPU
from kfp import dsl


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def close(status: dsl.PipelineTaskFinalStatus) -> None:
    """Mark the MLflow runs of a pipeline that did not succeed as failed: a task that was killed leaves them open.

    Args:
        status: How the pipeline ended; Kubeflow fills it in.
    """
    from mdpr.kubeflow.components import close_runs

    close_runs(status.state)
