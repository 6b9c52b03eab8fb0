"""DVC's data through a real S3 server: pushed from one clone, pulled in another, imported into a third project.

And a source that lies in the store itself, as `prepare.root`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from mdpr.artifacts import ImageRecord, sha256, write_image_records
from mdpr.data.sources.source import encode_png

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("moto", "dvc_s3", "flask_cors")),
        reason="needs moto's server and dvc-s3 (pip install 'mdpr[dev]')",
    ),
]

Run = Callable[..., str]
BUCKET = "mdpr-data"
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment with keys for the store and no settings of DVC or git of its own."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text(
        "[user]\n\tname = test\n\temail = test@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "AWS_", "GIT_", "XDG_"))}
    return kept | {
        "HOME": str(home),
        "DVC_PROFILE_CACHE_DIR": str(home / "dvc"),  # DVC remembers there what a remote holds, by its address
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def s3(environment: dict[str, str]) -> Iterator[str]:
    """The address of an S3 server in a process of its own, with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, "the S3 server ended"
            try:
                bucket = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")  # noqa: S310
                urllib.request.urlopen(bucket).close()  # noqa: S310
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            pytest.fail("the S3 server did not answer within 30 s")
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def run(environment: dict[str, str]) -> Run:
    def call(folder: Path, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    return call


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, run: Run, s3: str) -> Path:
    """A git repository with two versions of data/shoes in S3; the first is tagged v1."""
    folder = tmp_path_factory.mktemp("shared")
    start_project(folder, run)
    run(folder, "dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", s3)
    for version in (1, 2):
        (folder / "data" / "shoes").mkdir(parents=True, exist_ok=True)
        records = [ImageRecord(f"{version}-{row}".encode() * 1000, f"{row}.png", row % 2) for row in range(50)]
        write_image_records(folder / "data" / "shoes" / "pool.parquet", records)
        run(folder, "dvc", "add", "--quiet", "data/shoes")
        run(folder, "git", "add", "--all")
        run(folder, "git", "commit", "--quiet", "-m", f"version {version}")
        run(folder, "git", "tag", f"v{version}")
        run(folder, "dvc", "push", "--quiet")
    return folder


def test_a_clone_pulls_the_same_bytes_out_of_s3(shared: Path, tmp_path: Path, run: Run) -> None:
    run(tmp_path, "git", "clone", "--quiet", str(shared), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "data" / "shoes").exists()
    run(clone, "dvc", "pull", "--quiet")
    assert sha256(clone / "data" / "shoes") == sha256(shared / "data" / "shoes")
    run(clone, "git", "checkout", "--quiet", "v1")
    run(clone, "dvc", "pull", "--quiet")
    assert sha256(clone / "data" / "shoes") != sha256(shared / "data" / "shoes")


def test_import_takes_a_revision_and_remembers_it(shared: Path, tmp_path: Path, run: Run) -> None:
    project = consumer(tmp_path, run)
    told = run(project, "mdpr", "data", "import", "--repo", str(shared), "--path", "data/shoes", "--rev", "v1")
    assert "prepare.root = data/shoes" in told
    origin = (project / "data" / "shoes.dvc").read_text()
    first = run(shared, "git", "rev-parse", "v1").strip()
    assert "rev: v1" in origin
    assert f"rev_lock: {first}" in origin
    rows = (project / "data" / "shoes" / "pool.parquet").read_bytes()
    assert b"1-0" * 1000 in rows
    assert b"2-0" not in rows
    run(project, "git", "add", "data/shoes.dvc")  # not one of the files that git ignores
    again = run(project, "mdpr", "data", "import", "--repo", str(shared), "--path", "data/shoes", code=2)
    assert again == "error: data/shoes exists: remove it, or name another place with --out\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--path": "data/nothing"}, "error: data/nothing of "),
        ({"--rev": "v9"}, " at v9 cannot be imported ("),
    ],
)
def test_what_cannot_be_imported_ends_in_one_line(
    shared: Path, tmp_path: Path, run: Run, options: dict[str, str], message: str
) -> None:
    project = consumer(tmp_path, run)
    given = {"--repo": str(shared), "--path": "data/shoes"} | options
    said = run(project, "mdpr", "data", "import", *(word for pair in given.items() for word in pair), code=2)
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said
    assert list((project / "data").iterdir()) == []


def test_experiments_over_data_sets(tmp_path: Path, run: Run, project_root: Path) -> None:
    """`dvc exp run -S` over protocols: each experiment has its own prepared data, and the cache keeps both."""
    project = consumer(tmp_path, run)
    root = project_root / "data" / "embedded" / "fashion-mnist"
    (project / "params.yaml").write_text(
        f"prepare: {{root: {root}, profile: natural, max_images_per_class: 20, imbalance_ratio: 2,"
        " val_images_per_class: 2}\n"
    )
    (project / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: mdpr prepare --prepared data/prepared\n"
        "    params: [prepare]\n    outs: [data/prepared]\n"
    )
    run(project, "git", "add", "--all")
    run(project, "git", "commit", "--quiet", "-m", "start")
    totals = []
    for profile in ("exponential", "step"):
        run(project, "dvc", "exp", "run", "--quiet", "-S", f"prepare.profile={profile}")
        totals.append(json.loads((project / "data" / "prepared" / "card.json").read_text())["images"]["train"])
    assert totals == [140, 150]


