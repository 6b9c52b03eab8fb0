"""tune on several nodes as a Kubeflow component, which runs as a TrainJob of Kubeflow Trainer."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def trainjob(
    params: str,
    workspace: str,
    job: str,
    prepared: Input[Dataset],
    probe: Input[Artifact],
    features: Input[Artifact],
    model: Output[Model],
) -> None:
    """Run tune on several nodes, in the place of the task tune, as a TrainJob that this task starts and follows.

    Args:
        params: YAML text with the sections backbone, tracking and tune.
        workspace: Folder on a volume that the nodes mount too.
        job: The TrainJob as YAML text, without its name, volume and paths.
        prepared: The data set that prepare wrote.
        probe: The frozen model's bias.
        features: The knowledge base in the model's joint space.

    Returns:
        model: Learned weights, configuration, history, and the MLflow run they belong to.
    """
    from mdpr.kubeflow.train_jobs import run_on_nodes

    run_on_nodes("tune", params, workspace, job, prepared=prepared, probe=probe, features=features, model=model)
