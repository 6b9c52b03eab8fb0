"""validate as a Kubeflow component."""

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def validate(params: str, prepared: Input[Dataset], validation: Output[Artifact], docs: Output[HTML]) -> None:
    """Check the prepared data with Great Expectations; a broken set ends the run here.

    Args:
        params: YAML text with the section validate.
        prepared: The data set that prepare wrote.

    Returns:
        validation: result.json and Data Docs.
        docs: The first page of Data Docs, for the UI.
    """
    from mdpr.kubeflow.components import run_component
    from mdpr.kubeflow.views import show_page

    run_component("validate", params, prepared=prepared, validation=validation)
    show_page(validation, "index.html", docs)
