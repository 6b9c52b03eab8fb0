"""tune as a Kubeflow component."""

from components.images import IMAGE_GPU
from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output


@dsl.component(base_image=IMAGE_GPU, packages_to_install=[], install_kfp_package=False)
def tune(
    params: str,
    workspace: str,
    prepared: Input[Dataset],
    probe: Input[Artifact],
    features: Input[Artifact],
    model: Output[Model],
) -> None:
    """Train the prompts and the router; keep the epoch that is best on validation.

    Args:
        params: YAML text with the sections backbone, tracking and tune.
        workspace: Folder that outlives a task that is killed; empty: none.
        prepared: The data set that prepare wrote.
        probe: The frozen model's bias.
        features: The knowledge base in the model's joint space.

    Returns:
        model: Learned weights, configuration, history, and the MLflow run they belong to.
    """
    from mdpr.kubeflow.components import run_component

    run_component("tune", params, workspace, prepared=prepared, probe=probe, features=features, model=model)
