"""validate as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def validate(params: str, prepared: Input[Dataset], validation: Output[Artifact], docs: Output[HTML]) -> str:
    """Check the prepared data with Great Expectations. The task `require` ends the run if the set is broken.

    Args:
        params: YAML text with the section validate.
        prepared: The data set that prepare wrote.

    Returns:
        validation: result.json and Data Docs.
        docs: The first page of Data Docs, for the UI.
        Output: What is wrong, in one line; empty: nothing is.
    """
    from mdpr.kubeflow.components import run_check, show_page

    problem = run_check("validate", params, prepared=prepared, validation=validation)
    show_page(validation, "index.html", docs)
    return problem
