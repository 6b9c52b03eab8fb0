"""probe as a Kubeflow component."""

from components.images import IMAGE_GPU
from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_GPU, packages_to_install=[], install_kfp_package=False)
def probe(params: str, prepared: Input[Dataset], probe: Output[Artifact]) -> None:
    """Read the frozen CLIP's own bias from the training images.

    Args:
        params: YAML text with the sections backbone and probe.
        prepared: The data set that prepare wrote.

    Returns:
        probe: Zero-shot confusion, each class's rival and accuracy, the estimated hidden prior.
    """
    from mdpr.kubeflow.components import run_component

    run_component("probe", params, prepared=prepared, probe=probe)
