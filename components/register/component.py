"""register as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def register(
    params: str,
    workspace: str,
    knowledge: Input[Artifact],
    features: Input[Artifact],
    model: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
) -> None:
    """Make a version in the MLflow model registry, alias `challenger`.

    Args:
        params: YAML text with the sections tracking and register.
        workspace: Folder that outlives a task that is killed; empty: none.
        knowledge: The sentences the served model explains itself with.
        features: The knowledge base in the model's joint space.
        model: The learned weights.
        evaluation: What the model scored; the MLflow run it belongs to.

    Returns:
        registration: One JSON file: name, version, alias.
    """
    from mdpr.kubeflow.components import run_component

    run_component(
        "register",
        params,
        workspace,
        knowledge=knowledge,
        features=features,
        model=model,
        evaluation=evaluation,
        registration=registration,
    )
