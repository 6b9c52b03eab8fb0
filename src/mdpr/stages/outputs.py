"""The places of outputs: checked before work, locked while it lasts, put in place when all of it is there.

An output replaces only what the same port wrote before. A folder proves that by its marker, `.mdpr-output.json`, which
names the port and every file beside it; a JSON file by its key `format`. The marker is an ordinary file of the
output, so it comes back with `dvc checkout` and travels with a Kubeflow artifact. scores/ has none, because
`dvc metrics show` would list it: its files are known by their names and keys.

While a stage runs, `.NAME.mdpr/` beside the output holds the lock, the new output, and for a moment the old one.
With `set_aside`, anything else in an output's place is renamed to `NAME.replaced-TOKEN` instead of refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from uuid import uuid4

from mdpr.errors import CheckFailed, ConfigError, MdprError

logger = logging.getLogger(__name__)

MARKER = ".mdpr-output.json"
MARKER_FORMAT = "mdpr-output/1"
NAME_MAX_BYTES = 255  # of a file's name, on every file system in use
START_BYTES = 4096  # of a file, where what wrote it can be seen
JSON_MAX_BYTES = 2**20  # of an output that is one file, or of a marker

# Files of scores/ and their keys: it has no marker.
SCORES_FILES = {"all.json", "many.json", "medium.json", "few.json"}
SCORES_KEYS = {"fused", "routed", "base", "zero_shot"}


@dataclass(frozen=True)
class Place:
    """The place of a port's output, and the names beside it that are used on the way."""

    port: str
    named: Path  # as the user wrote it
    final: Path
    overwrites: bool = False  # any file that is there may be replaced
    sets_aside: bool = False  # anything else that is there is renamed first, never removed
    token: str = field(default_factory=lambda: uuid4().hex[:8])

    @classmethod
    def of(cls, port: str, named: Path, overwrites: bool = False, sets_aside: bool = False) -> Place:
        """`named` as an absolute path. Links are followed in every part but the last, which is what gets replaced."""
        path = Path(os.path.realpath(named.parent), named.name)
        final = path if named.name not in ("", "..") else Path(os.path.realpath(named))
        return cls(port, named, final, overwrites, sets_aside)

    @property
    def failed(self) -> Path:
        return beside(self.final, "", ".failed")

    @property
    def work(self) -> Path:
        return beside(self.final, ".", ".mdpr")

    @property
    def lock(self) -> Path:
        return self.work / "lock"

    @property
    def new(self) -> Path:
        return self.work / f"{self.token}.new"

    @property
    def old(self) -> Path:
        return self.work / "old"

    @property
    def aside(self) -> Path:
        return beside(self.final, "", f".replaced-{self.token}")

    def refusal(self) -> str | None:
        """Why what is at `final` must not be replaced; None if it may, or is set aside first."""
        return None if self.sets_aside else _foreign(self, self.final)


def beside(path: Path, prefix: str, suffix: str) -> Path:
    """The neighbour of `path` called PREFIX NAME SUFFIX, its middle replaced by a digest if that is too long a name."""
    name = f"{prefix}{path.name}{suffix}"
    if len(os.fsencode(name)) > NAME_MAX_BYTES:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        room = NAME_MAX_BYTES - len(f"{prefix}~{digest}{suffix}")
        start = os.fsencode(path.name)[:room].decode(errors="ignore")
        name = f"{prefix}{start}~{digest}{suffix}"
    return path.parent / name  # not with_name: `.` and `/` have none, and are refused later, by name


