"""Parameters of evaluate, register and promote, and where MLflow files things."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from mdpr.params.section import Count, CountOrZero, InputPath, Percent, Section, offered

MAX_TOP_K = 100  # classes named per picture, by every way to use a tuned model

Ablation = Literal[
    "without_general_appearance",
    "without_fine_grained_appearance",
    "without_functionality",
    "without_contextual_information",
    "without_differential_features",
    "uniform_routing",
    "prior_only",
    "shuffled_sentences",
    "names_only",
    "without_most_weighted",
    "without_least_weighted",
]


class EvaluateParams(Section):
    """The untouched test set."""

    batch_size: Count = Field(256, description="images per batch")
    gallery_images: CountOrZero = Field(24, description="test images shown in the report with their routing weights")
    ablations: bool | tuple[Ablation, ...] = Field(
        True, description="routing taken apart without training again: all of it, or a list of what to do"
    )
    test_time: Literal["none", "flip", "five_crop", "five_crop_flip", "lift"] = Field(
        "none",
        description="an ensemble over views of each test image, as a row of its own; costs 1, 5, 10, 5 passes. lift: "
        "averaged logits of five crops at 248 / 224, the others average probabilities",
    )
    post_hoc: bool = Field(
        True,
        description="logit adjustment and fusion weight, chosen on validation, as rows of their own; tune.post_hoc and "
        "tune.fusion apply them",
    )


class RegisterParams(Section):
    """The version in the model registry."""

    alias: str = Field("challenger", max_length=255, description="alias given to the new version")
    pyfunc: InputPath = Field("mlflow/model.py", description="file that serves the model (MLflow: models from code)")
    in_experiments: bool = Field(False, description="register and judge the models of DVC experiments, too")

    @field_validator("alias")
    @classmethod
    def _is_an_alias_of_its_own(cls, name: str) -> str:
        if not re.fullmatch(r"[\w-]+", name, re.ASCII) or re.fullmatch(r"[vV]\d+", name):
            raise ValueError(f"{name!r} must be letters, digits, - and _, and not v and a number")
        if name.lower() in ("champion", "previous", "latest"):
            raise ValueError(f"{name!r} is given by promote or by MLflow itself: choose another alias")
        return name


class PromoteParams(Section):
    """The gate: when the champion gives way. Points are percentage points of class-balanced accuracy."""

    policy: InputPath = Field("mlflow/promotion.yaml", description="margins and floors of the gate")
    margin_points: Percent = Field(
        0.0,
        description="points over all classes by which a model must beat the champion, beyond the policy's own margin",
        json_schema_extra=offered(),
    )


class TrackingParams(Section):
    """Where MLflow files things. The server itself comes from MLFLOW_TRACKING_URI (default: sqlite:///mlflow.db)."""

    experiment: str = Field(
        "mdpr", min_length=1, max_length=255, description="MLflow experiment", json_schema_extra=offered()
    )
    model_name: str = Field(
        "mdpr",
        max_length=255,
        description="name in the MLflow model registry, without / and :",
        json_schema_extra=offered(),
    )
    outbox: str = Field("mlflow.outbox", min_length=1, description="folder for what MLflow does not have yet")
    system_metrics: bool = Field(True, description="log the load of CPU, memory, disk, network and GPUs every epoch")

    @field_validator("model_name")
    @classmethod
    def _is_a_name_of_mlflow(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .-]*", name):  # of what MLflow takes: no quote either, names stand in its queries
            raise ValueError(f"{name!r} must be letters, digits, spaces and . - _, no / and no :")
        return name
