"""Where outputs are written: temporary names beside them, renamed when all of it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdpr.errors import CheckFailed, MdprError


@contextmanager
def whole_or_not_at_all(finals: list[Path]) -> Iterator[list[Path]]:
    """Temporary names for `finals`, renamed on success, kept as `.failed` on `CheckFailed`, removed otherwise."""
    partial = [final.with_name(f".{final.name}.partial") for final in finals]
    failed = [final.with_name(f"{final.name}.failed") for final in finals]
    for path in (*partial, *failed):
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        for temporary, final in zip(partial, finals, strict=True):
            assert temporary.exists(), f"the stage did not write {final}"
        for temporary, final in zip(partial, finals, strict=True):
            remove(final)
            temporary.rename(final)
    except CheckFailed as error:
        for temporary, kept in zip(partial, failed, strict=True):
            if temporary.exists():
                temporary.rename(kept)
        raise type(error)(f"{error}; see {', '.join(str(path) for path in failed)}") from None
    except OSError as error:
        raise MdprError(f"{error.strerror or error}: {error.filename or finals[0]}") from error
    finally:
        for path in partial:
            remove(path)


def write_whole(path: Path, text: str) -> None:
    """`text` under a name of its own first, then renamed; `MdprError` where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise MdprError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def dropped(finals: list[Path]) -> Iterator[list[Path]]:
    """Names for `finals` in a folder that goes when the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        yield [Path(folder) / str(index) for index in range(len(finals))]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
