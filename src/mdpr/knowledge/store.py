"""The answers that were accepted, kept in one sqlite file under the key of their question.

Each answer is committed by itself, at the moment it is accepted: a process that is killed loses none. In WAL mode with
`synchronous=NORMAL` a commit outlives the process but needs no flush of the disk; only a power cut may lose the last.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mdpr.errors import KnowledgeError
from mdpr.knowledge.questions import Question

TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, sentence TEXT NOT NULL, class_index INTEGER NOT NULL, class_name TEXT NOT NULL,
    dimension TEXT NOT NULL, model TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    answered_at TEXT NOT NULL
) WITHOUT ROWID"""
KEYS_AT_ONCE = 500  # sqlite's limit on parameters was 999 for long
LOCK_TIMEOUT_S = 30.0


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
        """Keep one answer; it is on file when this returns."""
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
        """The sentences that are there: key -> sentence."""
        wanted = list(keys)
        found: dict[str, str] = {}
        for start in range(0, len(wanted), KEYS_AT_ONCE):
            part = wanted[start : start + KEYS_AT_ONCE]
            marks = ",".join("?" * len(part))
            found.update(self._connection.execute(f"SELECT key, sentence FROM answers WHERE key IN ({marks})", part))  # noqa: S608 - only question marks
        return found

    def mean_output_tokens(self, model: str) -> float | None:
        """Mean length of this model's answers so far; None where there are none."""
        (mean,) = self._connection.execute(
            "SELECT AVG(output_tokens) FROM answers WHERE model = ?", (model,)
        ).fetchone()
        return mean if mean is None else float(mean)


@contextmanager
def open_store(path: Path) -> Iterator[AnswerStore]:
    """The store at `path`, made where there is none. Raises `KnowledgeError` where the file cannot be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise KnowledgeError(
            f"{path}: the store of answers cannot be opened ({error}): set describe.llm.store"
        ) from None
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(TABLE)
        yield AnswerStore(connection)
    except sqlite3.Error as error:
        raise KnowledgeError(f"{path}: the store of answers cannot be used ({error}): set describe.llm.store") from None
    finally:
        connection.close()
