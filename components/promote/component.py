"""promote as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def promote(
    params: str, workspace: str, evaluation: Input[Artifact], registration: Input[Artifact], promotion: Output[Artifact]
) -> None:
    """Move the alias `champion` to the challenger when the gate passes.

    Args:
        params: YAML text with the sections tracking and promote.
        workspace: Folder that outlives a task that is killed; empty: none.
        evaluation: What the challenger scored.
        registration: The challenger's version in the registry.

    Returns:
        promotion: One JSON file: the gate's decision.
    """
    from mdpr.kubeflow.components import run_component

    run_component("promote", params, workspace, evaluation=evaluation, registration=registration, promotion=promotion)
