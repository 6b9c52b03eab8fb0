"""describe as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def describe(
    params: str,
    workspace: str,
    prepared: Input[Dataset],
    probe: Input[Artifact],
    knowledge: Output[Artifact],
    page: Output[HTML],
) -> str:
    """Gather one sentence per class in each of the five dimensions, and audit them. `require` ends the run if some are
    missing or refused.

    Args:
        params: YAML text with the section describe.
        workspace: Folder that outlives a task that is killed; empty: none.
        prepared: The class list that prepare wrote.
        probe: The frozen model's bias, with the class that each class is most confused with.

    Returns:
        knowledge: knowledge.json, audit.json, and index.html to read both.
        page: The sentences with the findings of the audit, for the UI.
        Output: What is wrong, in one line; empty: nothing is.
    """
    from mdpr.kubeflow.components import run_check, show_page

    problem = run_check("describe", params, workspace, prepared=prepared, probe=probe, knowledge=knowledge)
    show_page(knowledge, "index.html", page)
    return problem
