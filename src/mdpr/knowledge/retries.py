"""When a call is worth repeating, and after how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from tenacity.asyncio import AsyncRetrying

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0


def retrying(max_retries: int) -> AsyncRetrying:
    """Repeats after 429, 5xx and time-outs only, at most `max_retries` times; the last error comes out as it is."""
    return AsyncRetrying(
        stop=stop_after_attempt(max_retries + 1),
        wait=_pause(wait_exponential_jitter(initial=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=FIRST_PAUSE_S)),
        retry=retry_if_exception(is_transient),
        reraise=True,
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server was busy, faulty or slow."""
    status = status_of(error)
    return is_timeout(error) or status == 429 or (status is not None and 500 <= status <= 599)


def is_timeout(error: BaseException) -> bool:
    """Our own limit, or the client's, whose classes have no common parent but the last word of their name."""
    return type(error).__name__.endswith("TimeoutError")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the server answered with; vendors' errors hold it as `status_code` or `code`."""
    for source in _sources(error):
        for name in ("status_code", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int):
                return status
    return None


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3): a number, or a date. None without one."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max(0.0, (date - now).total_seconds()), LONGEST_RETRY_AFTER_S)


def _pause(otherwise: Callable[[RetryCallState], float]) -> Callable[[RetryCallState], float]:
    """What the server asked for, else growing pauses."""

    def pause_s(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = retry_after_s(_headers_of(error), datetime.now(UTC))
        return otherwise(state) if asked_s is None else asked_s

    return pause_s


def _headers_of(error: BaseException | None) -> Mapping[str, str]:
    """The headers of the server's answer; empty where there was none."""
    for source in _sources(error):
        headers = getattr(getattr(source, "response", None), "headers", None)
        if isinstance(headers, Mapping):
            return headers
    return {}


def _sources(error: BaseException | None) -> list[BaseException]:
    """The error, and the vendor's own where LangChain's package wrapped it in one of its own classes."""
    return [source for source in (error, getattr(error, "__cause__", None)) if source is not None]
