"""Sources in an object store: fsspec's own store in memory, and errors of a store and of a disk."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError

from mdpr.artifacts import read_card
from mdpr.data.dvc_origin import located
from mdpr.data.object_store import CACHE, SCRATCH, copied, open_address
from mdpr.errors import DataError, MdprError
from mdpr.params import PrepareParams
from mdpr.params.section import input_paths
from mdpr.stages.prepare import prepare

ADDRESS = "memory://bucket/set"
MakeSource = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty store, and a cache of this test."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were copied out of the store, in order."""
    keys: list[str] = []
    whole = MemoryFileSystem.get

    def get(files: MemoryFileSystem, source: list[str], target: list[str]) -> None:
        keys.extend(source)
        whole(files, source, target)

    monkeypatch.setattr(MemoryFileSystem, "get", get)
    return keys


def put(store: MemoryFileSystem, **contents: bytes) -> None:
    store.pipe({f"/bucket/set/{path}": content for path, content in contents.items()})


def read(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_source_is_copied_once_and_what_changed_again(store: MemoryFileSystem, asked: list[str]) -> None:
    put(store, **{"a/1": b"one", "a/2": b"two", "b/3": b""})
    with copied(ADDRESS) as (folder, first):
        assert read(folder) == {"a/1": b"one", "a/2": b"two", "b/3": b""}
        assert folder.name == "set"
    assert not folder.exists()
    assert (first.address, first.objects, first.bytes) == (ADDRESS, 3, 6)
    with copied(ADDRESS) as (_, again):
        assert again == first
    assert len(asked) == 3
    put(store, **{"a/2": b"2"})
    store.rm("/bucket/set/b/3")
    with copied(ADDRESS) as (folder, second):
        assert read(folder) == {"a/1": b"one", "a/2": b"2"}
    assert len(asked) == 4
    assert second.listing != first.listing


def test_a_copy_that_was_stopped_goes_on(
    store: MemoryFileSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, **{str(number): b"x" for number in range(5)})
    monkeypatch.setattr("mdpr.data.object_store.BATCH", 2)
    whole = MemoryFileSystem.get

    def stop(files: MemoryFileSystem, source: list[str], target: list[str]) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt
        whole(files, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get", stop)
        with pytest.raises(KeyboardInterrupt), copied(ADDRESS):
            pass
    with copied(ADDRESS) as (folder, _):
        assert len(read(folder)) == 5
    assert len(asked) == 5


def test_an_object_that_changes_under_way_is_an_error_and_not_kept(
    store: MemoryFileSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, **{"1": b"old", "2": b"two"})
    whole = MemoryFileSystem.get

    def change(files: MemoryFileSystem, source: list[str], target: list[str]) -> None:
        whole(files, source, target)
        put(store, **{"1": b"new"})

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get", change)
        with pytest.raises(DataError, match=r"1 objects changed .*\(1, "), copied(ADDRESS):
            pass
    with copied(ADDRESS) as (folder, _):
        assert read(folder) == {"1": b"new", "2": b"two"}
    assert len(asked) == 3


@pytest.mark.parametrize("key", ["../2", "a//b", "./a"])
def test_a_key_that_is_no_path_below_the_root_is_refused(store: MemoryFileSystem, key: str) -> None:
    put(store, **{"1": b"x"})
    store.store[f"/bucket/set/{key}"] = store.store["/bucket/set/1"]
    with pytest.raises(DataError, match="is no path"), copied(ADDRESS):
        pass
    del store.store[f"/bucket/set/{key}"]


@pytest.mark.parametrize("pair", [("a", "a/b"), ("c/d", "c/d/e/f")])
def test_two_objects_of_which_one_would_be_a_file_and_a_folder_are_named(
    store: MemoryFileSystem, pair: tuple[str, str]
) -> None:
    put(store, **{"1": b"x", "a-b": b"x"})
    for key in pair:
        store.store[f"/bucket/set/{key}"] = store.store["/bucket/set/1"]
    with pytest.raises(DataError, match=f"set/{pair[0]} and .*set/{pair[1]} ") as raised, copied(ADDRESS):
        pass
    assert "check the address" not in str(raised.value)
    for key in reversed(pair):
        del store.store[f"/bucket/set/{key}"]


def test_a_run_removes_what_a_killed_one_left_and_nothing_else(store: MemoryFileSystem, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    put(store, **{"1": b"x"})
    for mine in ("source-images", "copy-1", f"{SCRATCH}images"):
        (cache / mine).mkdir(parents=True)
        (cache / mine / "own.png").touch()
    code = (
        "import os, signal, sys; from pathlib import Path; from mdpr.data.object_store import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(cache)]).returncode == -signal.SIGKILL
    assert len(list(cache.glob("*/half"))) == 1
    with copied(ADDRESS) as (first, _):
        assert not list(cache.glob("*/half"))
        with copied(ADDRESS) as (second, _):
            assert read(first) == read(second) == {"1": b"x"}
    assert not first.exists()
    assert {file.parent.name for file in cache.rglob("own.png")} == {"source-images", "copy-1", f"{SCRATCH}images"}
    assert len(list(cache.iterdir())) == 4  # and the object


def test_nothing_there_and_one_object_are_named(store: MemoryFileSystem) -> None:
    put(store, **{"1": b"x"})
    for address, reason in ((f"{ADDRESS}/1", "is one object"), ("memory://bucket/none", "memory://bucket/none")):
        with pytest.raises(DataError, match=reason), copied(address):
            pass


def test_a_disk_that_is_too_small_is_said_before_a_copy(
    store: MemoryFileSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(store, **{"1": b"x" * 1000})
    free = type("Usage", (), {"free": 999})
    monkeypatch.setattr("mdpr.data.object_store.shutil.disk_usage", lambda path: free)
    with pytest.raises(DataError, match="MDPR_CACHE"), copied(ADDRESS):
        pass
    assert not asked
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"cannot be written .*MDPR_CACHE"), copied(ADDRESS):
        pass


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("gs://bucket/set", "gcsfs: pip install gcsfs"),
        ("azure://bucket/set", "adlfs"),
        ("nowhere://x", r"nowhere.*s3:// \(pip install 'mdpr\[s3\]'\), gs:// .*gcsfs.*, azure:// .*adlfs"),
    ],
)
def test_a_package_that_is_missing_is_named(address: str, reason: str) -> None:
    with pytest.raises(MdprError, match=reason) as raised:
        open_address(address)
    assert "\n" not in str(raised.value)


LOGINS = ["s3://sesame@bucket/set", "s3://KEY:sesame@bucket/set", "s3://KEY:ses/ame@bucket", "az://box:sesame@x/set"]


@pytest.mark.parametrize("address", LOGINS)
def test_a_login_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for refuse in (open_address, lambda root: PrepareParams(source="folder", root=root)):
        with pytest.raises((MdprError, ValueError), match="environment") as raised:
            refuse(address)
        line = raised.value.errors()[0]["msg"] if isinstance(raised.value, ValidationError) else str(raised.value)
        assert "\n" not in line
        assert not {"sesame", "ses/ame", "KEY"} & set(re.split(r"[^\w/]+", line))


@pytest.mark.parametrize(
    "address",
    ["abfs://container@account.dfs.core.windows.net/set", "s3://bucket/a@b", "s3://bucket/a:b@c", "http://h:80/a@b"],
)
def test_an_at_sign_need_not_be_a_login(address: str) -> None:
    assert PrepareParams(source="folder", root=address).root == address


def test_prepare_reads_it_as_a_folder_and_the_card_says_where_it_lay(
    store: MemoryFileSystem, make_folder: MakeSource, tmp_path: Path
) -> None:
    root = make_folder()
    store.put(str(root), "/bucket/set", recursive=True)
    settings = {"source": "folder", "profile": "natural", "val_from": "train_share"}
    prepare(tmp_path / "there", params=PrepareParams.model_validate({**settings, "root": ADDRESS}))
    prepare(tmp_path / "here", params=PrepareParams.model_validate({**settings, "root": str(root)}))
    there, here = read_card(tmp_path / "there"), read_card(tmp_path / "here")
    assert there.model_copy(update={"origin": None}) == here
    assert there.origin is not None
    assert there.origin.model_dump()["address"] == ADDRESS


def test_a_fault_in_it_is_named_by_the_address(store: MemoryFileSystem, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put(store, **{"cat/1.png": b"no image"})
    params = PrepareParams(source="folder", root=ADDRESS)
    with pytest.raises(DataError, match="memory://bucket/set/cat: no image"), located(params) as (root, _):
        raise DataError(f"{root}/cat: no image")
    assert not input_paths(params)  # nothing on this disk that an output could lie in


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"root": "s3://key:word@bucket/set", "source": "folder"}, "AWS_ACCESS_KEY_ID"),
        ({"root": "s3://bucket/set", "source": "huggingface", "hub_name": "x"}, "must be a folder"),
        ({"root": "s3://bucket/set", "source": "cifar100"}, "must be a folder"),
        ({"image_root": "s3://bucket/set", "source": "csv"}, "image_root must be a folder"),
    ],
)
def test_settings_that_do_not_fit_a_store(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PrepareParams.model_validate(settings)
