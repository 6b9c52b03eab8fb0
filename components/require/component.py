"""require: the task that fails if a check before it found the data or the sentences wanting."""

from components.images import IMAGE_CPU
from kfp import dsl


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def require(problem: str) -> None:
    """End the run here if a check found a problem; what the check wrote is in its own task, which succeeded.

    Args:
        problem: The line that says what is wrong; empty: nothing is.
    """
    from mdpr.kubeflow.tasks import require_none

    require_none(problem)
