"""Parameters: params.yaml, parsed once into frozen models. One section a stage, and the sections stages share.

Errors name the key, the value and what was allowed:

    tune.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, ldam, focal, class_balanced
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mdpr.errors import ConfigError

# The paper's five visual-semantic dimensions, in the order in which every (C, V, ...) tensor holds them.
DIMENSIONS = (
    "general_appearance",
    "fine_grained_appearance",
    "functionality",
    "contextual_information",
    "differential_features",
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml. Frozen; an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneParams(Section):
    """The frozen CLIP model, the same for probe, encode, tune and evaluate."""

    architecture: str = Field(
        "ViT-B-16-quickgelu", description="open_clip model name, or the path of a model configuration (.json)"
    )
    weights: str = Field("openai", description="open_clip pretrained tag, or the path of a weights file")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")


class TrackingParams(Section):
    """Where MLflow files things. The server itself comes from MLFLOW_TRACKING_URI (default: sqlite:///mlflow.db)."""

    experiment: str = Field("mdpr", min_length=1, description="MLflow experiment")
    model_name: str = Field("mdpr", min_length=1, description="name in the MLflow model registry")


class PrepareParams(Section):
    """Source and long-tail protocol."""

    source: Literal["embedded", "parquet", "folder", "csv"] = Field(
        "embedded",
        description="embedded: the shipped Fashion-MNIST pool; parquet: pool.parquet and test.parquet with "
        "classes.json; folder: train/ and test/ (val/ if you have one), one folder a class; csv: images.csv "
        "with the columns path, label, split",
    )
    root: str = Field("data/embedded/fashion-mnist", description="folder of the source")
    profile: Literal["exponential", "natural"] = Field(
        "exponential",
        description="exponential: cut n_c = n_max * (1/IR)^(c/(C-1)); natural: take all there is",
    )
    imbalance_ratio: float = Field(100, ge=1, description="largest over smallest class (exponential)")
    max_images_per_class: int = Field(1000, ge=1, description="n_max, images of the largest class (exponential)")
    val_images_per_class: int = Field(
        200, ge=1, description="size of the balanced validation set; taken from what the cut leaves over"
    )
    many_above: int = Field(100, ge=1, description="many-shot: more training images than this")
    few_below: int = Field(20, ge=1, description="few-shot: fewer training images than this; medium lies between")
    seed: int = Field(0, ge=0, description="seed of the cut")

    @model_validator(mode="after")
    def _groups_do_not_overlap(self) -> PrepareParams:
        if self.few_below > self.many_above:
            raise ValueError(f"few_below = {self.few_below} must not exceed many_above = {self.many_above}")
        return self


class ValidateParams(Section):
    """What a usable data set looks like (Great Expectations)."""

    min_side_px: int = Field(16, ge=1, description="shortest side an image may have")
    max_side_px: int = Field(8192, ge=1, description="longest side an image may have")
    profile_tolerance: Fraction = Field(
        0.02, description="how far the real imbalance ratio may lie from the declared one, as a fraction"
    )


class ProbeParams(Section):
    """Zero-shot reading of the frozen model on the training images."""

    templates: tuple[Annotated[str, Field(pattern=r"\{\}")], ...] = Field(
        ("a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.", "a cropped photo of a {}."),
        min_length=1,
        description="zero-shot texts; {} stands for the class name, features are averaged over the texts",
    )
    batch_size: Count = Field(256, description="images a batch")
    prior_shrinkage: NonNegative = Field(
        0.05, description="pull of the estimated hidden prior towards uniform; steadies classes of few images"
    )


class DescribeParams(Section):
    """Where the five sentences a class come from."""

    provider: Literal["curated"] = Field("curated", description="curated: read and check a finished knowledge base")
    path: str = Field("data/embedded/knowledge/fashion-mnist.json", description="the finished knowledge base (curated)")


class EncodeParams(Section):
    """From sentences to features."""

    batch_size: Count = Field(256, description="sentences a batch")
    normalize: bool = Field(
        True,
        description="unit-length sentence features for the router; the published code leaves them as they are",
    )


class LossParams(Section):
    """Weights of the four loss terms. The two published settings are the presets `paper` and `command_line`."""

    base: NonNegative = Field(1.0, description="w_base, on the base branch")
    semantic: NonNegative = Field(0.1, description="w_sem, on the routed branch (logit-adjusted cross entropy)")
    prior_alignment: NonNegative = Field(0.05, description="w_pa, routing weights towards the prior M")
    knowledge_alignment: NonNegative = Field(0.1, description="w_ka, routed text towards the class summary m")
    tau: NonNegative = Field(1.0, description="strength of the logit adjustment")


class TuneParams(Section):
    """Prompt tuner, router and optimisation."""

    prompting: Literal["none", "coop", "vpt", "ivlp", "maple"] = Field("maple", description="prompt tuner")
    context_tokens: Count = Field(4, description="n, learned context tokens a layer")
    prompt_depth: Count = Field(3, description="J, layers that get prompts of their own")
    context_init: str = Field("a photo of a", description="words the text context starts from; empty: random")
    routing: bool = Field(True, description="the MDPR branch; false gives the plain prompt tuner")
    router_heads: Count = Field(8, description="H, attention heads of the router")
    router_dropout: float = Field(0.2, ge=0, lt=1, description="dropout on the routing weights while training")
    fusion: Literal["mean", "weighted", "entropy", "gla"] = Field(
        "mean", description="how the branches become one answer; gla adds the debiased zero-shot expert"
    )
    base_loss: Literal["ce", "logit_adjusted", "balanced_softmax", "ldam", "focal", "class_balanced"] = Field(
        "ce", description="loss of the base branch"
    )
    loss: LossParams = Field(
        default_factory=lambda: LossParams.model_validate({}), description="weights of the loss terms"
    )
    epochs: Count = Field(20, description="passes over the training set")
    batch_size: Count = Field(128, description="images a step")
    learning_rate: Positive = Field(1e-3, description="AdamW, start of the cosine")
    min_learning_rate: NonNegative = Field(1e-6, description="end of the cosine")
    weight_decay: NonNegative = Field(1e-4, description="AdamW")
    augment: Literal["none", "flip", "crop_flip"] = Field(
        "flip", description="flip: mirror at random; crop_flip: random resized crop, then flip"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast on a GPU; prompts stay float32")
    select_by: Literal["fused", "routed", "base"] = Field(
        "fused", description="branch whose class-balanced validation accuracy chooses the epoch"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order of images, augmentation and dropout")

    @model_validator(mode="after")
    def _something_learns(self) -> TuneParams:
        if self.prompting == "none" and not self.routing:
            raise ValueError("prompting = none and routing = false leave nothing to learn: choose either")
        return self


class EvaluateParams(Section):
    """The untouched test set."""

    batch_size: Count = Field(256, description="images a batch")
    gallery_images: int = Field(24, ge=0, description="test images shown in the report with their routing weights")


class RegisterParams(Section):
    """What becomes a version in the model registry."""

    alias: str = Field("challenger", min_length=1, description="alias given to the new version")
    pyfunc: str = Field("mlflow/model.py", description="file that serves the model (MLflow: models from code)")


class PromoteParams(Section):
    """The gate: when the champion gives way. Points are percentage points of class-balanced accuracy."""

    policy: str = Field("mlflow/promotion.yaml", description="margins and floors of the gate")


SECTIONS: dict[str, type[Section]] = {
    "backbone": BackboneParams,
    "tracking": TrackingParams,
    "prepare": PrepareParams,
    "validate": ValidateParams,
    "probe": ProbeParams,
    "describe": DescribeParams,
    "encode": EncodeParams,
    "tune": TuneParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
    "promote": PromoteParams,
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; `ConfigError` names the file and the line otherwise."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run from the project folder, or name another file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections (`tune:` and so on), not a {type(content).__name__}")
    return content


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `section.key=value` strings laid over it; values are read as YAML."""
    merged: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(raw)))
    for override in overrides:
        key, separator, text = override.partition("=")
        *parents, leaf = key.strip().split(".")
        if not separator or not parents:
            raise ConfigError(f"override {override!r} must read section.key=value, for example tune.epochs=5")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from None
    return merged


def parse_params(raw: Mapping[str, Any]) -> dict[str, Section]:
    """Every section of `raw` as its frozen model; sections that are not named take their documented defaults."""
    for name in raw:
        if name not in SECTIONS:
            raise ConfigError(f"{name} is not a section of params.yaml{_suggest(str(name), SECTIONS)}")
    return {name: _parse_section(name, model, raw.get(name)) for name, model in SECTIONS.items()}


def load_params(path: Path, overrides: Sequence[str] = ()) -> dict[str, Section]:
    """params.yaml and its overrides as frozen models, one a section; raises `ConfigError`."""
    return parse_params(apply_overrides(read_yaml(path), overrides))


def _parse_section(name: str, model: type[Section], values: Any) -> Section:
    try:
        return model.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ConfigError(_explain(name, model, error)) from None


def _explain(section: str, model: type[Section], error: ValidationError) -> str:
    """The first fault of `error` in one line: key, value, what was allowed."""
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    key = ".".join([section, *path])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        return f"{key} is not a setting{_suggest(path[-1], fields)}{more}"
    if fault["type"] == "literal_error":
        allowed = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{key} = {fault['input']!r}: must be one of {allowed}{more}"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}{more}"
    message = fault["msg"].replace("Input should be", "must be").replace("Input must be", "must be")
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def _suggest(wrong: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
