"""promote as a Kubeflow component."""

from components.images import IMAGE_GPU
from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_GPU, packages_to_install=[], install_kfp_package=False)
def promote(
    params: str,
    workspace: str,
    prepared: Input[Dataset],
    evaluation: Input[Artifact],
    registration: Input[Artifact],
    promotion: Output[Artifact],
) -> None:
    """Move the alias `champion` to the challenger when the gate passes.

    Args:
        params: YAML text with the sections tracking and promote.
        workspace: Folder that outlives a task that is killed; empty: none.
        prepared: The test images, which a champion of an earlier test set answers first.
        evaluation: What the challenger scored.
        registration: The challenger's version in the registry.

    Returns:
        promotion: One JSON file: the gate's decision.
    """
    from mdpr.kubeflow.components import run_component

    run_component(
        "promote",
        params,
        workspace,
        prepared=prepared,
        evaluation=evaluation,
        registration=registration,
        promotion=promotion,
    )
