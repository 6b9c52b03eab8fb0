"""Parameters of probe, describe and encode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mdpr.config.section import Count, NonNegative, Section


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
