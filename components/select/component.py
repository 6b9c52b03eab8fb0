"""select: the best model of a sweep."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Input, Markdown, Model, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def select(models: Input[list[Model]], model: Output[Model], choice: Output[Markdown]) -> None:
    """Choose the model that is best on validation; the test set is not used.

    Args:
        models: The models of a sweep, as tune wrote them.

    Returns:
        model: The best of them, unchanged.
        choice: All of them with their validation accuracy, for the UI.
    """
    from mdpr.kubeflow.tasks import select_model

    select_model(models, model, choice)