def consumer(tmp_path: Path, run: Run) -> Path:
    """Another project, with an empty data/."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    start_project(folder, run)
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "-m", "start")
    return folder


def start_project(folder: Path, run: Run) -> None:
    """Git and DVC with this project's own settings and rules of what git ignores."""
    (folder / ".dvc").mkdir()
    for name in (".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(PROJECT / name, folder / name)
    run(folder, "git", "init", "--quiet")


@pytest.fixture(scope="module")
def pictures(s3: str, environment: dict[str, str]) -> str:
    """The address of a folder per class in the store."""
    return upload(s3, environment, "pictures", {"bag": 12, "shirt": 12})


def upload(s3: str, environment: dict[str, str], folder: str, counts: dict[str, int]) -> str:
    """Pictures of classes as objects of the bucket below `folder`; returns the address."""
    boto3 = pytest.importorskip("boto3")
    login = {"aws_access_key_id": environment["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1", **login)
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            pixels = np.random.default_rng(1000 * label + number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}/{number}.png", Body=encode_png(pixels))
    return f"s3://{BUCKET}/{folder}"


SETTINGS = ("--set", "prepare.source=folder", "--set", "prepare.profile=natural")


def test_prepare_reads_pictures_out_of_s3(
    pictures: str, s3: str, environment: dict[str, str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("mdpr", "prepare", "--prepared", "prepared", *SETTINGS, "--set", f"prepare.root={pictures}")
    (tmp_path / "params.yaml").write_text("prepare: {}\n")
    monkeypatch.setitem(environment, "AWS_ENDPOINT_URL", s3)
    monkeypatch.setitem(environment, "MDPR_CACHE", str(tmp_path / "cache"))
    run(tmp_path, *command)
    first = json.loads((tmp_path / "prepared/card.json").read_text())
    assert sum(first["images"].values()) == 24
    assert (first["origin"]["address"], first["origin"]["objects"]) == (pictures, 24)
    kept = {file.name for file in (tmp_path / "cache").rglob("*")}
    upload(s3, environment, "pictures", {"bag": 13})  # as before, and one more
    run(tmp_path, *command)
    second = json.loads((tmp_path / "prepared/card.json").read_text())
    assert second["origin"]["objects"] == 25
    assert second["origin"]["listing"] != first["origin"]["listing"]
    assert len({file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()} - kept) == 1


@pytest.mark.parametrize(
    ("root", "variables", "reason"),
    [
        (f"s3://{BUCKET}/nothing", {}, "holds no object"),
        ("s3://no-such-bucket/set", {}, "s3://no-such-bucket/set"),
        (f"s3://{BUCKET}/pictures", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL"),
    ],
)
def test_a_store_that_has_it_not_is_named_in_one_line(
    root: str,
    variables: dict[str, str],
    reason: str,
    pictures: str,
    s3: str,
    environment: dict[str, str],
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "params.yaml").write_text("prepare: {}\n")
    quick = {"AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": s3, "MDPR_CACHE": str(tmp_path / "cache")}
    for name, value in (quick | variables).items():
        monkeypatch.setitem(environment, name, value)
    said = run(tmp_path, "mdpr", "prepare", "--prepared", "out", *SETTINGS, "--set", f"prepare.root={root}", code=2)
    assert reason in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_dvc_sees_that_a_bucket_changed(
    s3: str, environment: dict[str, str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dependency ${prepare.root} of the project's own dvc.yaml, an address."""
    address = upload(s3, environment, "watched", {"bag": 8, "shirt": 8})
    for name, value in {"AWS_ENDPOINT_URL": s3, "MDPR_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setitem(environment, name, value)
    project = consumer(tmp_path, run)
    pipeline = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
    prepare = pipeline["stages"]["prepare"]
    assert "${prepare.root}" in prepare["deps"]
    prepare["deps"] = ["${prepare.root}"]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"vars": pipeline["vars"], "stages": {"prepare": prepare}}))
    (project / "params.yaml").write_text(
        yaml.safe_dump({"prepare": {"source": "folder", "profile": "natural", "root": address}})
    )
    run(project, "dvc", "repro")
    assert run(project, "dvc", "status").startswith("Data and pipelines are up to date")
    upload(s3, environment, "watched", {"bag": 9})
    assert address in run(project, "dvc", "status")
    run(project, "dvc", "repro")
    card = json.loads((project / "data/prepared/card.json").read_text())
    assert card["origin"]["objects"] == 17
