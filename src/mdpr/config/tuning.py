"""The frozen backbone, and parameters of tune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mdpr.config.section import Count, NonNegative, Positive, Section


class BackboneParams(Section):
    """The frozen CLIP model, the same for probe, encode, tune and evaluate."""

    architecture: str = Field(
        "ViT-B-16-quickgelu", description="open_clip model name, or the path of a model configuration (.json)"
    )
    weights: str = Field("openai", description="open_clip pretrained tag, or the path of a weights file")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")


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