@contextmanager
def whole_or_not_at_all(
    outputs: Mapping[str, Path],
    inputs: Mapping[str, Path] | None = None,
    *,
    overwrites: Iterable[str] = (),
    set_aside: Iterable[str] = (),
    checkpoint: Path | None = None,
) -> Iterator[list[Path]]:
    """Paths to write `outputs` (port -> path) to. All of them are put in place when the block ends, or none is.

    On `CheckFailed` they are kept as `<output>.failed`. `inputs` (name -> path) are kept apart from the outputs.
    `overwrites`: outputs that replace whatever file is there. `set_aside`: outputs in whose way anything that their
    port did not write is kept, as `<output>.replaced-TOKEN`. `checkpoint`: a folder that is removed once the outputs
    stand. Raises `ConfigError` before the block runs if an output would replace what its port did not write, if it
    touches an input, or if another process is writing it.
    """
    places = [Place.of(port, path, port in overwrites, port in set_aside) for port, path in outputs.items()]
    with _os_errors(places[0].named), ExitStack() as held:
        check_paths(places, inputs or {})
        if checkpoint and not _is_folder_of(checkpoint, "state.*"):
            raise ConfigError(f"{checkpoint} is not a checkpoint of mdpr: move it away, or name another output")
        for place in sorted(places, key=lambda place: place.final):
            held.enter_context(_locked(place))
        for place in places:  # under the lock: another process may have been putting its output in place
            for path, reason in ((place.final, place.refusal()), (place.failed, _foreign(place, place.failed))):
                if reason:
                    raise ConfigError(f"{place.port}: {path} {reason}: move it away, or name another path")
        try:
            yield [place.new for place in places]
            for place in places:
                assert place.new.exists(), f"the stage did not write {place.named}"
                _mark(place, place.new)
            for place in places:
                if reason := place.refusal():
                    raise CheckFailed(f"{place.named} {reason}, since this stage began")
        except CheckFailed as error:
            written = [place for place in places if place.new.exists()]
            for place in written:
                _mark(place, place.new)
            _put_in_place({place.failed: place for place in written})
            raise type(error)(f"{error}; see {', '.join(str(place.failed) for place in places)}") from None
        _put_in_place({place.final: place for place in places})
        for path in (*(place.failed for place in places), *([checkpoint] if checkpoint else [])):
            remove(path)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MdprError(f"{error.strerror or error}: {error.filename or path}") from error


def check_paths(places: Iterable[Place], inputs: Mapping[str, Path]) -> None:
    """Raises `ConfigError` for the first output that lies on something else, whatever is in it."""
    protected = {"working folder": Path.cwd(), "home folder": Path(os.path.expanduser("~"))}
    taken: dict[str, Path] = {}
    for place in places:
        reason = _danger(place, protected, {**inputs, **taken})
        if reason:
            raise ConfigError(f"{place.port}: {str(place.named)!r} {reason}: name another path")
        taken[place.port] = place.final


def _danger(place: Place, protected: Mapping[str, Path], inputs: Mapping[str, Path]) -> str | None:
    """Why `place` must not be written; None if it may."""
    longest = max(len(os.fsencode(part)) for part in place.named.parts or ("",))
    if longest > NAME_MAX_BYTES:
        return f"has a name of {longest} bytes, more than {NAME_MAX_BYTES}"
    spots = {place.final, Path(os.path.realpath(place.final))}
    for what, path in protected.items():
        if any(spot in (real := Path(os.path.realpath(path)), *real.parents) for spot in spots):
            return f"is or holds the {what}"
    for name, path in inputs.items():
        real = Path(os.path.realpath(path))
        for spot in spots:
            if spot == real:
                return f"is also {name}"
            if spot in real.parents:
                return f"holds {name} ({path})"
            if real in spot.parents:
                return f"lies in {name} ({path})"
    if os.path.ismount(place.final):
        return "is a mount point: name a folder in it, or"
    if not _is_folder_of(place.work, "lock", "old", "*.new"):
        return f"needs {place.work}, which is not of mdpr: move it away, or"
    return None


def _is_folder_of(path: Path, *patterns: str) -> bool:
    """Whether `path` is a folder that holds only names like `patterns`, or is not there."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return not path.is_symlink()
    except NotADirectoryError:
        return False
    return not path.is_symlink() and all(any(fnmatch(entry.name, like) for like in patterns) for entry in entries)


def _foreign(place: Place, path: Path) -> str | None:
    """Why `path` does not belong to the port of `place`; None if the port wrote it, or if nothing is there."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() and not path.is_file():
        return f"is a link to {os.readlink(path)}"
    if path.is_file():
        if place.overwrites or str(_read_json(path).get("format", "")).startswith(f"mdpr-{place.port}/"):
            return None
        return f"is a file that no earlier run wrote as {place.port}"
    if not path.is_dir():
        return "is neither a file nor a folder"
    names = {entry.name for _, entry in zip(range(100), os.scandir(path), strict=False)}
    if not names:
        return None
    marker = _read_json(path / MARKER)
    if marker.get("format") == MARKER_FORMAT and marker.get("port") == place.port:
        listed = {MARKER, *map(str, marker.get("files", []))}
        stray = next((name for name in _files(path) if name not in listed), None)
        return f"holds {stray}, which no earlier run wrote as {place.port}" if stray else None
    is_whole = "all.json" in names and names <= SCORES_FILES
    if place.port == "scores" and is_whole and all(_has_scores(path / name) for name in names):
        return None
    return f"is a folder that no earlier run wrote as {place.port}"


