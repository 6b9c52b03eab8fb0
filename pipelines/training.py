"""The training pipeline, whole.

Defaults are those of params.yaml at the time of compiling: the pipeline does what `dvc repro` does.
"""

from functools import partial
from typing import Any

import yaml
from components.close.component import close
from components.configure.component import configure
from components.describe.component import describe
from components.encode.component import encode
from components.evaluate.component import evaluate
from components.prepare.component import prepare
from components.probe.component import probe
from components.promote.component import promote
from components.register.component import register
from components.tune.component import tune
from components.validate.component import validate
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines import placement
from pipelines.site import Site

NAME = "mdpr-training"


def training_pipeline(params: dict[str, dict[str, Any]], site: Site) -> GraphComponent:
    """The pipeline whose parameters have the values of `params` as defaults, placed as `site` offers."""
    place = partial(placement.place, site=site)

    @dsl.pipeline(name=NAME)
    def training(
        recipe: str = "",
        source: str = params["prepare"]["source"],
        root: str = params["prepare"]["root"],
        architecture: str = params["backbone"]["architecture"],
        weights: str = params["backbone"]["weights"],
        prompting: str = params["tune"]["prompting"],
        routing: bool = params["tune"]["routing"],
        base_loss: str = params["tune"]["base_loss"],
        epochs: int = params["tune"]["epochs"],
        batch_size: int = params["tune"]["batch_size"],
        learning_rate: float = params["tune"]["learning_rate"],
        seed: int = params["tune"]["seed"],
        provider: str = params["describe"]["provider"],
        llm_vendor: str = params["describe"]["llm"]["vendor"],
        llm_model: str = params["describe"]["llm"]["model"],
        llm_base_url: str = params["describe"]["llm"]["base_url"],
        experiment: str = params["tracking"]["experiment"],
        model_name: str = params["tracking"]["model_name"],
        overrides: str = "",
    ) -> None:
        """Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing, from images to a champion.

        Args:
            recipe: Known benchmark (mdpr recipe list) to start from; then, below, only what you change counts.
            source: Kind of data source: embedded, parquet, folder, csv, or a benchmark such as cifar100 or imagenet_lt.
            root: Folder of the source, as the containers see it.
            architecture: Frozen CLIP model: an open_clip name, or the path of a model configuration.
            weights: Its weights: an open_clip pretrained tag, or the path of a file.
            prompting: Prompt tuner: none, coop, vpt, ivlp or maple.
            routing: The MDPR branch; false gives the plain prompt tuner.
            base_loss: Of the base branch: ce, logit_adjusted, balanced_softmax, ldam, focal or class_balanced.
            epochs: Passes over the training set.
            batch_size: Images a step.
            learning_rate: AdamW, start of the cosine.
            seed: Seed of initial weights, order of images, augmentation and dropout; the cut has prepare.seed.
            provider: Who writes the sentences: curated, llm or local.
            llm_vendor: Protocol of the chat model's server: openai, anthropic or google_genai.
            llm_model: The chat model; its key is in the Kubernetes secret mdpr-llm.
            llm_base_url: Address of its server; empty is the vendor's own.
            experiment: MLflow experiment.
            model_name: Name in the MLflow model registry.
            overrides: Everything else, as YAML text, for example {tune: {context_tokens: 16, prompt_depth: 9}}.
        """
        with dsl.ExitHandler(place(close()), name=NAME):  # whatever happens inside
            texts = place(
                configure(
                    base=yaml.safe_dump(params, sort_keys=False),
                    recipe=recipe,
                    source=source,
                    root=root,
                    architecture=architecture,
                    weights=weights,
                    prompting=prompting,
                    routing=routing,
                    base_loss=base_loss,
                    epochs=epochs,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    seed=seed,
                    provider=provider,
                    llm_vendor=llm_vendor,
                    llm_model=llm_model,
                    llm_base_url=llm_base_url,
                    experiment=experiment,
                    model_name=model_name,
                    overrides=overrides,
                )
            ).outputs

            images = place(prepare(params=texts["prepare"])).output
            checked = place(validate(params=texts["validate"], prepared=images))

            # A broken data set stops the flow before anything is computed on it.
            bias = place(probe(params=texts["probe"], prepared=images)).after(checked).output
            sentences = place(describe(params=texts["describe"], prepared=images, probe=bias)).output
            features = place(encode(params=texts["encode"], knowledge=sentences)).output
            model = place(tune(params=texts["tune"], prepared=images, probe=bias, features=features)).output

            tuned = {"knowledge": sentences, "features": features, "model": model}
            scoring = place(evaluate(params=texts["evaluate"], prepared=images, probe=bias, **tuned))
            scores = scoring.outputs["evaluation"]

            version = place(register(params=texts["register"], evaluation=scores, **tuned)).output
            place(promote(params=texts["promote"], evaluation=scores, registration=version))

    return training
