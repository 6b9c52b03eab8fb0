"""Parameters of evaluate, register and promote, and where MLflow files things."""

from __future__ import annotations

from pydantic import Field

from mdpr.config.section import Count, Section


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


class TrackingParams(Section):
    """Where MLflow files things. The server itself comes from MLFLOW_TRACKING_URI (default: sqlite:///mlflow.db)."""

    experiment: str = Field("mdpr", min_length=1, description="MLflow experiment")
    model_name: str = Field("mdpr", min_length=1, description="name in the MLflow model registry")
