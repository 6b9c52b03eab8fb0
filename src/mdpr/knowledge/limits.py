"""A limit on tokens a minute. (Requests a minute are limited by LangChain's own InMemoryRateLimiter.)"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

BURST_S = 1.0  # seconds of the limit that may be used at once


class TokenBucket:
    """Fills at `per_minute` tokens; who takes more than is there waits until the debt is paid. 0 is no limit.

    `clock` counts seconds, `sleep` waits for them: a test brings its own.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_second = per_minute / 60
        self._clock = clock
        self._sleep = sleep
        self._level = self._per_second * BURST_S
        self._last_s = clock()

    async def take(self, tokens: float) -> None:
        """Wait until `tokens` more are within the limit. Waiters are served in the order in which they came."""
        if not self._per_second:
            return
        now = self._clock()
        full = self._per_second * BURST_S
        self._level = min(full, self._level + (now - self._last_s) * self._per_second) - tokens
        self._last_s = now
        if self._level < 0:
            await self._sleep(-self._level / self._per_second)

    def give_back(self, tokens: float) -> None:
        """The estimate was too high by `tokens` (too low where negative)."""
        self._level += tokens
