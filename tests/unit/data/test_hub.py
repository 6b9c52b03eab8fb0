"""Data sets of the Hugging Face library, made here: splits, labels that are missing, and what is said about them."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mdpr.artifacts import read_card
from mdpr.data.sources import Place, Source, open_source
from mdpr.errors import DataError
from mdpr.params import PrepareParams

MakeFolder = Callable[..., Path]


def opened(kind: str, root: Path, **settings: object) -> Source:
    params = PrepareParams.model_validate({"source": kind, "root": str(root), **settings})
    return open_source(kind, Place.of(params))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets", reason="needs the library datasets (pip install 'mdpr[hub]')")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_a_hub_data_set_is_the_folder_it_was_made_of(hub: Path, make_folder: MakeFolder) -> None:
    folder = make_folder({"train": (3, 4, 5), "val": (1, 1, 1), "test": (2, 2, 2)})
    source, same = opened("huggingface", hub, hub_name=str(folder)), opened("folder", folder)
    assert source.classes == same.classes
    for split, expected in ((source.pool, same.pool), (source.val, same.val), (source.test, same.test)):
        assert split is not None
        assert expected is not None
        everything = np.arange(len(split.labels_N))
        assert sorted((image.read(), image.label) for image in split.images(everything)) == sorted(
            (image.read(), image.label) for image in expected.images(everything)
        )


def test_a_hub_data_set_that_is_not_there_is_named(hub: Path) -> None:
    with pytest.raises(DataError, match=r"prepare\.hub_name = \./no/such: cannot be loaded \(.*\): check name"):
        opened("huggingface", hub, hub_name="./no/such")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the library datasets: pip install 'mdpr\[hub\]'"):
        opened("huggingface", tmp_path, hub_name="x/y")


def write_hub(folder: Path, png: Callable[..., bytes], **labels: list[int | None]) -> Path:
    """A folder of Parquet files with the columns image and label, a file per split, classes a and b."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    folder.mkdir()
    for number, (split, values) in enumerate(labels.items()):
        images = [{"bytes": png(100 * number + row), "path": f"{row}.png"} for row in range(len(values))]
        table = pa.table({"image": images, "label": pa.array(values, pa.int64())})
        declared = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(declared), folder / f"{split}.parquet")
    return folder


LABELS: list[int | None] = [0] * 4 + [1] * 4


def test_a_split_without_labels_names_the_way_on(hub: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    name = str(write_hub(tmp_path / "set", png, train=LABELS, validation=LABELS, test=[-1] * 8))
    with pytest.raises(DataError, match=r"set test has no labels .* prepare\.test_from to val or share"):
        opened("huggingface", hub, hub_name=name)
    assert opened("huggingface", hub, hub_name=name, test_from="val").test is None  # prepare makes it of val


@pytest.mark.parametrize(("label", "message"), [(-1, "has label -1"), (None, "has no label"), (2, "has label 2")])
def test_a_row_without_a_label_is_named_or_left_out(
    label: int | None, message: str, hub: Path, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    name = str(write_hub(tmp_path / "set", png, train=[*LABELS[:-1], label]))
    with pytest.raises(DataError, match=f"set train row 7 {message}"):
        opened("huggingface", hub, hub_name=name)
    params = PrepareParams(source="huggingface", root=str(hub), hub_name=name, skip_bad=True)
    place = Place.of(params)
    assert open_source("huggingface", place).pool.labels_N.tolist() == [*LABELS[:-1], -1]
    assert len(place.log.left_out) == 1


def test_the_copy_is_never_put_into_the_data_set(hub: Path, tmp_path: Path, png: Callable[..., bytes]) -> None:
    name = write_hub(tmp_path / "set", png, train=LABELS)
    with pytest.raises(DataError, match=r"prepare\.root = .* would be part of"):
        opened("huggingface", tmp_path, hub_name=str(name))
    assert [path.name for path in name.iterdir()] == ["train.parquet"]


COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as `datasets` needs for one data set; every revision of it is `COMMIT`."""

    files: ClassVar[dict[str, bytes]] = {"README.md": b"# set\n"}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, name = self.path.partition("?")[0].partition("/resolve/")
        name = name.partition("/")[2]
        if name in self.files:
            self.reply(200, self.files[name], {"ETag": f'"{hashlib.sha256(self.files[name]).hexdigest()}"'})
        elif name or not path.startswith("/api/datasets/team/set"):
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif "/tree/" in path:
            entries = [{"type": "file", "path": key, "size": len(data), "oid": key} for key, data in self.files.items()]
            self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            info = {"id": "team/set", "sha": COMMIT, "siblings": [{"rfilename": key} for key in self.files]}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("revision", ["v1", ""])
def test_the_commit_behind_a_tag_is_recorded(
    revision: str, hub: Path, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_hub(hub.parent / "set", png, train=LABELS)
    monkeypatch.setattr(Hub, "files", Hub.files | {"train.parquet": (folder / "train.parquet").read_bytes()})
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = ("source=huggingface", "hub_name=team/set", f"rev={revision}", f"root={hub}", "profile=natural")
        (hub.parent / "params.yaml").write_text("{}")
        subprocess.run(
            [sys.executable, "-m", "mdpr", "prepare", "--prepared", "prepared"]
            + [word for setting in settings for word in ("--set", f"prepare.{setting}")],
            cwd=hub.parent,
            env=os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(hub.parent)},
            check=True,
            timeout=120,
        )
        server.shutdown()
    assert read_card(hub.parent / "prepared").hub_rev == COMMIT
