"""What asking costs: an estimate before, a budget during."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext

from mdpr.knowledge.questions import Question
from mdpr.knowledge.store import Usage
from mdpr.params import LlmParams

CHARACTERS_A_TOKEN = 4  # of English in today's tokenizers, roughly
SCHEMA_TOKENS = 70  # of the schema, the roles and the frame of a request
ANSWER_TOKENS = 45  # of a sentence in JSON, until the store knows better


@dataclass(frozen=True)
class Prices:
    """US dollars a million tokens."""

    input_usd_per_million: float
    output_usd_per_million: float

    @classmethod
    def of(cls, llm: LlmParams) -> Prices:
        return cls(llm.input_usd_per_million, llm.output_usd_per_million)

    @property
    def known(self) -> bool:
        """Whether there are any: 0 stands for a server that costs nothing, or for a price that nobody gave."""
        return bool(self.input_usd_per_million or self.output_usd_per_million)

    def cost_usd(self, usage: Usage) -> float:
        return (
            usage.input_tokens * self.input_usd_per_million + usage.output_tokens * self.output_usd_per_million
        ) / 1e6


def prompt_tokens(question: Question) -> int:
    """About how many tokens the prompt of one call has."""
    return SCHEMA_TOKENS + math.ceil((len(question.system) + len(question.user)) / CHARACTERS_A_TOKEN)


def estimate(questions: Sequence[Question], output_tokens: float | None) -> Usage:
    """Tokens that asking all of `questions` takes, roughly; `output_tokens` a call where they are known."""
    each = ANSWER_TOKENS if output_tokens is None else output_tokens
    return Usage(sum(map(prompt_tokens, questions)), round(len(questions) * each))


class Budget:
    """Dollars that several processes, started in `context`, spend together. Before a call the most that it can cost is
    set aside. limit_usd 0 is no limit.
    """

    def __init__(self, context: BaseContext, limit_usd: float, prices: Prices, max_tokens: int) -> None:
        self._limit_usd = limit_usd
        self._prices = prices
        self._max_tokens = max_tokens
        self._spent_usd = context.Value("d", 0.0)

    def most_usd(self, question: Question) -> float:
        """The most that one call can cost: every character a token, and the longest answer."""
        characters = len(question.system) + len(question.user)
        return self._prices.cost_usd(Usage(SCHEMA_TOKENS * 2 + characters, self._max_tokens))

    def set_aside(self, question: Question) -> bool:
        """Whether the call still fits; if so its highest price counts as spent until `settle`."""
        most_usd = self.most_usd(question)
        with self._spent_usd.get_lock():
            if self._limit_usd and self._spent_usd.value + most_usd > self._limit_usd:
                return False
            self._spent_usd.value += most_usd
        return True

    def settle(self, question: Question, usage: Usage) -> None:
        """The call cost this and no more."""
        with self._spent_usd.get_lock():
            self._spent_usd.value += self._prices.cost_usd(usage) - self.most_usd(question)
