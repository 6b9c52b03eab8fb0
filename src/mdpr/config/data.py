"""Parameters of prepare and validate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mdpr.config.section import Fraction, Section


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
