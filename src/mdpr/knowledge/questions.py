"""The questions for a chat model, the store that keeps their answers, and what they cost.

One question per class and dimension, with the texts of prompts.yaml. An answer is one sentence in JSON; its schema
describes the field per dimension. It is kept in one sqlite file under the key of its question, and committed at the
moment it is accepted, so a run that is killed loses none. In WAL mode with `synchronous=NORMAL` a commit outlives the
process without a flush of the disk; only a power cut can lose the last ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mdpr.artifacts import ClassInfo
from mdpr.errors import KnowledgeError
from mdpr.launch import in_project
from mdpr.params import DIFFERENTIAL, DIMENSIONS, LlmParams, parse_yaml

Place = tuple[int, str]  # class index, dimension
Schema = Mapping[str, Any]  # a function's definition in JSON Schema: title, description, properties

TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, sentence TEXT NOT NULL, class_index INTEGER NOT NULL, class_name TEXT NOT NULL,
    dimension TEXT NOT NULL, model TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    answered_at TEXT NOT NULL
) WITHOUT ROWID"""
KEYS_AT_ONCE = 500  # older sqlite takes at most 999 parameters
LOCK_TIMEOUT_S = 30.0
CHARACTERS_PER_TOKEN = 4  # of English in today's tokenizers, roughly
SCHEMA_TOKENS = 70  # of the schema, the roles and the frame of a request
ANSWER_TOKENS = 45  # of a sentence in JSON; used until the store holds answers of the model


class DimensionPrompt(BaseModel):
    """The question of one dimension, and the description of the answer's field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    ask: str
    field: str


class Prompts(BaseModel):
    """prompts.yaml. Placeholders: {class}, {rival}; in `repair` {sentence} and {reason}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    repair: str
    dimensions: Mapping[str, DimensionPrompt]

    def schemas(self) -> dict[str, Schema]:
        """The form of an answer, per dimension."""
        return {
            dimension: {
                "title": dimension,
                "description": prompt.field,
                "type": "object",
                "properties": {"sentence": {"type": "string", "description": prompt.field}},
                "required": ["sentence"],
                "additionalProperties": False,
            }
            for dimension, prompt in self.dimensions.items()
        }


@dataclass(frozen=True)
class Rejected:
    """An earlier answer that the audit rejected, and the reason."""

    sentence: str
    reason: str


@dataclass(frozen=True)
class Question:
    """One call. `key` is the digest of everything that shapes the answer."""

    key: str
    class_index: int
    class_name: str
    dimension: str
    system: str
    user: str

    @property
    def place(self) -> Place:
        return self.class_index, self.dimension


def load_prompts() -> Prompts:
    """prompts.yaml of this package."""
    text = (resources.files("mdpr.knowledge") / "prompts.yaml").read_text(encoding="utf-8")
    prompts = Prompts.model_validate(parse_yaml(text, "prompts.yaml"))
    assert tuple(prompts.dimensions) == DIMENSIONS
    return prompts


def make_questions(
    classes: Sequence[ClassInfo],
    rival_C: Sequence[int],
    prompts: Prompts,
    llm: LlmParams,
    places: Iterable[Place],
    rejected: Mapping[Place, Rejected] | None = None,
) -> list[Question]:
    """One question for each of `places`, in their order. If a place is in `rejected`, its prompt gives the reason.

    rival_C: per class the index of the class it is most confused with.
    """
    schemas = prompts.schemas()
    questions = []
    for index, dimension in places:
        item, rival, prompt = classes[index], classes[rival_C[index]], prompts.dimensions[dimension]
        user = _fill(prompt.ask, {"class": item.display_name, "rival": rival.display_name})
        if rejected and (earlier := rejected.get((index, dimension))):
            user += "\n" + _fill(prompts.repair, {"sentence": earlier.sentence, "reason": earlier.reason})
        key = question_key(
            {
                "llm": shaping(llm),
                "prompt_version": prompt.version,
                "schema": schemas[dimension],
                "system": prompts.system,
                "user": user,
                "class": [item.index, item.name, item.disambiguation],
                "rival": [rival.index, rival.name, rival.disambiguation] if dimension == DIFFERENTIAL else None,
            }
        )
        questions.append(Question(key, item.index, item.name, dimension, prompts.system, user))
    return questions


def shaping(llm: LlmParams) -> dict[str, Any]:
    """The settings that shape an answer. The others (limits, prices, time-outs) only say how it is fetched."""
    names = ("vendor", "model", "base_url", "structured_output", "temperature", "seed", "max_tokens")
    return {name: getattr(llm, name) for name in names}


def question_key(parts: Mapping[str, Any]) -> str:
    """sha256 of `parts` as canonical JSON: equal parts in any order give equal keys, different parts different ones."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced. Braces inside the values mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda mark: values[mark.group(1)], text)


@dataclass(frozen=True)
class Usage:
    """Tokens of one call or of many."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens


