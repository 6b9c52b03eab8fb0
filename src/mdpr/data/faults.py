"""What to do with an image or a row that cannot be used: stop, or leave it out and say so."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mdpr.errors import DataError

logger = logging.getLogger(__name__)
LOGGED = 20  # messages one by one; all are in card.json


class Faults:
    """Collects what of a source is not used. `listed` has a line each, without the root: where a set lay is not
    what it is."""

    def __init__(self, root: Path, *, skip_bad: bool) -> None:
        self._prefix = f"{root}{os.sep}"
        self._skip_bad = skip_bad
        self.listed: list[str] = []

    def bad(self, error: DataError) -> None:
        """An image or a row that should be usable: raises `error`, or lists it where bad ones are skipped."""
        if not self._skip_bad:
            raise error
        self.leave_out(str(error))

    def leave_out(self, message: str) -> None:
        """Something that is no image and no row of a list, and never stops the stage."""
        self.listed.append(message.replace(self._prefix, ""))
        if len(self.listed) <= LOGGED:
            logger.warning("left out: %s", message)


def printable(name: str | Path) -> str:
    """A file name for a message: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def utf8_name(name: str, where: str) -> str:
    """`name`, or `DataError` where its bytes are not UTF-8 (prepared files hold text)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name is not UTF-8: rename the file") from None
    return name
