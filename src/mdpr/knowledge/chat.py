"""A chat model by name, asked for one sentence at a time (LangChain)."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mdpr.errors import KnowledgeError
from mdpr.knowledge.questions import Question
from mdpr.knowledge.schema import Answer, Schema
from mdpr.knowledge.store import Usage
from mdpr.params import LlmParams

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.rate_limiters import BaseRateLimiter

CLIENT_SLACK_S = 5.0  # the client's own limit comes later than ours, whose error is the same for every vendor
NO_KEY = "none"  # what a server without keys is given; clients refuse an empty one


@dataclass(frozen=True)
class Vendor:
    """What differs between the vendors' LangChain packages."""

    package: str
    extra: str  # of this project's installation
    key_env: str
    errors: tuple[tuple[str, str], ...]  # modules and classes of which all errors of a call are
    takes_seed: bool


VENDORS = {
    "openai": Vendor("langchain_openai", "llm", "OPENAI_API_KEY", (("openai", "OpenAIError"),), True),
    "anthropic": Vendor(
        "langchain_anthropic", "anthropic", "ANTHROPIC_API_KEY", (("anthropic", "AnthropicError"),), False
    ),
    "google_genai": Vendor(
        "langchain_google_genai",
        "google",
        "GOOGLE_API_KEY",
        (("google.genai.errors", "APIError"), ("langchain_google_genai.chat_models", "ChatGoogleGenerativeAIError")),
        False,
    ),
}


class Unusable(Exception):
    """The model answered, but not with one sentence in the form that was asked for. Asking again changes nothing."""


def find_key(llm: LlmParams, environment: Mapping[str, str]) -> str:
    """The API key, from the environment alone.

    Raises `KnowledgeError` where there is none, unless `base_url` names a server, which may need none.
    """
    name = llm.api_key_env or VENDORS[llm.vendor].key_env
    key = environment.get(name, "")
    if key:
        return key
    if llm.base_url and not llm.api_key_env:
        return NO_KEY
    raise KnowledgeError(f"the environment variable {name} is not set: put the API key of {llm.vendor} there")


def require_package(llm: LlmParams) -> None:
    """Raises `KnowledgeError` where LangChain's package for the vendor is not installed."""
    vendor = VENDORS[llm.vendor]
    if not (importlib.util.find_spec("langchain") and importlib.util.find_spec(vendor.package)):
        raise KnowledgeError(f"describe.llm.vendor = {llm.vendor}: pip install 'mdpr[llm,{vendor.extra}]'")


def vendor_errors(llm: LlmParams) -> tuple[type[Exception], ...]:
    return tuple(getattr(importlib.import_module(module), name) for module, name in VENDORS[llm.vendor].errors)


class Chat:
    """One chat model with the five schemas bound to it, so that a call prepares nothing but its text."""

    def __init__(self, model: BaseChatModel, llm: LlmParams, schemas: Mapping[str, Schema]) -> None:
        self._bound = {dimension: _bind_form(model, llm, schema) for dimension, schema in schemas.items()}
        self._timeout_s = llm.timeout_s

    async def ask(self, question: Question) -> tuple[str, Usage | None]:
        """The sentence, and the tokens it took where the server tells.

        Raises `Unusable`, `TimeoutError` or the vendor's error.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._bound[question.dimension].ainvoke(
                    [("system", question.system), ("user", question.user)]
                )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # What LangChain's readers raise for a body of another kind: HTML, no JSON, JSON of another form.
            raise Unusable(f"the server did not send a chat completion ({str(error)[:80]})") from None
        tokens = message.usage_metadata
        return read_answer(message), Usage(tokens["input_tokens"], tokens["output_tokens"]) if tokens else None


@asynccontextmanager
async def open_chat(
    llm: LlmParams, key: str, schemas: Mapping[str, Schema], limiter: BaseRateLimiter | None
) -> AsyncIterator[Chat]:
    """The chat model of `llm`. It repeats nothing by itself."""
    from langchain.chat_models import init_chat_model

    options: dict[str, Any] = {
        "max_tokens": llm.max_tokens,
        "timeout": llm.timeout_s + CLIENT_SLACK_S,
        "max_retries": 0,
        "api_key": key,
        "rate_limiter": limiter,
    }
    if llm.temperature is not None:
        options["temperature"] = llm.temperature
    if VENDORS[llm.vendor].takes_seed and llm.seed is not None:
        options["seed"] = llm.seed
    if llm.base_url:
        options["base_url"] = llm.base_url
    if llm.vendor != "openai":
        yield Chat(init_chat_model(llm.model, model_provider=llm.vendor, **options), llm, schemas)
        return
    import openai

    # aiohttp takes a third of the processor time of openai's default transport at 64 calls at once.
    async with openai.DefaultAioHttpClient() as client:
        model = init_chat_model(llm.model, model_provider=llm.vendor, http_async_client=client, **options)
        yield Chat(model, llm, schemas)


def read_answer(message: AIMessage) -> str:
    """The sentence in a message: the arguments of the one tool that was called, or JSON content.

    Raises `Unusable` with the reason.
    """
    try:
        if message.tool_calls:
            return Answer.model_validate(message.tool_calls[0]["args"]).sentence
        if message.invalid_tool_calls:
            raise Unusable("the answer is not valid JSON")
        content = message.text
        if not content.strip():
            raise Unusable("the answer is empty")
        return Answer.model_validate(json.loads(content)).sentence
    except json.JSONDecodeError:
        raise Unusable("the answer is not valid JSON") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "answer"
        raise Unusable(f"the answer has another form ({where}: {fault['msg']})") from None


def _bind_form(model: BaseChatModel, llm: LlmParams, schema: Schema) -> Any:
    """The model with the form of its answer."""
    if llm.vendor != "openai":
        return model.bind_tools([dict(schema)], tool_choice=schema["title"])
    # openai's client walks through its own arguments for every call, a quarter of the call's processor time here; what
    # is in extra_body it sends as it is.
    return model.bind(extra_body=OPENAI_FORMS[llm.structured_output](schema))


def _as_tool(schema: Schema) -> dict[str, Any]:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    choice = {"type": "function", "function": {"name": schema["title"]}}
    return {"tools": [convert_to_openai_tool(dict(schema))], "tool_choice": choice}


def _as_response_format(schema: Schema) -> dict[str, Any]:
    form = {"name": schema["title"], "schema": dict(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


OPENAI_FORMS = {"function_calling": _as_tool, "json_schema": _as_response_format}
