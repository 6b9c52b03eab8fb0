"""shard: the parameters of describe for each share of the classes."""

from components.images import IMAGE_CPU
from kfp import dsl


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def shard(params: str, shards: int) -> list[str]:
    """Split describe into shares of the classes that can run side by side, its budget and rate limits shared out.

    Args:
        params: YAML text with the section describe.
        shards: Number of shares.

    Returns:
        Output: YAML text with the section describe for each share.
    """
    from mdpr.kubeflow.tasks import shard_params

    return shard_params(params, shards)
