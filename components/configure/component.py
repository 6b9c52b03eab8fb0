"""configure: the parameters of a run, checked before anything is computed and split by stage.

Made by `python -m components.readme --write` from the settings that `mdpr.params` marks as offered.
"""

# ruff: noqa: E501 - a description is one line
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
    provider: str,
    llm_vendor: str,
    llm_model: str,
    llm_base_url: str,
    prompting: str,
    routing: bool,
    base_loss: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    margin_points: float,
    architecture: str,
    weights: str,
    experiment: str,
    model_name: str,
    overrides: str,
    settings: Output[Artifact],
) -> NamedTuple(  # type: ignore[valid-type]  # Kubeflow copies only the function, so the type is spelled here
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
        source: Embedded: the shipped Fashion-MNIST pool; parquet: pool.parquet and test.parquet with classes.json; folder: one folder per class, inside train/ and test/ (val/) if there are splits; csv: images.csv with the columns path, label and, if there are splits, split; cifar10, cifar100: the original python archive, fetched if missing; imagenet_lt, places_lt, inat2018: their list files; huggingface: hub_name; emblems: pictures drawn from `seed`, whose truth is known (root: any folder) (prepare.source).
        root: Folder of the source, as the containers see it, or its address in an object store (s3://...); not used if data_repo is set (prepare.root).
        data_repo: Git repository whose DVC tracks the source, without a login: that is in the Kubernetes secret mdpr-data (prepare.repo).
        data_rev: Commit, tag or branch of repo or hub_name; empty: its default branch as it is now (prepare.rev).
        data_path: Folder in repo that DVC tracks (prepare.path).
        provider: Curated: read and check a finished knowledge base; completed: the same, and the chat model of describe.llm writes what is missing (gaps, contrasts with other rivals); llm: the chat model writes all; local: a small model in this process writes all, without network or key (its text is poor) (describe.provider).
        llm_vendor: A model_provider of LangChain's init_chat_model, such as anthropic, google_genai, azure_openai or bedrock_converse; openai also for other servers with its protocol (vLLM, Ollama, llama.cpp) at base_url (describe.llm.vendor).
        llm_model: The chat model; its key is in the Kubernetes secret mdpr-llm (describe.llm.model).
        llm_base_url: Address of the server; empty: the vendor's own address (describe.llm.base_url).
        prompting: Tuner: none, coop, vpt, ivlp, maple (prompts); adaptformer, lora, ssf or bitfit (adapters) (tune.prompting).
        routing: The MDPR branch; false gives the plain prompt tuner (tune.routing).
        base_loss: Loss of the base branch: ce, logit_adjusted, balanced_softmax, ldam, focal or class_balanced (tune.base_loss).
        epochs: Passes over the training set (tune.epochs).
        batch_size: Images of an optimiser step, over all processes (tune.batch_size).
        learning_rate: Start of the cosine (tune.learning_rate).
        seed: Seed of initial weights, order of images, augmentation and dropout; the cut has prepare.seed (tune.seed).
        margin_points: Points over all classes by which a model must beat the champion, beyond the policy's own margin (promote.margin_points).
        architecture: Open_clip model name, or the path of a model configuration (.json) (backbone.architecture).
        weights: Open_clip pretrained tag, or the path of a weights file (backbone.weights).
        experiment: MLflow experiment (tracking.experiment).
        model_name: Name in the MLflow model registry, without / and : (tracking.model_name).
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
    arguments = dict(locals())
    from mdpr.kubeflow.components import configure_stages

    return configure_stages(arguments)
