"""What waits on this disk until MLflow has it: one append-only journal a run, which survives the process.

A line is one entry as JSON: its sequence number, its kind, its content. It is on the disk before anything is sent,
and a line `acknowledged` says up to which number the store has everything. A process that is killed leaves at worst
a torn last line, which the next owner cuts off. Entries may be sent again after a lost answer: every kind is one
that MLflow can take twice without keeping it twice (see `mdpr.mlops.delivery`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mdpr.errors import TrackingError

logger = logging.getLogger(__name__)

SUFFIX = ".jsonl"
FILES_SUFFIX = ".files"
HEADER, OPENED, CLOSED, ACKNOWLEDGED = "run", "opened", "status", "acknowledged"


@dataclass(frozen=True)
class Entry:
    """One thing to tell the store. `number` counts from 1 in each journal."""

    number: int
    kind: str
    content: Any


@dataclass
class Journal:
    """The journal of one run, held by this process alone (a lock on the file; gone with the process)."""

    path: Path
    file: IO[bytes]
    entries: list[Entry] = field(default_factory=list)
    acknowledged: int = 0

    @property
    def run_id(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def files_folder(self) -> Path:
        """Copies of the files that wait for their upload."""
        return self.path.with_name(self.run_id + FILES_SUFFIX)

    @property
    def pending(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.number > self.acknowledged]

    @property
    def abandoned(self) -> bool:
        """Whether the process that had opened the run ended without a word."""
        marks = [entry.kind for entry in self.entries if entry.kind in (OPENED, CLOSED)]
        return marks[-1:] == [OPENED]

    def append(self, kind: str, content: Any) -> Entry:
        """One more entry, on the disk when this returns."""
        entry = Entry(self.entries[-1].number + 1 if self.entries else 1, kind, content)
        self._write([entry.number, kind, content])
        self.entries.append(entry)
        return entry

    def append_file(self, source: Path, target: str) -> None:
        """A copy of `source`, to become the run's artifact `target` (a relative POSIX path)."""
        copy = self.files_folder / target
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        self.append("file", target)

    def acknowledge(self, number: int) -> None:
        """The store has everything up to `number`."""
        self._write([number, ACKNOWLEDGED, None])
        self.acknowledged = number

    def remove(self) -> None:
        """Nothing waits any more: the journal and its files go."""
        shutil.rmtree(self.files_folder, ignore_errors=True)
        self.path.unlink()
        with suppress(OSError):  # other journals are in it
            self.path.parent.rmdir()

    def close(self) -> None:
        self.file.close()

    def _write(self, line: list[Any]) -> None:
        self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def open_journal(folder: Path, run_id: str) -> Journal | None:
    """The journal of `run_id`, made where there is none; None where another process holds it."""
    path = folder / f"{run_id}{SUFFIX}"
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the last owner removed the folder just now
                file = path.open("a+b")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    return None
                if _same_file(path, file):  # not removed between our opening and our locking it
                    return _read(path, file)
                file.close()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}): name another folder"
        raise TrackingError(f"tracking.outbox: {folder} {reason}") from None


def journals(folder: Path) -> Iterator[Journal]:
    """Every journal below `folder` that nobody holds, each closed again when the next is asked for."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        journal = open_journal(folder, path.name.removesuffix(SUFFIX))
        if journal is None:
            logger.debug("%s is held by a running process", path)
            continue
        try:
            yield journal
        finally:
            journal.close()


def _same_file(path: Path, file: IO[bytes]) -> bool:
    held, named = os.fstat(file.fileno()), path.stat()
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _read(path: Path, file: IO[bytes]) -> Journal:
    """All whole lines; a torn last one is cut off."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logger.warning("%s: the last line was cut off when its process ended", path)
        file.truncate(whole)
    journal = Journal(path, file)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            count, kind, value = json.loads(line)
        except ValueError:
            raise TrackingError(f"{path} line {number} is damaged: mend or remove it") from None
        if kind == ACKNOWLEDGED:
            journal.acknowledged = count
        else:
            journal.entries.append(Entry(count, kind, value))
    return journal
