"""Questions to answers: what is in the store is read, the rest is asked by worker processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

from mdpr.errors import KnowledgeError
from mdpr.knowledge.chat import find_key, require_package
from mdpr.knowledge.questions import Place, Question
from mdpr.knowledge.schema import Schema
from mdpr.knowledge.spending import Budget, Prices, estimate
from mdpr.knowledge.store import Usage, open_store
from mdpr.knowledge.worker import CALLS_A_PROCESS, Job, Outcome, run_worker
from mdpr.params import LlmParams
from mdpr.progress import track

logger = logging.getLogger(__name__)
LOST = "not asked: the process that was to ask ended early"


def worker_context() -> SpawnContext:
    """How workers are started: anew, for a fork would copy the locks of this process's threads."""
    return multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Answers:
    """The sentences that are there, and why the others are not."""

    sentences: Mapping[Place, str]
    missing: Mapping[Place, str]


@dataclass(frozen=True)
class Plan:
    """What answering takes: calls in all, those whose answer is in the store, tokens and dollars of the others.

    Dollars are None where no price is known.
    """

    calls: int
    stored: int
    usage: Usage
    cost_usd: float | None


def plan(questions: Sequence[Question], llm: LlmParams) -> Plan:
    """An estimate that asks nothing; a store that is not there is not made."""
    stored, output_tokens = 0, None
    if Path(llm.store).exists():
        with open_store(Path(llm.store)) as store:
            found = store.find(question.key for question in questions)
            output_tokens = store.mean_output_tokens(llm.model)
        stored = len(found)
        questions = [question for question in questions if question.key not in found]
    usage = estimate(questions, output_tokens)
    prices = Prices.of(llm)
    return Plan(stored + len(questions), stored, usage, prices.cost_usd(usage) if prices.known else None)


def ask(
    questions: Sequence[Question],
    schemas: Mapping[str, Schema],
    llm: LlmParams,
    budget: Budget,
    environment: Mapping[str, str] = os.environ,
) -> Answers:
    """Every answer that can be had. What was answered once is never asked again.

    The API key is read from `environment`. Raises `KnowledgeError` where there is none, where the vendor's package is
    not installed, and where the server refuses the key, the model or the address.
    """
    path = Path(llm.store)
    with open_store(path) as store:
        found = store.find(question.key for question in questions)
        pending = [question for question in questions if question.key not in found]
        reasons: dict[Place, str] = {}
        if pending:
            require_package(llm)
            reasons = _ask_pending(pending, schemas, llm, budget, find_key(llm, environment))
            found |= store.find(question.key for question in pending)
    return Answers(
        sentences={question.place: found[question.key] for question in questions if question.key in found},
        missing={
            question.place: reasons.get(question.place, LOST) for question in questions if question.key not in found
        },
    )


def _ask_pending(
    pending: Sequence[Question], schemas: Mapping[str, Schema], llm: LlmParams, budget: Budget, key: str
) -> dict[Place, str]:
    """Ask, show how far it is; the reasons of those that were not answered."""
    prices, spent = Prices.of(llm), Usage()
    reasons: dict[Place, str] = {}

    def status() -> str:
        cost = f", {prices.cost_usd(spent):.2f} USD" if prices.known else ""
        return f"{spent.total:,} tokens{cost}"

    with _workers(pending, schemas, llm, budget, key) as outcomes:
        for outcome in track(outcomes, "describe", total=len(pending), status=status):
            spent += outcome.usage
            if outcome.refused:
                server = llm.base_url or llm.vendor
                raise KnowledgeError(
                    f"{server} refuses model {llm.model!r}: {outcome.reason}; check describe.llm and the API key"
                )
            if outcome.reason:
                reasons[outcome.place] = outcome.reason
    logger.info("describe: %d of %d answered, %s", len(pending) - len(reasons), len(pending), status())
    return reasons


@contextmanager
def _workers(
    pending: Sequence[Question], schemas: Mapping[str, Schema], llm: LlmParams, budget: Budget, key: str
) -> Iterator[Iterator[Outcome]]:
    """Processes that ask, their outcomes as they come; all of them are gone when the block is left."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, -(-llm.concurrency // CALLS_A_PROCESS), len(pending))
    context = worker_context()
    taken = context.Value("q", 0)
    processes: list[SpawnProcess] = []
    receivers: list[Connection] = []
    try:
        for number in range(count):
            receiver, sender = context.Pipe(duplex=False)
            job = Job(
                llm=llm,
                schemas=schemas,
                store=Path(llm.store),
                budget=budget,
                taken=taken,
                concurrency=llm.concurrency // count + (number < llm.concurrency % count),
                requests_per_minute=llm.requests_per_minute / count,
                tokens_per_minute=llm.tokens_per_minute / count,
            )
            process = context.Process(target=run_worker, args=(sender, pending, job, key), daemon=True)
            process.start()
            sender.close()  # the worker's alone now: its end is the end of the pipe
            processes.append(process)
            receivers.append(receiver)
        yield _outcomes(receivers)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _outcomes(receivers: Sequence[Connection]) -> Iterator[Outcome]:
    """What the workers send, until each has closed its end."""
    open_ends = list(receivers)
    while open_ends:
        for receiver in wait(open_ends):
            assert isinstance(receiver, Connection)
            try:
                yield receiver.recv()
            except EOFError:
                open_ends.remove(receiver)
