"""A process that asks a chat model questions, many at once.

It takes them one by one from a list that all such processes share: none is idle while another has work left.

The client libraries take about 3 ms of processor time a call, so one event loop serves some 300 calls a second at most.
That is why the parent starts a process for every CALLS_A_PROCESS calls at once.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from mdpr.knowledge.chat import Chat, Unusable, open_chat, vendor_errors
from mdpr.knowledge.limits import TokenBucket
from mdpr.knowledge.questions import Place, Question
from mdpr.knowledge.retries import is_timeout, retrying, status_of
from mdpr.knowledge.schema import Schema
from mdpr.knowledge.spending import ANSWER_TOKENS, Budget, prompt_tokens
from mdpr.knowledge.store import AnswerStore, Usage, open_store
from mdpr.params import LlmParams

CALLS_A_PROCESS = 32
START_EVERY_S = 0.005  # calls that start together come back together, and wait for each other ever after
LIMITER_CHECKS_S = 0.02
REFUSALS = (401, 403, 404)  # of the key, the model or the address: every other call would fare the same
UNANSWERED_IN_A_ROW = 10  # beyond the calls under way: then the server counts as away


@dataclass(frozen=True)
class Outcome:
    """What became of one question: `reason` is empty where its answer is in the store."""

    place: Place
    usage: Usage = Usage()  # noqa: RUF009 - frozen
    reason: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker works with; the limits are its share of the whole.

    `taken` counts the questions that any worker has taken so far, in their order.
    """

    llm: LlmParams
    schemas: Mapping[str, Schema]
    store: Path
    budget: Budget
    taken: Synchronized[int]
    concurrency: int
    requests_per_minute: float
    tokens_per_minute: float


class OverBudget(Exception):
    """The next call may cost more than is left."""


def run_worker(outcomes: Connection, questions: Sequence[Question], job: Job, key: str) -> None:
    """Ask those of `questions` that no other worker takes; send an `Outcome` for each of them.

    Ends when nobody is there to receive them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        with open_store(job.store) as store:
            asyncio.run(_ask_all(_Worker(outcomes, job, key, store), questions))
    except* BrokenPipeError:  # the parent was killed
        pass


async def _ask_all(worker: _Worker, questions: Sequence[Question]) -> None:
    from langchain_core.rate_limiters import InMemoryRateLimiter

    job = worker.job
    limiter = None
    if job.requests_per_minute:
        limiter = InMemoryRateLimiter(
            requests_per_second=job.requests_per_minute / 60, check_every_n_seconds=LIMITER_CHECKS_S
        )
    async with open_chat(job.llm, worker.key, job.schemas, limiter) as chat, asyncio.TaskGroup() as tasks:
        gc.freeze()  # the libraries' half a million objects are here to stay: no collection need walk them again
        left = _untaken(questions, job.taken)
        slots = min(job.concurrency, len(questions))
        for number in range(slots):
            tasks.create_task(worker.work(chat, left, start_s=number * START_EVERY_S))


def _untaken(questions: Sequence[Question], taken: Synchronized[int]) -> Iterator[Question]:
    while True:
        with taken.get_lock():
            place = taken.value
            taken.value += 1
        if place >= len(questions):
            return
        yield questions[place]


class _Worker:
    """What the calls of one process share."""

    def __init__(self, outcomes: Connection, job: Job, key: str, store: AnswerStore) -> None:
        self.job = job
        self.key = key
        self._outcomes = outcomes
        self._store = store
        self._errors: tuple[type[Exception], ...] = (Unusable, TimeoutError, *vendor_errors(job.llm))
        self._bucket = TokenBucket(job.tokens_per_minute, time.monotonic)
        self._in_a_row = 0  # calls without an answer
        self._stopped = ""  # why no more calls are made

    async def work(self, chat: Chat, left: Iterator[Question], start_s: float) -> None:
        """Take one question after the other; none before the last answer is on file."""
        await asyncio.sleep(start_s)
        for question in left:
            if self._stopped:
                outcome = Outcome(question.place, reason=self._stopped)
            else:
                outcome = await self._outcome(chat, question)
            self._outcomes.send(outcome)

    async def _outcome(self, chat: Chat, question: Question) -> Outcome:
        try:
            answer: tuple[str, Usage] = await retrying(self.job.llm.max_retries)(self._attempt, chat, question)
        except OverBudget:
            return Outcome(question.place, reason="not asked: the budget is used up")
        except self._errors as error:
            return self._failed(question, error)
        sentence, usage = answer
        self._in_a_row = 0
        self._store.add(question, sentence, self.job.llm.model, usage)
        return Outcome(question.place, usage)

    async def _attempt(self, chat: Chat, question: Question) -> tuple[str, Usage]:
        """One call, paid for. What a call that ran out of time or made no sense costs is not known: the most counts."""
        if not self.job.budget.set_aside(question):
            raise OverBudget
        expected = prompt_tokens(question) + ANSWER_TOKENS
        await self._bucket.take(expected)
        try:
            sentence, usage = await chat.ask(question)
        except self._errors as error:
            if status_of(error) is not None:  # an error of the server's costs nothing
                self.job.budget.settle(question, Usage())
            raise
        if usage is None:
            return sentence, Usage()
        self.job.budget.settle(question, usage)
        self._bucket.give_back(expected - usage.total)
        return sentence, usage

    def _failed(self, question: Question, error: Exception) -> Outcome:
        refused = status_of(error) in REFUSALS
        reason = self._explain(error)
        self._in_a_row += 1
        if refused:
            self._stopped = f"not asked: the server refuses every call ({reason})"
        elif self._in_a_row >= self.job.concurrency + UNANSWERED_IN_A_ROW:
            self._stopped = f"not asked: {self._in_a_row} calls in a row had no answer ({reason})"
        return Outcome(question.place, reason=reason, refused=refused)

    def _explain(self, error: Exception) -> str:
        """The reason in one short line, without the key: servers quote it back."""
        text = f"no answer within {self.job.llm.timeout_s:g} s" if is_timeout(error) else str(error)
        line = " ".join(text.split()) or type(error).__name__
        return line.replace(self.key, "***")[:200]
