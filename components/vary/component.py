"""vary: the parameters of tune for each setting of a sweep."""

from components.images import IMAGE_CPU
from kfp import dsl


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def vary(params: str, settings: list[str]) -> list[str]:
    """Lay each setting of a sweep over the parameters of tune, all of them checked before any is tuned.

    Args:
        params: YAML text with the sections backbone, tracking and tune.
        settings: YAML texts with keys of tune, one per model.

    Returns:
        Output: YAML text with the sections backbone, tracking and tune for each model.
    """
    from mdpr.kubeflow.tasks import vary_params

    return vary_params(params, settings)
