"""The training pipeline, whole.

    python -m pipelines.training --output pipelines/training.yaml     compile it
    python -m pipelines.training --check                              exit 1 when the compiled file is stale

Defaults are those of params.yaml at the time of compiling: the pipeline does what `dvc repro` does.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import yaml
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
from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

from mdpr.config import load_params
from pipelines.command import Command
from pipelines.placement import place

COMPILED = Path(__file__).resolve().with_suffix(".yaml")
PARAMS_FILE = COMPILED.parents[1] / "params.yaml"
NAME = "mdpr-training"


def read_params(path: Path = PARAMS_FILE) -> dict[str, dict[str, Any]]:
    """All sections of params.yaml, complete and checked; raises `ConfigError`."""
    return {name: section.model_dump(mode="json") for name, section in load_params(path).items()}


def training_pipeline(params: dict[str, dict[str, Any]]) -> GraphComponent:
    """The pipeline whose parameters have the values of `params` as defaults."""

    @dsl.pipeline(name=NAME)
    def training(
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
        experiment: str = params["tracking"]["experiment"],
        model_name: str = params["tracking"]["model_name"],
        overrides: str = "",
    ) -> None:
        """Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing, from images to a champion.

        Args:
            source: Kind of data source: embedded, parquet, folder or csv.
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
            experiment: MLflow experiment.
            model_name: Name in the MLflow model registry.
            overrides: Everything else, as YAML text, for example {tune: {context_tokens: 16, prompt_depth: 9}}.
        """
        texts = place(
            configure(
                base=yaml.safe_dump(params, sort_keys=False),
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


def compile_pipeline(output: Path) -> None:
    """Write the pipeline as two YAML documents: the pipeline, and its Kubernetes options."""
    compiler.Compiler().compile(training_pipeline(read_params()), str(output))


def is_current(compiled: Path) -> bool:
    """Whether `compiled` is what compiling now would write."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / compiled.name
        compile_pipeline(fresh)
        return compiled.is_file() and compiled.read_bytes() == fresh.read_bytes()


@click.command(cls=Command)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=COMPILED, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when the compiled file is stale.")
def main(output: Path, check: bool) -> None:
    """Compile the training pipeline."""
    if not check:
        compile_pipeline(output)
    elif not is_current(output):
        raise click.ClickException(f"{output} is stale: run python -m pipelines.training --output {output}")


if __name__ == "__main__":
    main()
