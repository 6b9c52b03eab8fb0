"""prepare as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Dataset, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def prepare(params: str, prepared: Output[Dataset], classes: Output[Dataset]) -> None:
    """Cut a long-tailed training set, a balanced validation set and the test set from a source.

    Args:
        params: YAML text with the section prepare.

    Returns:
        prepared: train, val and test as Parquet, classes.json, card.json.
        classes: Only classes.json, for tasks that read no image.
    """
    from mdpr.kubeflow.components import copy_classes, run_component

    run_component("prepare", params, prepared=prepared)
    copy_classes(prepared, classes)
