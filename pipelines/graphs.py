"""The pipelines: what the UI offers, the pieces they are made of, and the four graphs.

Defaults are those of params.yaml when the pipeline is compiled: `training` does what `dvc repro` does. Kubeflow reads a
pipeline's interface from a function's signature and docstring; here they are made from the parameters, so that several
pipelines share the definition of what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from inspect import Parameter as Argument
from inspect import Signature
from operator import getitem
from typing import Any

from components.close.component import close
from components.configure.component import configure
from components.describe.component import describe
from components.encode.component import encode
from components.evaluate.component import evaluate
from components.merge.component import merge
from components.monitor.component import monitor
from components.prepare.component import prepare
from components.probe.component import probe
from components.promote.component import promote
from components.register.component import register
from components.require.component import require
from components.select.component import select
from components.shard.component import shard
from components.trainjob.component import trainjob
from components.tune.component import tune
from components.validate.component import validate
from components.vary.component import vary
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from mdpr.kubeflow.tasks import params_per_setting, params_per_shard
from mdpr.params import choices, dump_yaml
from pipelines.cluster import ClusterProfile, place
from pipelines.nodes import train_job

Sections = Mapping[str, Mapping[str, Any]]  # section of params.yaml -> key -> value

CHOICES = choices()
RECIPE = "Known benchmark (mdpr recipe list) to start from; then, below, only what you change counts."
OVERRIDES = "Everything else, as YAML text, for example {tune: {context_tokens: 16, prompt_depth: 9}}."


# --- what the UI offers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline: its default, whose type is the parameter's, and its text in the UI."""

    default: str | int | float | bool | list[str]
    help: str


def defaults(params: Sections) -> dict[str, Any]:
    """Every choice as `params` has it."""
    return {name: reduce(getitem, choice.key.split("."), params) for name, choice in CHOICES.items()}


@dataclass(frozen=True)
class Variant:
    """A pipeline, by the name that `--variant` takes.

    pipeline_name    on a cluster
    summary          its line in the UI
    offered          the choices of params.yaml that the UI offers one by one
    own              parameters that only this pipeline has
    graph            makes the tasks: takes a `Driver` and the parameters' channels by name
    results          name -> path in a run's folder, printed when the run has ended
    check            raises `ConfigError` if a parameter of its own does not go with a stage's; takes the stages'
                     parameters as text, and the pipeline's parameters
    """

    pipeline_name: str
    summary: str
    offered: Sequence[str]
    own: Mapping[str, Parameter]
    graph: Callable[[Driver, dict[str, Any]], None]
    results: Mapping[str, str]
    check: Callable[[Mapping[str, str], Mapping[str, Any]], object] = lambda texts, values: None

    def parameters(self, params: Sections) -> dict[str, Parameter]:
        """In the order of the UI: the recipe, the choices, its own, the overrides."""
        chosen = defaults(params)
        choices = {name: Parameter(chosen[name], CHOICES[name].text) for name in self.offered}
        return {"recipe": Parameter("", RECIPE), **choices, **self.own, "overrides": Parameter("", OVERRIDES)}

    def make(self, params: Sections, profile: ClusterProfile, workspace: str | None = None) -> GraphComponent:
        """The pipeline whose parameters have the values of `params` as defaults, placed on the cluster of `profile`.

        `workspace`: a folder of this machine for what must outlive a task, instead of a volume of the run.
        """
        volume = profile.workspace() if workspace is None else None
        folder = workspace or (dsl.WORKSPACE_PATH_PLACEHOLDER if volume else "")
        driver = Driver(params, profile, folder)
        parameters = self.parameters(params)

        def pipeline(*channels: Any) -> None:
            with dsl.ExitHandler(driver.place(close(workspace=folder)), name=self.pipeline_name):
                self.graph(driver, dict(zip(parameters, channels, strict=True)))

        arguments = [
            Argument(key, Argument.POSITIONAL_OR_KEYWORD, default=item.default, annotation=type(item.default))
            for key, item in parameters.items()
        ]
        lines = (f"    {key}: {item.help}" for key, item in parameters.items())
        pipeline.__doc__ = "\n".join([self.summary, "", "Args:", *lines])
        pipeline.__signature__ = Signature(arguments, return_annotation=None)  # type: ignore[attr-defined]
        config = dsl.PipelineConfig(workspace=volume) if volume else None
        made: GraphComponent = dsl.pipeline(name=self.pipeline_name, pipeline_config=config)(pipeline)
        return made


