"""The frozen backbone, and parameters of tune."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mdpr.params.section import Count, InputPath, NonNegative, Positive, Section, Seed, offered


class BackboneParams(Section):
    """The frozen CLIP model, the same for probe, encode, tune and evaluate."""

    architecture: str = Field(
        "ViT-B-16-quickgelu",
        description="open_clip model name, or the path of a model configuration (.json)",
        json_schema_extra=offered(),
    )
    weights: InputPath = Field(
        "openai", description="open_clip pretrained tag, or the path of a weights file", json_schema_extra=offered()
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")


class LossParams(Section):
    """Weights of the four loss terms. Instead of the group, `tune.loss` takes the name of one of `LOSS_PRESETS`."""

    base: NonNegative = Field(1.0, description="w_base, on the base branch")
    semantic: NonNegative = Field(1.0, description="w_sem, on the routed branch (logit-adjusted cross entropy)")
    prior_alignment: NonNegative = Field(0.0, description="w_pa, routing weights towards the prior M")
    knowledge_alignment: NonNegative = Field(0.0, description="w_ka, routed text towards the class summary m")
    ramp: bool = Field(False, description="weights of the routed branch's terms grow from epoch to epoch, as published")
    tau: NonNegative = Field(1.0, description="strength of the logit adjustment")


# The two published settings: the paper's text, and what the command line of its code passes. The defaults are those of
# the paired gate: its routing depends on the picture, so nothing pulls it towards the prior M.
LOSS_PRESETS: dict[str, dict[str, float]] = {
    "paper": {"semantic": 0.1, "prior_alignment": 0.05, "knowledge_alignment": 0.1, "ramp": True},
    "command_line": {"semantic": 0.1, "prior_alignment": 0.0, "knowledge_alignment": 0.0, "ramp": True},
}

# The published method: router, fusion and losses.
PUBLISHED_METHOD: dict[str, Any] = {
    "router": "attention",
    "router_temperature": 1.0,
    "router_init": "random",
    "fusion": "mean",
    "base_loss": "ce",
    "loss": "paper",
}
# `tune.preset = published`: with the ways of the published code too.
PUBLISHED: dict[str, Any] = PUBLISHED_METHOD | {
    "context_init": "",
    "init": "published",
    "logit_scale": "trained",
    "schedule": "epoch",
    "warmup_epochs": 0.0,
}


class TuneParams(Section):
    """Prompt tuner, router and optimisation."""

    preset: Literal["none", "published"] = Field(
        "none",
        description="published: router, fusion, losses, initial weights, scale and schedule as in the published code; "
        "another value for one of these keys is an error",
    )
    prompting: Literal["none", "coop", "vpt", "ivlp", "maple", "adaptformer", "lora", "ssf", "bitfit"] = Field(
        "maple",
        description="tuner: prompts in the towers, or adapters in the image tower",
        json_schema_extra=offered(
            text="Tuner: none, coop, vpt, ivlp, maple (prompts); adaptformer, lora, ssf or bitfit (adapters)"
        ),
    )
    adapter_width: Count | None = Field(
        None, description="width of adaptformer, rank of lora; empty: 2^floor(log2(classes / (2 layers))), as in LIFT"
    )
    head: Literal["text", "cosine"] = Field(
        "text",
        description="classes of the base branch: text features of the names, or learned vectors without a text tower",
    )
    head_init: Literal["names", "sentences", "class_mean"] = Field(
        "names",
        description="start of head = cosine: text features of the names, mean of the five sentences, or mean of the "
        "class's training images",
    )
    head_scale: Positive | None = Field(
        None, description="what the cosines of head = cosine are multiplied by; empty: CLIP's own scale"
    )
    context_tokens: Count = Field(4, description="n, learned context tokens per layer")
    prompt_depth: Count = Field(3, description="J, layers that get prompts of their own")
    context_init: str = Field("a photo of a", description="words the text context starts from; empty: random")
    context_scope: Literal["shared", "class"] = Field(
        "shared", description="text context of all classes together, or one of its own for each (coop and ivlp)"
    )
    init: Literal["default", "published"] = Field(
        "default",
        description="of tokens and linear maps; published: deep tokens of std 0.01, maps N(0, 0.02) without bias",
    )
    logit_scale: Literal["frozen", "trained"] = Field(
        "frozen", description="of base and routed logits; trained: at most 100, as published"
    )
    routing: bool = Field(
        True, description="the MDPR branch; false gives the plain prompt tuner", json_schema_extra=offered()
    )
    router: Literal["attention", "paired_gate"] = Field(
        "paired_gate",
        description="attention: the published router; paired_gate: a gate per image and sentence over CLIP's logits",
    )
    router_heads: Count = Field(8, description="H, heads of the attention router")
    router_dropout: float = Field(0.2, ge=0, lt=1, description="dropout on the attention weights while training")
    router_temperature: Positive = Field(
        1.0, description="of the attention's softmax; 1: published, 0.01: weights that depend on the picture"
    )
    router_init: Literal["random", "identity"] = Field(
        "random", description="of the attention; identity: routed text starts as the mean of the class's sentences"
    )
    fusion: Literal["mean", "validated", "weighted", "entropy", "gla"] = Field(
        "validated",
        description="how the branches become one answer; validated: their weight is chosen on validation; "
        "gla adds the debiased zero-shot expert",
    )
    post_hoc: Literal["none", "validated"] = Field(
        "none",
        description="validated: every answer is adjusted by tau log(share of the training images), tau chosen on "
        "validation after training",
    )
    base_loss: Literal["ce", "logit_adjusted", "balanced_softmax", "ldam", "focal", "class_balanced"] = Field(
        "logit_adjusted",
        description="loss of the base branch",
        json_schema_extra=offered(
            text="Loss of the base branch: ce, logit_adjusted, balanced_softmax, ldam, focal or class_balanced"
        ),
    )
    loss: LossParams = Field(
        default_factory=LossParams,
        description="weights of the loss terms: this group, or a published setting by name, paper or command_line",
    )
    epochs: Count = Field(20, description="passes over the training set", json_schema_extra=offered())
    batch_size: Count = Field(
        128, description="images of an optimiser step, over all processes", json_schema_extra=offered()
    )
    micro_batch_size: Count | None = Field(
        None,
        description="images that go through the model at once, gradients summed up to batch_size; empty: all",
    )
    sampling: Literal["instance", "class_balanced"] = Field(
        "instance", description="instance: every image once an epoch; class_balanced: every class equally often"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with momentum 0.9, as in LIFT")
    learning_rate: Positive = Field(1e-3, description="start of the cosine", json_schema_extra=offered())
    warmup_epochs: NonNegative = Field(
        0, description="epochs over which the learning rate rises to its start, step by step"
    )
    schedule: Literal["step", "epoch"] = Field(
        "step", description="when the learning rate moves along its curve: every step, or every epoch as published"
    )
    min_learning_rate: NonNegative = Field(1e-6, description="end of the cosine")
    weight_decay: NonNegative = Field(1e-4, description="of the optimizer")
    augment: Literal["none", "flip", "crop_flip", "wide_crop_flip", "pad_crop_flip"] = Field(
        "flip",
        description="flip: mirror at random; crop_flip: random resized crop of half the area or more, then flip; "
        "wide_crop_flip: of 0.08 of the area or more; pad_crop_flip: shifted by up to 4 pixels, then flip",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="autocast of the towers; learned weights, logits and losses stay float32; fp16: on a GPU only",
    )
    checkpoint_blocks: bool = Field(
        False, description="keep no activations of the towers' blocks, compute them again: less memory, more time"
    )
    compile: bool = Field(
        False,
        description="torch.compile the towers: minutes before the first step, less for each (needs a C++ compiler)",
    )
    select_by: Literal["fused", "routed", "base"] = Field(
        "fused", description="branch whose class-balanced validation accuracy chooses the epoch"
    )
    early_stopping_patience: Count | None = Field(
        None, description="stop after this many epochs without a better one on validation; empty: never"
    )
    checkpoint_every_steps: Count | None = Field(
        200, description="save what a killed run needs to go on; always at the end of an epoch; empty: only then"
    )
    workers: int = Field(0, ge=0, le=1024, description="processes that decode images; 0: the one that trains")
    seed: Seed = Field(
        0,
        description="seed of initial weights, order of images, augmentation and dropout",
        json_schema_extra=offered(
            text="Seed of initial weights, order of images, augmentation and dropout; the cut has prepare.seed"
        ),
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in LOSS_PRESETS:
            raise ValueError(f"{value!r} is no preset: there are {', '.join(LOSS_PRESETS)}, or give the group's keys")
        return LOSS_PRESETS[value]

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        return PUBLISHED | data if isinstance(data, dict) and data.get("preset") == "published" else data

    @model_validator(mode="after")
    def _preset_holds(self) -> TuneParams:
        if self.preset == "published":
            for key, value in PUBLISHED.items():
                expected = LossParams(**LOSS_PRESETS[value]) if key == "loss" else value
                actual = getattr(self, key)
                if actual != expected:
                    shown = "another group" if key == "loss" else repr(actual)
                    raise ValueError(
                        f"preset = published sets {key} = {value!r}, here it is {shown}: remove one of them, or "
                        "write all with `mdpr recipe use NAME --variant published`"
                    )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> TuneParams:
        if self.prompting == "none" and self.head == "text" and not self.routing:
            raise ValueError(
                "prompting = none, head = text and routing = false leave nothing to learn: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _head_fits(self) -> TuneParams:
        if self.head == "cosine" and self.prompting in ("coop", "ivlp"):
            raise ValueError(
                f"prompting = {self.prompting} learns words, head = cosine reads none: use head = text, or a tuner of "
                "the image tower"
            )
        if self.head == "text" and (self.head_init != "names" or self.head_scale is not None):
            key, value = ("head_init", self.head_init) if self.head_init != "names" else ("head_scale", self.head_scale)
            raise ValueError(f"{key} = {value} needs head = cosine, it is text")
        return self

    @model_validator(mode="after")
    def _context_has_a_class(self) -> TuneParams:
        if self.context_scope == "class" and self.prompting not in ("coop", "ivlp"):
            raise ValueError(
                f"context_scope = class needs prompting = coop or ivlp, not {self.prompting}: only there does nothing "
                "but the text of the class depend on its context"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> TuneParams:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}: lower it"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs:g} leaves nothing of epochs = {self.epochs}: lower it"
            )
        return self
