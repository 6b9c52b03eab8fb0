"""describe as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def describe(
    params: str, workspace: str, prepared: Input[Dataset], probe: Input[Artifact], knowledge: Output[Artifact]
) -> None:
    """Gather one sentence a class in each of the five dimensions, and audit them.

    Args:
        params: YAML text with the section describe.
        workspace: Folder that outlives a task that is killed; empty: none.
        prepared: The class list that prepare wrote.
        probe: The frozen model's bias, with the class that each class is most confused with.

    Returns:
        knowledge: knowledge.json, audit.json, and index.html to read both.
    """
    from mdpr.kubeflow.components import run_component

    run_component("describe", params, workspace, prepared=prepared, probe=probe, knowledge=knowledge)
