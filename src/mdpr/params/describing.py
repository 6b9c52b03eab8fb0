"""Parameters of probe, describe and encode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mdpr.params.section import Count, CountOrZero, InputPath, NonNegative, Section, Seed, offered

PREPARED = "data/prepared"
"""In dvc.yaml a dependency of describe anyway: as describe.path it adds nothing for DVC to watch."""


class ProbeParams(Section):
    """Zero-shot answers of the frozen model to the training images."""

    templates: tuple[Annotated[str, Field(pattern=r"\{\}")], ...] = Field(
        ("a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.", "a cropped photo of a {}."),
        min_length=1,
        description="zero-shot texts; {} stands for the class name, features are averaged over the texts",
    )
    batch_size: Count = Field(256, description="images per batch")
    prior_shrinkage: NonNegative | None = Field(
        0.05,
        description="pull of the estimated hidden prior towards uniform; steadies classes of few images. Empty: chosen "
        "on held-out training images, so that it fades with their number",
    )


class LlmParams(Section):
    """The chat model that writes the sentences, and the limits of its use. The key is never a setting."""

    vendor: str = Field(
        "openai",
        pattern=r"^[a-z0-9_]+$",
        description="a model_provider of LangChain's init_chat_model, such as anthropic, google_genai, azure_openai or "
        "bedrock_converse; openai also for other servers with its protocol (vLLM, Ollama, llama.cpp) at base_url",
        json_schema_extra=offered("llm_vendor"),
    )
    model: str = Field(
        "",
        description="the server's name of the model",
        json_schema_extra=offered("llm_model", "The chat model; its key is in the Kubernetes secret mdpr-llm"),
    )
    base_url: str = Field(
        "",
        pattern=r"^(https?://[^@?]+)?$",
        description="address of the server; empty: the vendor's own address",
        json_schema_extra=offered("llm_base_url"),
    )
    api_key_env: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_]*$",
        description="environment variable with the key; empty: the vendor's usual one",
    )
    structured_output: Literal["function_calling", "json_schema"] = Field(
        "function_calling",
        description="how the schema reaches the model; json_schema for servers that constrain decoding",
    )
    temperature: float | None = Field(
        0.2, ge=0, le=2, description="sampling temperature; null: not sent, for models that do not accept it"
    )
    seed: Seed | None = Field(0, description="sampling seed, sent if the vendor accepts one; null: not sent")
    max_tokens: Count = Field(200, description="most tokens per answer, thinking included")
    timeout_s: float = Field(60, gt=0, le=86_400, description="seconds to wait for a whole answer")
    max_retries: int = Field(
        5,
        ge=0,
        le=100,
        description="repeats after 408, 409, 425, 429, 5xx, a time-out or a broken connection",
    )
    concurrency: int = Field(8, ge=1, le=1024, description="calls at the same time")
    requests_per_minute: CountOrZero = Field(0, description="limit for all calls together; 0: none")
    tokens_per_minute: int = Field(0, ge=0, le=10**12, description="limit for prompts and answers together; 0: none")
    input_usd_per_million: NonNegative = Field(0.0, description="US dollars per million prompt tokens")
    output_usd_per_million: NonNegative = Field(0.0, description="US dollars per million answer tokens")
    store: str = Field(
        "data/answers.sqlite",
        min_length=1,
        description="file that keeps every accepted answer, also of a run that fails",
    )


class DescribeParams(Section):
    """The source of the five sentences per class."""

    provider: Literal["curated", "completed", "llm", "local"] = Field(
        "curated",
        description="curated: read and check a finished knowledge base; completed: the same, and the chat model of "
        "describe.llm writes what is missing (gaps, contrasts with other rivals); llm: the chat model writes all; "
        "local: a small model in this process writes all, without network or key (its text is poor)",
        json_schema_extra=offered(),
    )
    path: InputPath = Field(
        "data/embedded/knowledge/fashion-mnist.json",
        description="the finished knowledge base (curated, completed); llm and local read none: then "
        f"{PREPARED}, since DVC watches what it names",
    )
    strict: bool = Field(
        True, description="errors of the audit end the run; false: they are only reported, as warnings always are"
    )
    repair: bool = Field(
        False, description="ask once more, with the reason, for each sentence with an error of the audit"
    )
    shard: str = Field(
        "",
        pattern=r"^([1-9]\d*/[1-9]\d*)?$",
        description="part of the classes to describe, like 1/4 (`mdpr knowledge merge` joins the parts); empty: all",
    )
    budget_usd: NonNegative = Field(0.0, description="stop before a run costs more; 0: no limit")
    llm: LlmParams = Field(default_factory=LlmParams, description="the chat model")

    @property
    def reads_file(self) -> bool:
        """Whether the knowledge base of `path` is read."""
        return self.provider in ("curated", "completed")

    @property
    def asks_server(self) -> bool:
        """Whether the chat model of `llm` is used, which may need a key."""
        return self.provider in ("completed", "llm")

    @model_validator(mode="after")
    def _settings_fit_the_provider(self) -> DescribeParams:
        if self.asks_server and not self.llm.model:
            raise ValueError(f"provider = {self.provider} needs a model: set describe.llm.model")
        if self.provider == "curated" and self.repair:
            raise ValueError("repair = true needs a chat model: set provider = completed, llm or local")
        number, _, count = self.shard.partition("/")
        if self.shard and int(number) > int(count):
            raise ValueError(f"shard = {self.shard} must lie between 1/{count} and {count}/{count}")
        if self.budget_usd and not (self.llm.input_usd_per_million and self.llm.output_usd_per_million):
            raise ValueError(
                "budget_usd needs the prices: set describe.llm.input_usd_per_million and output_usd_per_million"
            )
        return self


class EncodeParams(Section):
    """From sentences to features."""

    batch_size: Count = Field(256, description="sentences per batch")
    normalize: bool = Field(
        True,
        description="unit-length sentence features for the router; the published code leaves them as they are",
    )