class AnswerStore:
    """An open store; several processes may write to one file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, question: Question, sentence: str, model: str, usage: Usage) -> None:
        """Keep one answer; it is in the file when this returns."""
        row = (
            question.key,
            sentence,
            question.class_index,
            question.class_name,
            question.dimension,
            model,
            usage.input_tokens,
            usage.output_tokens,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def find(self, keys: Iterable[str]) -> dict[str, str]:
        """The stored sentences among `keys`: key -> sentence."""
        wanted = list(keys)
        found: dict[str, str] = {}
        for start in range(0, len(wanted), KEYS_AT_ONCE):
            part = wanted[start : start + KEYS_AT_ONCE]
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT key, sentence FROM answers WHERE key IN ({marks})", part))  # noqa: S608 - only question marks
        return found

    def mean_output_tokens(self, model: str) -> float | None:
        """Mean length of this model's answers so far; None if there are none of known length."""
        query = "SELECT AVG(output_tokens) FROM answers WHERE model = ? AND output_tokens > 0"
        (mean,) = self._connection.execute(query, (model,)).fetchone()
        return mean if mean is None else float(mean)


@contextmanager
def open_store(path: Path) -> Iterator[AnswerStore]:
    """The store at `path`, created if it is missing. Raises `KnowledgeError` if the file cannot be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise KnowledgeError(f"{path}: the answer store cannot be opened ({error}): set describe.llm.store") from None
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(TABLE)
        yield AnswerStore(connection)
    except sqlite3.Error as error:
        raise KnowledgeError(f"{path}: the answer store cannot be used ({error}): set describe.llm.store") from None
    finally:
        connection.close()


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    input_usd_per_million: float
    output_usd_per_million: float

    @classmethod
    def of(cls, llm: LlmParams) -> Prices:
        return cls(llm.input_usd_per_million, llm.output_usd_per_million)

    @property
    def known(self) -> bool:
        """Whether any price is set; 0 means a free server or a price that nobody entered."""
        return bool(self.input_usd_per_million or self.output_usd_per_million)

    def cost_usd(self, usage: Usage) -> float:
        """The price of so many tokens, in US dollars."""
        return (
            usage.input_tokens * self.input_usd_per_million + usage.output_tokens * self.output_usd_per_million
        ) / 1e6


class Budget:
    """The dollars of one run. Before a call, the most that it can cost is set aside. limit_usd 0 is no limit."""

    def __init__(self, limit_usd: float, prices: Prices, max_tokens: int) -> None:
        self.prices = prices
        self._limit_usd = limit_usd
        self._max_tokens = max_tokens
        self._spent_usd = 0.0

    def most_usd(self, question: Question) -> float:
        """The most that one call can cost: one token per character, and the longest answer."""
        characters = len(question.system) + len(question.user)
        return self.prices.cost_usd(Usage(SCHEMA_TOKENS * 2 + characters, self._max_tokens))

    def set_aside(self, question: Question) -> bool:
        """Whether the call still fits; if so, its highest price counts as spent until `settle`."""
        most_usd = self.most_usd(question)
        if self._limit_usd and self._spent_usd + most_usd > self._limit_usd:
            return False
        self._spent_usd += most_usd
        return True

    def settle(self, question: Question, usage: Usage) -> None:
        """Replace the highest price by the real one."""
        self._spent_usd += self.prices.cost_usd(usage) - self.most_usd(question)


@dataclass(frozen=True)
class Plan:
    """The cost of a run: all calls, those already answered in the store, tokens and dollars of the others.

    Dollars are None if no price is set.
    """

    calls: int
    stored: int
    usage: Usage
    cost_usd: float | None


def plan(questions: Sequence[Question], llm: LlmParams) -> Plan:
    """An estimate; calls no server and creates no store."""
    found: dict[str, str] = {}
    output_tokens = None
    path = in_project(Path(llm.store))
    if path.exists():
        with open_store(path) as store:
            found = store.find(question.key for question in questions)
            output_tokens = store.mean_output_tokens(llm.model)
    usage = estimate([question for question in questions if question.key not in found], output_tokens)
    prices = Prices.of(llm)
    return Plan(len(questions), len(found), usage, prices.cost_usd(usage) if prices.known else None)


def prompt_tokens(question: Question) -> int:
    """The approximate number of tokens in the prompt of one call."""
    return SCHEMA_TOKENS + math.ceil((len(question.system) + len(question.user)) / CHARACTERS_PER_TOKEN)


def estimate(questions: Sequence[Question], output_tokens: float | None) -> Usage:
    """The approximate tokens of all `questions`; `output_tokens` per answer if known."""
    each = ANSWER_TOKENS if output_tokens is None else output_tokens
    return Usage(sum(map(prompt_tokens, questions)), round(len(questions) * each))
