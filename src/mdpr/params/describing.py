"""Parameters of probe, describe and encode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mdpr.params.section import Count, CountOrZero, InputPath, NonNegative, Section, Seed, offered


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


class LlmParams(Section):
    """The chat model that writes the sentences, and how hard it may be asked. A key is never a setting: api_key_env."""

    vendor: Literal["openai", "anthropic", "google_genai"] = Field(
        "openai",
        description="protocol of the server (LangChain's model_provider); openai serves everything that is compatible "
        "with it: vLLM, Ollama, llama.cpp, DashScope (then base_url names the server)",
        json_schema_extra=offered("llm_vendor"),
    )
    model: str = Field(
        "",
        description="model name, as the server calls it",
        json_schema_extra=offered("llm_model", "The chat model; its key is in the Kubernetes secret mdpr-llm"),
    )
    base_url: str = Field(
        "",
        pattern=r"^(https?://[^@?]+)?$",
        description="address of the server; empty: the vendor's own",
        json_schema_extra=offered("llm_base_url"),
    )
    api_key_env: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_]*$",
        description="environment variable that holds the key; empty: the vendor's usual one",
    )
    structured_output: Literal["function_calling", "json_schema"] = Field(
        "function_calling",
        description="how the schema reaches the model; json_schema for servers that constrain decoding (openai only)",
    )
    temperature: float | None = Field(
        0.2, ge=0, le=2, description="sampling temperature; null: not sent, for models that refuse it"
    )
    seed: Seed | None = Field(0, description="sampling seed, where the vendor takes one; null: not sent")
    max_tokens: Count = Field(200, description="tokens an answer may have")
    timeout_s: float = Field(60, gt=0, le=86_400, description="seconds to wait for an answer")
    max_retries: int = Field(5, ge=0, le=100, description="repeats after 429, 5xx or a time-out, with growing pauses")
    concurrency: int = Field(8, ge=1, le=1024, description="calls under way at once")
    requests_per_minute: CountOrZero = Field(0, description="limit over all calls; 0: none")
    tokens_per_minute: int = Field(0, ge=0, le=10**12, description="limit over prompts and answers; 0: none")
    input_usd_per_million: NonNegative = Field(0.0, description="price of a million prompt tokens, for the estimate")
    output_usd_per_million: NonNegative = Field(0.0, description="price of a million answer tokens, for the estimate")
    store: str = Field(
        "data/answers.sqlite",
        min_length=1,
        description="file that keeps every accepted answer, whatever happens to the run",
    )

    @model_validator(mode="after")
    def _constrained_decoding_is_openai(self) -> LlmParams:
        if self.structured_output == "json_schema" and self.vendor != "openai":
            raise ValueError(f"structured_output = json_schema needs vendor = openai, not {self.vendor}")
        return self


class DescribeParams(Section):
    """Where the five sentences a class come from."""

    provider: Literal["curated", "completed", "llm", "local"] = Field(
        "curated",
        description="curated: read and check a finished knowledge base; completed: the same, and ask the chat model of "
        "describe.llm for what is not in it (gaps, contrasts with other rivals); llm: ask the chat model for all; "
        "local: ask a small model that runs in this process, without network or key (its text is poor)",
        json_schema_extra=offered(),
    )
    path: InputPath = Field(
        "data/embedded/knowledge/fashion-mnist.json", description="the finished knowledge base (curated, completed)"
    )
    strict: bool = Field(
        True, description="errors of the audit end the run; false: they are only reported (warnings never end it)"
    )
    repair: bool = Field(
        False, description="ask once more, with the reason, for each sentence in which the audit finds an error"
    )
    shard: str = Field(
        "",
        pattern=r"^([1-9]\d*/[1-9]\d*)?$",
        description="share of the classes to describe, as 1/4; `mdpr knowledge merge` puts shares together; empty: all",
    )
    budget_usd: NonNegative = Field(0.0, description="stop before a run costs more than this; 0: no limit")
    llm: LlmParams = Field(default_factory=LlmParams, description="the chat model")

    @property
    def asks_server(self) -> bool:
        """Whether the chat model of `llm` is asked, which may need a key."""
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

    batch_size: Count = Field(256, description="sentences a batch")
    normalize: bool = Field(
        True,
        description="unit-length sentence features for the router; the published code leaves them as they are",
    )