# --- the pieces ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Driver:
    """The needs of a graph beside its parameters: params.yaml, the cluster, and a folder that outlives a task."""

    params: Sections
    profile: ClusterProfile
    workspace: str

    def place(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """`task` with its image, limits and secrets."""
        return place(task, self.profile)

    def check(self, task: dsl.PipelineTask) -> tuple[Mapping[str, Any], dsl.PipelineTask]:
        """The outputs of a `task` that judges, and the task after it, which fails if something is wrong."""
        outputs = self.place(task).outputs
        return outputs, self.place(require(problem=outputs["Output"]))


@dataclass(frozen=True)
class Start:
    """The start of every pipeline: each stage's parameters as text, the prepared images, the frozen model's bias.

    classes: the class list only, for tasks that read no image.
    """

    params: Mapping[str, Any]
    images: Any
    classes: Any
    bias: Any


def configured(driver: Driver, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each stage's parameters as text, checked. `chosen`: the pipeline's parameters by name."""
    given = {**defaults(driver.params), **chosen}
    outputs: Mapping[str, Any] = driver.place(configure(base=dump_yaml(driver.params), **given)).outputs
    return outputs


def begin(driver: Driver, texts: Mapping[str, Any]) -> Start:
    """Cut and check the data, probe the model. `texts`: those of `configured`."""
    data = driver.place(prepare(params=texts["prepare"])).outputs
    images = data["prepared"]
    # A broken data set stops the flow before anything is computed on it.
    _, passed = driver.check(validate(params=texts["validate"], prepared=images))
    bias = driver.place(probe(params=texts["probe"], prepared=images)).after(passed).output
    return Start(texts, images, data["classes"], bias)


def knowledge_of(driver: Driver, start: Start) -> tuple[Any, Any]:
    """The sentences about every class, and their features."""
    classes = {"prepared": start.classes, "probe": start.bias}
    text = start.params["describe"]
    described, passed = driver.check(describe(params=text, workspace=driver.workspace, **classes))
    sentences = described["knowledge"]
    return sentences, driver.place(encode(params=start.params["encode"], knowledge=sentences)).after(passed).output


def learn(driver: Driver, text: Any, **sources: Any) -> Any:
    """The tuned model, by one machine, or by as many as the profile has for tune. `text`: the parameters of tune."""
    given = {"params": text, "workspace": driver.workspace, **sources}
    nodes = driver.profile.nodes
    if nodes == 1:
        return driver.place(tune(**given)).output
    return driver.place(trainjob(job=dump_yaml(train_job("", nodes, driver.profile)), **given)).output


def release(driver: Driver, start: Start, **tuned: Any) -> None:
    """Score the model on the test set, register it, and let the gate decide. `tuned`: knowledge, features, model."""
    texts, workspace = start.params, driver.workspace
    sources = {"prepared": start.images, "probe": start.bias}
    scores = driver.place(evaluate(params=texts["evaluate"], workspace=workspace, **sources, **tuned)).outputs
    evaluation = scores["evaluation"]
    registered = register(params=texts["register"], workspace=workspace, evaluation=evaluation, **tuned)
    version = driver.place(registered).output
    compared = {"prepared": start.images, "evaluation": evaluation, "registration": version}
    driver.place(promote(params=texts["promote"], workspace=workspace, **compared))


# --- the graphs ---------------------------------------------------------------------------------------------


def training_graph(driver: Driver, chosen: dict[str, Any]) -> None:
    """The nine stages, from images to a champion."""
    train(driver, configured(driver, chosen))


def retraining_graph(driver: Driver, chosen: dict[str, Any]) -> None:
    """The same, only if the answers of the deployed champion advise it."""
    given = {name: chosen.pop(name) for name in MONITORED}
    texts = configured(driver, chosen)
    judged = monitor(params=texts["register"], workspace=driver.workspace, **given)
    # `Output`, a task's only value, is the one name that kfp's local runner finds in a condition.
    with dsl.If(driver.place(judged).outputs["Output"] == "retrain", name="retrain"):
        train(driver, texts)


def train(driver: Driver, texts: Mapping[str, Any]) -> None:
    """The stages behind `configure`. `texts`: those of `configured`."""
    start = begin(driver, texts)
    sources = {"prepared": start.images, "probe": start.bias}
    sentences, features = knowledge_of(driver, start)
    model = learn(driver, start.params["tune"], features=features, **sources)
    release(driver, start, knowledge=sentences, features=features, model=model)


def knowledge_graph(driver: Driver, chosen: dict[str, Any]) -> None:
    """Only the sentences, written in several shares of the classes at once and put together."""
    shards = chosen.pop("shards")
    start = begin(driver, configured(driver, chosen))
    text = start.params["describe"]
    sources = {"prepared": start.classes, "probe": start.bias}
    with dsl.ParallelFor(driver.place(shard(params=text, shards=shards)).output, name="shards") as share:
        described, _ = driver.check(describe(params=share, workspace=driver.workspace, **sources))
    driver.check(merge(params=text, shards=dsl.Collected(described["knowledge"]), **sources))


def sweep_graph(driver: Driver, chosen: dict[str, Any]) -> None:
    """The same data and sentences tuned under several settings at once; the best on validation goes on."""
    settings = chosen.pop("settings")
    start = begin(driver, configured(driver, chosen))
    sources = {"prepared": start.images, "probe": start.bias}
    sentences, features = knowledge_of(driver, start)
    varied = driver.place(vary(params=start.params["tune"], settings=settings)).output
    with dsl.ParallelFor(varied, name="settings") as setting:
        model = learn(driver, setting, features=features, **sources)
    best = driver.place(select(models=dsl.Collected(model))).outputs["model"]
    release(driver, start, knowledge=sentences, features=features, model=best)


KNOWLEDGE_CHOICES = [
    *("source", "root", "data_repo", "data_rev", "data_path", "architecture", "weights"),
    *("provider", "llm_vendor", "llm_model", "llm_base_url"),
]
MONITORED = {
    "log": Parameter("/data/predictions", "Folder of the prediction log, as mdpr serve --log writes it."),
    "max_drop_points": Parameter(2.0, "Retrain if the expected accuracy falls by more points."),
    "max_label_shift": Parameter(0.3, "Retrain if the class shares differ by more (total variation, 0 to 1)."),
    "max_drift_auc": Parameter(
        0.65, "Retrain if a classifier distinguishes new from test images with a higher AUC (0.5 to 1)."
    ),
}
RELEASED = {"report": "evaluate/evaluation/report.html", "promotion": "promote/promotion"}

VARIANTS: dict[str, Variant] = {
    "training": Variant(
        "mdpr-training",
        "Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing, from images to a champion.",
        list(CHOICES),
        {},
        training_graph,
        RELEASED,
    ),
    "retraining": Variant(
        "mdpr-retraining",
        "Judge what the deployed champion answered, and train a successor only if that is advised.",
        list(CHOICES),
        MONITORED,
        retraining_graph,
        {"monitoring": "monitor/page"},
    ),
    "knowledge": Variant(
        "mdpr-knowledge",
        "Gather and audit the sentences about every class, in shards of the classes that run side by side.",
        KNOWLEDGE_CHOICES,
        {"shards": Parameter(4, "Shares of the classes, each a task of its own; at most one per class.")},
        knowledge_graph,
        {"knowledge": "merge/knowledge/knowledge.json"},
        lambda texts, values: params_per_shard(texts["describe"], values["shards"]),
    ),
    "sweep": Variant(
        "mdpr-sweep",
        "Tune under several settings at once, choose by validation, score and register only the best.",
        list(CHOICES),
        {
            "settings": Parameter(
                ["tune: {seed: 0}", "tune: {seed: 1}", "tune: {seed: 2}"],
                "The settings that are tuned, one entry per model: YAML text with keys of tune, over everything else.",
            )
        },
        sweep_graph,
        {"choice": "select/choice", **RELEASED},
        lambda texts, values: params_per_setting(texts["tune"], values["settings"]),
    ),
}
