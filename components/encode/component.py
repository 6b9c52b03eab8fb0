"""encode as a Kubeflow component."""

from components.images import IMAGE_GPU
from kfp import dsl
from kfp.dsl import Artifact, Input, Output


@dsl.component(base_image=IMAGE_GPU, packages_to_install=[], install_kfp_package=False)
def encode(params: str, knowledge: Input[Artifact], features: Output[Artifact]) -> None:
    """Turn the sentences into features with the frozen text encoder.

    Args:
        params: YAML text with the sections backbone and encode.
        knowledge: The knowledge base that describe wrote.

    Returns:
        features: Sentence features, class summaries and the prior, as safetensors.
    """
    from mdpr.kubeflow.components import run_component

    run_component("encode", params, knowledge=knowledge, features=features)