def _has_scores(path: Path) -> bool:
    return bool(keys := _read_json(path).keys()) and keys <= SCORES_KEYS


def _files(folder: Path) -> Iterator[str]:
    """Relative names of everything in `folder` but its folders; of a folder without entries, too."""
    for base, folders, names in os.walk(folder):
        inside = Path(base).relative_to(folder)
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        if not folders and not names and base != str(folder):
            yield f"{inside.as_posix()}/"
        for name in (*names, *links):
            yield (inside / name).as_posix()


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object; empty if `path` is none."""
    try:
        if not path.is_file() or path.stat().st_size > JSON_MAX_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _mark(place: Place, output: Path) -> None:
    if output.is_dir() and place.port != "scores":
        files = sorted(name for name in _files(output) if name != MARKER)
        content = {"format": MARKER_FORMAT, "port": place.port, "files": files}
        (output / MARKER).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _locked(place: Place) -> Iterator[None]:
    """The folder `place.work`, held by this process: left-overs of one that was killed are gone.

    Raises `ConfigError` if another process holds it.
    """
    for folder in reversed(place.final.parents):
        if not folder.is_dir():  # Path.mkdir(parents=True) is recursive, and fails at 1000 levels
            folder.mkdir(exist_ok=True)
    descriptor = _acquire(place)
    try:
        if place.old.exists() and not os.path.lexists(place.final):
            place.old.rename(place.final)  # killed between moving the old output aside and the new one in
        for path in place.work.iterdir():
            if path != place.lock:
                remove(path)
        os.truncate(descriptor, 0)
        owner = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.strftime("%H:%M")}
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        for path in place.work.iterdir():
            if path not in (place.lock, place.old):
                remove(path)
        if not os.path.lexists(place.old):
            place.lock.unlink()
        with suppress(OSError):  # another process has come for it since
            place.work.rmdir()
        os.close(descriptor)


def _acquire(place: Place) -> int:
    """A descriptor that holds the lock of `place`."""
    while True:
        with suppress(FileExistsError):
            place.work.mkdir()
        try:
            descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # its owner has removed the folder just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(place.lock) and os.path.samestat(os.fstat(descriptor), os.stat(place.lock)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"{_owner(place)}: wait for its end, or name another path") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            logger.warning("%s is on a file system without locks: run one stage at a time there", place.named)
            return descriptor
        os.close(descriptor)  # its owner has removed it just now


def _owner(place: Place) -> str:
    owner = _read_json(place.lock)
    host = "" if owner.get("host") == os.uname().nodename else f" on {owner.get('host')}"
    return f"pid {owner.get('pid')}{host} writes {place.named} since {owner.get('since')}"


def _put_in_place(targets: Mapping[Path, Place]) -> None:
    """Move what is there aside and the new outputs in, all of them or none; then remove the earlier outputs."""
    moved: list[tuple[Path, Path]] = []
    try:
        for target, place in targets.items():
            if os.path.lexists(target):
                before = place.aside if place.sets_aside and _foreign(place, target) else place.old
                target.rename(before)
                moved.append((before, target))
        for target, place in targets.items():
            place.new.rename(target)
            moved.append((target, place.new))
    except BaseException:
        for now, before in reversed(moved):
            now.rename(before)
        raise
    for place in targets.values():
        if os.path.lexists(place.aside):
            logger.warning("%s was not an earlier output: it is now %s", place.named, place.aside)
        remove(place.old)


def write_whole(path: Path, text: str, *, replaces: str | None = None) -> None:
    """`text` under a name of its own first, then renamed; makes the folders above. Raises `MdprError` if that fails.

    A device or a pipe is written to and a link followed: neither is replaced by a file. With `replaces`, a file that is
    there must hold these words near its start, as all that this program wrote there do: anything else is somebody's
    own, and a `ConfigError`.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    is_device = path.exists() and not path.is_file() and not path.is_dir()
    if replaces is not None and os.path.lexists(path) and not is_device and replaces not in _start_of(path):
        raise ConfigError(f"{path} exists and was not written by this command: name another file")
    partial = beside(path, ".", f".{uuid4().hex[:8]}.partial")
    try:
        if is_device:
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise MdprError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):  # the folder cannot be made or read either
            partial.unlink(missing_ok=True)


def _start_of(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(START_BYTES).decode(errors="replace")


@contextmanager
def dropped(count: int) -> Iterator[list[Path]]:
    """Names for `count` outputs in a folder that is removed when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield [Path(folder) / str(index) for index in range(count)]


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder that this module made or moved aside."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
