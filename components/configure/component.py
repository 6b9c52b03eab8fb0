"""configure: the parameters of a run, checked before anything is computed and split by stage."""

from typing import NamedTuple

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def configure(
    base: str,
    recipe: str,
    source: str,
    root: str,
    data_repo: str,
    data_rev: str,
    data_path: str,
    architecture: str,
    weights: str,
    prompting: str,
    routing: bool,
    base_loss: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    provider: str,
    llm_vendor: str,
    llm_model: str,
    llm_base_url: str,
    margin_points: float,
    experiment: str,
    model_name: str,
    overrides: str,
    settings: Output[Artifact],
) -> NamedTuple(  # type: ignore[valid-type]  # Kubeflow copies the function alone, so the type is spelled here
    "StageParams",
    [
        ("prepare", str),
        ("validate", str),
        ("probe", str),
        ("describe", str),
        ("encode", str),
        ("tune", str),
        ("evaluate", str),
        ("register", str),
        ("promote", str),
    ],
):
    """Check the parameters of a run and give each stage its own sections as YAML text.

    Args:
        base: params.yaml as it was when the pipeline was compiled.
        recipe: Known benchmark to start from instead; then only what differs from base counts below.
        source: Kind of data source (prepare.source).
        root: Folder of the source (prepare.root).
        data_repo: Git repository whose DVC tracks the source instead (prepare.repo).
        data_rev: Its commit, tag or branch (prepare.rev).
        data_path: The folder in it (prepare.path).
        architecture: Frozen CLIP model (backbone.architecture).
        weights: Its weights (backbone.weights).
        prompting: Prompt tuner (tune.prompting).
        routing: The MDPR branch (tune.routing).
        base_loss: Loss of the base branch (tune.base_loss).
        epochs: Passes over the training set (tune.epochs).
        batch_size: Images a step (tune.batch_size).
        learning_rate: Start of the cosine (tune.learning_rate).
        seed: Seed of the tuning (tune.seed).
        provider: Who writes the sentences (describe.provider).
        llm_vendor: Protocol of the chat model's server (describe.llm.vendor).
        llm_model: The chat model (describe.llm.model).
        llm_base_url: Address of its server (describe.llm.base_url).
        margin_points: What the gate asks beyond its policy (promote.margin_points).
        experiment: MLflow experiment (tracking.experiment).
        model_name: Name in the MLflow model registry (tracking.model_name).
        overrides: YAML text of sections and keys, over everything above.

    Returns:
        settings: All parameters of the run, as a params.yaml.
        prepare: Parameters of prepare.
        validate: Parameters of validate.
        probe: Parameters of probe.
        describe: Parameters of describe.
        encode: Parameters of encode.
        tune: Parameters of tune.
        evaluate: Parameters of evaluate.
        register: Parameters of register.
        promote: Parameters of promote.
    """
    from mdpr.kubeflow.components import configure_stages

    choices: dict[str, dict[str, object]] = {
        "prepare": {"source": source, "root": root, "repo": data_repo, "rev": data_rev, "path": data_path},
        "backbone": {"architecture": architecture, "weights": weights},
        "tune": {
            "prompting": prompting,
            "routing": routing,
            "base_loss": base_loss,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        },
        "describe": {
            "provider": provider,
            "llm": {"vendor": llm_vendor, "model": llm_model, "base_url": llm_base_url},
        },
        "promote": {"margin_points": margin_points},
        "tracking": {"experiment": experiment, "model_name": model_name},
    }
    return configure_stages(base, choices, overrides, recipe, settings)
