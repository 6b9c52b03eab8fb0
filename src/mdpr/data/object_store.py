"""A source in an object store, at an address that fsspec knows: copied once, then read as a folder of this disk.

Each object is kept in a cache under a name made of its address, its size and the store's own fingerprint of it (ETag).
So an interrupted copy goes on where it stopped, and of a bucket that changed only what changed is copied. Credentials
come from the environment or from the machine, as each store's library documents (AWS_ACCESS_KEY_ID, ...), never from
the address, which is recorded.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from mdpr.artifacts import StoreOrigin
from mdpr.errors import DataError, MdprError, one_line, printable
from mdpr.params.section import holds_login
from mdpr.progress import track

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)
CACHE = "MDPR_CACHE"  # environment variable: the folder that copies are kept in
# Names of DVC and Kubeflow for what fsspec calls otherwise; minio:// is any store that speaks S3, at AWS_ENDPOINT_URL.
SCHEMES = {"minio": "s3", "azure": "az"}
STORES = {"s3": "'mdpr[s3]'", "gs": "gcsfs", "azure": "adlfs"}  # scheme -> what to install
# What a store says of the content of an object, by the names of s3fs, gcsfs and adlfs; failing that, its time.
FINGERPRINTS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")
BATCH = 64  # objects that are asked for at once
SCRATCH, LOCK = "scratch-", ".mdpr-lock"  # folders of a run in the cache, and the file that it holds locked in its own


class StoredFile(NamedTuple):
    """An object of the source: its key in the store, its path below the root, its size and its fingerprint."""

    key: str
    path: str
    size: int
    fingerprint: str


def open_address(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, or of a path on this disk, and the path in it.

    Raises `MdprError` that names a package which is missing, or what is wrong with the address.
    """
    if holds_login(address):
        raise MdprError("an address must not hold a key or a password: give the store's login in the environment")
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ModuleNotFoundError as error:
        raise MdprError(f"{address} needs the package {error.name}: pip install 'mdpr[s3]'") from None
    scheme, _, rest = address.rpartition("://")
    scheme = SCHEMES.get(scheme, scheme) or "file"
    try:
        files, path = url_to_fs(f"{scheme}://{rest}", **({} if scheme == "file" else {"use_listings_cache": False}))
    except ImportError:
        needed = known_implementations.get(scheme, {}).get("class", scheme).partition(".")[0]
        extra = STORES["s3"] if needed == "s3fs" else needed
        raise MdprError(f"{address} needs the package {needed}: pip install {extra}") from None
    except ValueError as error:
        known = ", ".join(f"{name}:// (pip install {package})" for name, package in STORES.items())
        raise MdprError(
            f"{address} cannot be opened ({one_line(error)}): name a folder of this disk, or an address of {known}"
        ) from None
    return files, path.rstrip("/")


@contextmanager
def store_errors(address: str, kind: type[MdprError]) -> Iterator[None]:
    """Whatever a store's library raises, each has classes of its own, as one error of `kind`."""
    try:
        yield
    except MdprError:
        raise
    except Exception as error:
        raise kind(
            f"{address} cannot be read ({one_line(error)[:200]}): check the address, AWS_ENDPOINT_URL and the keys of "
            "its store"
        ) from error


@contextmanager
def copied(address: str) -> Iterator[tuple[Path, StoreOrigin]]:
    """The source at `address` as a folder, for as long as this lasts, and a digest of what the store listed.

    Raises `DataError` in one line for an address that does not answer or holds nothing, for a disk that is too small,
    and for a source that changed while it was copied.
    """
    files, root = open_address(address)
    cache = cache_folder()
    with store_errors(address, DataError):
        listed = list_files(files, root, address)
    with ExitStack() as held:
        with _os_errors(cache):
            scratch = held.enter_context(scratch_folder(cache))
            copy_missing(files, root, listed, cache, scratch, address)
            folder = scratch / "source" / (posixpath.basename(root) or "source")
            for item in listed:
                target = folder / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(_place(cache, address, item), target)
        total = sum(item.size for item in listed)
        logger.info("%s: %s objects, %s MB", address, f"{len(listed):,}", f"{total / 1e6:,.1f}")
        yield folder, StoreOrigin(address=address, objects=len(listed), bytes=total, listing=listing_digest(listed))


