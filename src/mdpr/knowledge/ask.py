"""From questions to answers: stored answers are read, the chat model gives the others, many at once in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sqlite3
import time
import warnings
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.errors import KnowledgeError
from mdpr.knowledge.chat import (
    REFUSED,
    Chat,
    explain,
    find_key,
    is_transient,
    pause_asked_for_s,
    server_name,
    status_of,
    without_key,
)
from mdpr.knowledge.questions import (
    ANSWER_TOKENS,
    AnswerStore,
    Budget,
    Place,
    Question,
    Schema,
    Usage,
    open_store,
    prompt_tokens,
)
from mdpr.knowledge.replies import Unusable, read_sentence
from mdpr.launch import in_project
from mdpr.params import LlmParams
from mdpr.progress import track

if TYPE_CHECKING:
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
UNANSWERED_IN_A_ROW = 10  # beyond the calls in progress: then the run stops
KEPT_REPLIES = 5  # of those that are no sentence


@dataclass(frozen=True)
class UnusableReply:
    """A reply without a sentence, for people to read."""

    class_index: int
    class_name: str
    dimension: str
    reason: str
    text: str


@dataclass
class Answers:
    """The sentences, the reasons for the missing ones, and the first replies that held none.

    `again`: whether the same questions may have another outcome in a second run.
    """

    sentences: dict[Place, str] = field(default_factory=dict)
    missing: dict[Place, str] = field(default_factory=dict)
    replies: list[UnusableReply] = field(default_factory=list)
    again: bool = False

    def __or__(self, later: Answers) -> Answers:
        """Both together; the later ones replace the earlier ones."""
        return Answers(
            self.sentences | later.sentences,
            self.missing | later.missing,
            [*self.replies, *later.replies][:KEPT_REPLIES],
            self.again or later.again,
        )


class TokenLimiter:
    """Starts calls as far apart as their tokens take at `per_minute`; 0 is no limit.

    (Requests per minute are limited by LangChain's own InMemoryRateLimiter.)
    """

    def __init__(
        self,
        per_minute: float,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_minute = per_minute
        self._clock_s = clock_s
        self._sleep = sleep
        self._free_at_s = 0.0

    async def wait_for(self, tokens: int) -> None:
        """Wait for the turn of a call of `tokens`. Turns come in the order of the calls."""
        now_s = self._clock_s()
        start_s = self._free_at_s = max(now_s, self._free_at_s)
        self.use(tokens)
        if start_s > now_s:
            await self._sleep(start_s - now_s)

    def use(self, tokens: int) -> None:
        """Count `tokens` more; negative if an estimate was too high."""
        if self._per_minute:
            self._free_at_s += tokens * 60 / self._per_minute


class OverBudget(Exception):
    """The next call may cost more than is left."""


def ask(questions: Sequence[Question], schemas: Mapping[str, Schema], llm: LlmParams, budget: Budget) -> Answers:
    """Every answer that can be had. A question with a stored answer is never sent again.

    The API key is read from the environment. Raises `KnowledgeError` if there is none, if the vendor's package is not
    installed, if the server refuses the key, the model or the address, and if the store cannot be written.
    """
    work = partial(_ask, questions, schemas, llm, budget)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(max_workers=1) as thread:  # a notebook's loop, say: a thread can run one only
        return thread.submit(work).result()


def _ask(questions: Sequence[Question], schemas: Mapping[str, Schema], llm: LlmParams, budget: Budget) -> Answers:
    with open_store(in_project(Path(llm.store))) as store:
        found = store.find(question.key for question in questions)
        pending = [question for question in questions if question.key not in found]
        answers = Answers()
        if pending:
            answers = _Asker(schemas, llm, budget, find_key(llm, os.environ), store).ask(pending)
    answers.sentences |= {question.place: found[question.key] for question in questions if question.key in found}
    return answers


class _Asker:
    """The calls of one run, within its limits."""

    def __init__(
        self, schemas: Mapping[str, Schema], llm: LlmParams, budget: Budget, key: str, store: AnswerStore
    ) -> None:
        self.answers = Answers()
        self.spent = Usage()
        self.fatal = ""  # why the whole run fails
        self._llm = llm
        self._budget = budget
        self._key = key
        self._store = store
        self._chat = Chat(llm, key, schemas)
        self._limiter = TokenLimiter(llm.tokens_per_minute)
        self._unanswered = 0  # questions in a row
        self._stopped = ""  # why no more calls are made
        self._warned_of_usage = False

    def ask(self, questions: Sequence[Question]) -> Answers:
        """Ask all `questions`, and show progress. Raises `KnowledgeError` for a fault that every call would meet."""
        with closing(self._ask_all(questions)) as finished:
            for _ in track(finished, "describe", total=len(questions), status=self._status):
                if self.fatal:
                    raise KnowledgeError(self.fatal)
        answered = len(self.answers.sentences)
        logger.info("describe: %d of %d answered, %s", answered, len(questions), self._status())
        return self.answers

    def _status(self) -> str:
        prices = self._budget.prices
        cost = f", {prices.cost_usd(self.spent):.2f} USD" if prices.known else ""
        return f"{self.spent.total:,} tokens{cost}"

    def _ask_all(self, questions: Sequence[Question]) -> Generator[None, None, None]:
        """Yields whenever a question has its answer or its reason. Leaving early cancels the calls in progress."""
        left = iter(questions)
        finished: asyncio.Queue[Exception | None] = asyncio.Queue()

        async def work() -> None:
            try:
                for question in left:
                    await self._settle(question)
                    finished.put_nowait(None)
            except Exception as error:  # a mistake in this file: nobody would wait for the worker's end
                finished.put_nowait(error)

        async def start() -> list[asyncio.Task[None]]:
            return [asyncio.create_task(work()) for _ in range(min(self._llm.concurrency, len(questions)))]

        with warnings.catch_warnings(), asyncio.Runner() as runner:  # cancels what is left at its end
            warnings.filterwarnings("ignore", "Pydantic serializer", UserWarning)  # openai's types, for odd replies
            gc.freeze()  # the libraries' objects stay: without this, each full collection walks all of them
            workers = runner.run(start())  # asyncio itself keeps only weak references
            for _ in questions:
                if mistake := runner.run(finished.get()):
                    raise mistake
                yield
            runner.run(asyncio.wait(workers))
            runner.run(self._chat.close())

    async def _settle(self, question: Question) -> None:
        """Ask one question; whatever goes wrong costs this question only."""
        if self._stopped:
            return self._miss(question, self._stopped, again=False)  # the calls that failed know better
        try:
            sentence, usage = await self._repeated(question)
            self._store.add(question, sentence, self._llm.model, usage)
        except OverBudget:
            self._miss(question, "not asked: the budget is used up", again=True)
        except sqlite3.Error as error:
            self._end(f"{self._llm.store}: the answer store cannot be written ({error}): set describe.llm.store")
        except Exception as error:
            self._fail(question, error)
        else:
            self.answers.sentences[question.place] = sentence
            self.spent += usage
            self._unanswered = 0

    async def _repeated(self, question: Question) -> tuple[str, Usage]:
        """`_call`, repeated while the fault may pass; the last error comes out as it is."""
        from tenacity import retry_if_exception, stop_after_attempt, wait_exponential_jitter
        from tenacity.asyncio import AsyncRetrying

        growing = wait_exponential_jitter(initial=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=FIRST_PAUSE_S)

        def pause_s(state: RetryCallState) -> float:
            asked_for_s = pause_asked_for_s(state.outcome.exception() if state.outcome else None)
            return growing(state) if asked_for_s is None else asked_for_s

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._llm.max_retries + 1),
            wait=pause_s,
            retry=retry_if_exception(is_transient),
            reraise=True,
        )
        answer: tuple[str, Usage] = await retrying(self._call, question)
        return answer

    async def _call(self, question: Question) -> tuple[str, Usage]:
        """One call, paid for. If its usage is not known, the most that it can have cost counts."""
        if not self._budget.set_aside(question):
            raise OverBudget
        expected = prompt_tokens(question) + ANSWER_TOKENS
        await self._limiter.wait_for(expected)
        try:
            reply = await self._chat.ask(question)
        except Exception as error:
            if status_of(error) is not None:  # the server's errors cost nothing
                self._budget.settle(question, Usage())
            raise
        if reply.usage is not None:
            self._budget.settle(question, reply.usage)
            self._limiter.use(reply.usage.total - expected)
        if reply.odd_usage and not self._warned_of_usage:
            self._warned_of_usage = True
            logger.warning("describe: the server's token counts cannot be true: they are not counted")
        return read_sentence(reply, self._llm.max_tokens), reply.usage or Usage()

    def _fail(self, question: Question, error: Exception) -> None:
        reason = explain(error, self._llm, self._key)
        if status_of(error) in REFUSED:
            server = server_name(self._llm)
            self._end(f"{server} refuses model {self._llm.model!r}: {reason}; check describe.llm and the API key")
        self._unanswered += 1
        if self._unanswered >= self._llm.concurrency + UNANSWERED_IN_A_ROW:
            self._stopped = f"not asked: {self._unanswered} calls in a row had no answer ({reason})"
        if isinstance(error, Unusable):
            raw = without_key(error.raw, self._key)
            logger.debug("unusable reply (class %d, %s): %s: %s", *question.place, reason, raw)
            if len(self.answers.replies) < KEPT_REPLIES:
                reply = UnusableReply(question.class_index, question.class_name, question.dimension, reason, raw)
                self.answers.replies.append(reply)
        self._miss(question, reason, again=is_transient(error) or self._llm.seed is None)

    def _end(self, reason: str) -> None:
        self.fatal = self._stopped = reason

    def _miss(self, question: Question, reason: str, again: bool) -> None:
        self.answers.missing[question.place] = reason
        self.answers.again |= again
