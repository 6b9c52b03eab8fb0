"""merge: one knowledge base from the shards that describe wrote."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def merge(
    params: str,
    prepared: Input[Dataset],
    probe: Input[Artifact],
    shards: Input[list[Artifact]],
    knowledge: Output[Artifact],
    page: Output[HTML],
) -> str:
    """Put the shards of a knowledge base together, and audit the whole: what describe would have written in one piece.

    Args:
        params: YAML text with the section describe.
        prepared: The class list that prepare wrote.
        probe: The frozen model's bias, with the class that each class is most confused with.
        shards: The shares that describe wrote.

    Returns:
        knowledge: knowledge.json, audit.json, and index.html to read both.
        page: The sentences with the findings of the audit, for the UI.
        Output: What is wrong, in one line; empty: nothing is.
    """
    from mdpr.kubeflow.components import show_page
    from mdpr.kubeflow.tasks import merge_shards

    problem = merge_shards(params, shards, prepared=prepared, probe=probe, knowledge=knowledge)
    show_page(knowledge, "index.html", page)
    return problem