def list_files(files: AbstractFileSystem, root: str, address: str) -> list[StoredFile]:
    """Every object below `root`, sorted by path.

    Raises `DataError` for none, and for keys that a folder cannot have: no path, or below another object.
    """
    found = files.find(root, detail=True)
    listed = []
    for key, info in found.items():
        path = posixpath.relpath(key, root)
        if key.endswith("/") or info["type"] == "directory":  # an object of no bytes that stands for a folder
            continue
        if path == ".":
            raise DataError(f"{address} is one object: name the folder that holds the source")
        if any(part in ("", ".", "..") for part in key.removeprefix(f"{root}/").split("/")):
            raise DataError(f"{address}: the key {printable(key)} is no path of a folder: rename it")
        listed.append(StoredFile(key, path, int(info["size"]), _fingerprint(info)))
    if not listed:
        raise DataError(f"{address} holds no object: check the address")
    keys = {item.path: item.key for item in listed}
    for path, key in keys.items():
        if above := next((keys[str(parent)] for parent in PurePosixPath(path).parents if str(parent) in keys), None):
            raise DataError(
                f"{address}: {printable(above)} and {printable(key)} cannot lie in one folder, in which the first is a "
                "file: rename one of these objects"
            )
    return sorted(listed, key=lambda item: item.path)


def _fingerprint(info: dict[str, Any]) -> str:
    return next((str(info[key]).strip('"') for key in FINGERPRINTS if info.get(key)), "")


def listing_digest(listed: Sequence[StoredFile]) -> str:
    """sha256 over path, size and fingerprint of each object: another one if anything was added, changed or removed."""
    lines = "".join(f"{item.path}\0{item.size}\0{item.fingerprint}\n" for item in listed)
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_folder() -> Path:
    """MDPR_CACHE, or `mdpr` in the user's folder of caches.

    Nothing in it is ever removed by mdpr but its own copies of objects that changed while they were copied, and the
    scratch folders of runs that are over.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get(CACHE) or os.path.join(caches, "mdpr"))


@contextmanager
def scratch_folder(cache: Path) -> Iterator[Path]:
    """A folder in the cache for as long as this lasts. A run that is killed leaves its own to the next run.

    The lock ends with the process, however that ends. It is taken before the file has its name: if the lock of a folder
    is free, its run is over.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{SCRATCH}*/{LOCK}"):
        with suppress(OSError), left.open("r+") as lock:  # OSError: its run is alive, or the folder is gone by now
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as name, open(f"{name}/{LOCK}.new", "w") as lock:
        with suppress(OSError):  # a disk without locks: no other run gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, f"{name}/{LOCK}")
        yield Path(name)


def copy_missing(
    files: AbstractFileSystem, root: str, listed: Sequence[StoredFile], cache: Path, scratch: Path, address: str
) -> None:
    """Copy the objects that the cache lacks, `BATCH` at a time; each appears there whole or not at all."""
    missing = [item for item in listed if not _place(cache, address, item).exists()]
    if not missing:
        return
    needed, free = sum(item.size for item in missing), shutil.disk_usage(cache).free
    if needed > free:
        raise DataError(
            f"{address} needs {needed / 1e9:,.1f} GB, {cache} has {free / 1e9:,.1f} GB free: name a folder of a larger "
            f"disk by the environment variable {CACHE}"
        )
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    for batch in track(batches, f"copy {posixpath.basename(root)}", total=len(batches)):
        targets = [scratch / str(index) for index in range(len(batch))]
        with store_errors(address, DataError):
            files.get([item.key for item in batch], [str(target) for target in targets])
        for item, target in zip(batch, targets, strict=True):
            if target.stat().st_size != item.size:
                raise DataError(f"{address}: {printable(item.key)} was cut short: try again")
            place = _place(cache, address, item)
            place.parent.mkdir(parents=True, exist_ok=True)
            target.replace(place)
    with store_errors(address, DataError):
        now = set(list_files(files, root, address))
    if changed := [item for item in missing if item not in now]:
        for item in changed:
            _place(cache, address, item).unlink(missing_ok=True)  # its content may be the new one
        raise DataError(
            f"{address}: {len(changed)} objects changed while they were copied ({printable(changed[0].path)}, ...): "
            "run it again once nobody writes there"
        )


def _place(cache: Path, address: str, item: StoredFile) -> Path:
    """Where the cache keeps an object."""
    store = os.environ.get("AWS_ENDPOINT_URL", "")  # two stores may have a bucket of one name
    name = hashlib.sha256("\0".join([store, address.rstrip("/"), *map(str, item[1:])]).encode()).hexdigest()
    return cache / name[:2] / name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


@contextmanager
def _os_errors(cache: Path) -> Iterator[None]:
    """A cache that cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{cache} cannot be written ({error.strerror or error}): name another folder by the environment variable "
            f"{CACHE}"
        ) from None
