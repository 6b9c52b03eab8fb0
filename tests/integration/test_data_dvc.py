"""prepare from a Git repository whose data DVC keeps: the version that was asked for, from a folder and from S3."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import pytest
import yaml
from PIL import Image

from mdpr.artifacts import ImageRecord, read_card, write_image_records

pytest.importorskip("dvc_s3", reason="needs dvc-s3 (pip install 'mdpr[dev]')")
pytestmark = pytest.mark.integration

LOGIN = ("joe", "sesame-4711")
SETTINGS = ("profile=natural", "val_images_per_class=1", "test_share=0.25")
Call = Callable[..., subprocess.CompletedProcess[str]]


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_sources(folder: Path, images_per_class: int) -> None:
    """The same images three times: one folder a class, a CSV, Parquet."""
    records = [ImageRecord(picture(row), f"{row}.png", row % 2) for row in range(2 * images_per_class)]
    for record in records:
        for place in (folder / "shoes" / f"class {record.label}", folder / "listed" / "images"):
            place.mkdir(parents=True, exist_ok=True)
            (place / record.path).write_bytes(record.image)
    rows = [f"images/{record.path},class {record.label}" for record in records]
    (folder / "listed" / "images.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (folder / "table").mkdir(exist_ok=True)
    write_image_records(folder / "table" / "pool.parquet", records)
    write_image_records(folder / "table" / "test.parquet", records[:4])
    (folder / "table" / "classes.json").write_text(
        json.dumps({"classes": [{"index": 0, "name": "class 0"}, {"index": 1, "name": "class 1"}]})
    )


@dataclass(frozen=True)
class Shared:
    """A repository with two versions of its data, v1 and v2; `store` is the folder of its DVC remote."""

    folder: Path
    store: Path

    def md5(self, path: str, rev: str) -> str:
        command = ["git", "show", f"{rev}:{path}.dvc"]
        text = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout
        return str(yaml.safe_load(text)["outs"][0]["md5"])

    def commit(self, rev: str) -> str:
        command = ["git", "rev-parse", f"{rev}^{{commit}}"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment without settings of DVC or Git of its own, and with a home that can be searched."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text("[user]\n\tname = t\n\temail = t@example.org\n[init]\n\tdefaultBranch = main\n")
    away = ("DVC_", "AWS_", "GIT_", "XDG_", "MDPR_", "MLFLOW_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(away)}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "DVC_PROFILE_CACHE_DIR": str(home / "dvc"),
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], s3: str) -> Shared:
    """v1 and v2 of three data sets; the default remote is a folder, that of the branch `in-s3` a store."""
    folder, store = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("store")

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    run("dvc", "remote", "add", "--default", "store", str(store))
    (folder / "README.md").write_text("not DVC's\n")
    (folder / "plain").mkdir()
    (folder / "plain" / "x.txt").write_text("not DVC's\n")
    for version, images_per_class in (("v1", 8), ("v2", 12)):
        write_sources(folder, images_per_class)
        run("dvc", "add", "--quiet", "shoes", "listed", "table")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "-m", version)
        run("git", "tag", version)
        run("dvc", "push", "--quiet")
    run("git", "checkout", "--quiet", "-b", "in-s3")
    run("dvc", "remote", "add", "--default", "--force", "store", "s3://mlflow/dvc")
    run("dvc", "remote", "modify", "store", "endpointurl", s3)
    run("git", "commit", "--quiet", "-am", "store in S3")
    run("dvc", "push", "--quiet")
    run("git", "checkout", "--quiet", "main")
    shutil.rmtree(folder / ".dvc" / "cache")  # what is pulled comes from a remote
    for name in ("shoes", "listed", "table"):
        shutil.rmtree(folder / name)
    return Shared(folder, store)


@pytest.fixture
def prepare(tmp_path: Path, environment: dict[str, str], project_root: Path) -> Call:
    """`mdpr prepare` into tmp_path/prepared, with settings of the section as name=value."""

    def call(*settings: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text("prepare: {}\n")
        changes = [part for item in (*SETTINGS, *settings) for part in ("--set", f"prepare.{item}")]
        done = subprocess.run(
            [sys.executable, "-m", "mdpr", "prepare", "--prepared", str(tmp_path / "prepared"), *changes],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.mark.parametrize(("source", "path"), [("folder", "shoes"), ("csv", "listed"), ("parquet", "table")])
def test_the_revision_that_was_asked_for_is_what_is_prepared(
    shared: Shared, prepare: Call, tmp_path: Path, source: str, path: str
) -> None:
    for rev, images in (("v1", 16), ("v2", 24)):
        prepare(f"source={source}", f"repo={shared.folder}", f"rev={rev}", f"path={path}")
        card = read_card(tmp_path / "prepared")
        in_pool = images - card.images["test"] if source != "parquet" else images
        assert card.images["train"] + card.images["val"] == in_pool
        assert card.origin is not None
        assert card.origin.model_dump() == {
            "repo": str(shared.folder),
            "rev": rev,
            "path": path,
            "commit": shared.commit(rev),
            "md5": shared.md5(path, rev),
        }


def test_without_a_revision_it_is_the_last_commit(shared: Shared, prepare: Call, tmp_path: Path) -> None:
    prepare("source=folder", f"repo=file://{shared.folder}", "path=shoes")
    origin = read_card(tmp_path / "prepared").origin
    assert origin is not None
    assert (origin.rev, origin.commit) == ("", shared.commit("main"))


def test_a_store_in_s3(shared: Shared, prepare: Call, tmp_path: Path) -> None:
    prepare("source=folder", f"repo=file://{shared.folder}", "rev=in-s3", "path=shoes")
    origin = read_card(tmp_path / "prepared").origin
    assert origin is not None
    assert origin.md5 == shared.md5("shoes", "v2")


def test_it_needs_no_git_program_and_leaves_nothing_behind(
    shared: Shared, prepare: Call, environment: dict[str, str], tmp_path: Path
) -> None:
    home = Path(environment["HOME"])
    before = sorted(home.iterdir())
    prepare("source=folder", f"repo=file://{shared.folder}", "rev=v1", "path=shoes", PATH="")
    assert sorted(home.iterdir()) == before  # TMPDIR as well
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "prepared"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo": "no/such/folder"}, "shoes of no/such/folder at v1 cannot be pulled (No git repository was found"),
        ({"rev": "v9"}, " at v9 cannot be pulled (unknown Git revision 'v9'): check prepare.rev"),
        ({"path": "boots"}, ": there is no such path; "),
        ({"path": "plain"}, "plain of {repo} at v1 is not tracked by DVC"),
        ({"path": "shoes/class 0"}, " is not tracked by DVC"),
        ({"path": ""}, "prepare: repo and path go together"),
        ({"repo": ""}, "prepare: repo and path go together"),
        ({"source": "embedded"}, "prepare: source = embedded does not come from a repository"),
        ({"repo": "https://joe:sesame-4711@example.org/x.git"}, "prepare.repo: must not hold a login"),
        ({"repo": "https://sesame-4711@example.org/x.git"}, "prepare.repo: must not hold a login"),
        ({"repo": "ssh://git:sesame-4711@example.org/x.git"}, "prepare.repo: must not hold a login"),
    ],
)
def test_what_is_not_there_ends_in_one_line(
    shared: Shared, prepare: Call, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    given = {"source": "folder", "repo": str(shared.folder), "rev": "v1", "path": "shoes"} | changes
    done = prepare(*(f"{key}={json.dumps(value)}" for key, value in given.items()), code=2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message.format(repo=shared.folder) in line
    assert "sesame" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_store_that_is_away_a_missing_file_and_a_damaged_one(shared: Shared, prepare: Call, tmp_path: Path) -> None:
    settings = ("source=folder", f"repo=file://{shared.folder}", "rev=v1", "path=shoes")
    away = shared.store.with_name("away")
    shared.store.rename(away)
    assert "its DVC remote can be reached" in prepare(*settings, code=2).stderr.splitlines()[-1]
    away.rename(shared.store)
    prepare(*settings)
    shutil.rmtree(tmp_path / "prepared")
    victim = max(path for path in shared.store.rglob("*") if path.is_file() and path.suffix != ".dir")
    content = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(content[: len(content) // 2])
    assert "is damaged in the store (md5 differs)" in prepare(*settings, code=2).stderr.splitlines()[-1]
    victim.unlink()
    assert "see that it was pushed" in prepare(*settings, code=2).stderr.splitlines()[-1]
    victim.write_bytes(content)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_bad_image_is_named_by_its_place_in_the_repository(
    shared: Shared, prepare: Call, environment: dict[str, str], tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    for command in (
        ["git", "clone", "--quiet", str(shared.folder), str(clone)],
        ["dvc", "pull", "--quiet"],
        ["sh", "-c", "printf nothing > 'shoes/class 0/0.png'"],
        ["dvc", "commit", "--quiet", "--force", "shoes"],
        ["git", "commit", "--quiet", "-am", "broken"],
    ):
        subprocess.run(command, cwd=clone if clone.exists() else tmp_path, env=environment, check=True)
    line = prepare("source=folder", f"repo={clone}", "path=shoes", code=2).stderr.strip().splitlines()[-1]
    assert f"shoes of {clone}/class 0/0.png" in line


# --- a private repository ---------------------------------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def private(shared: Shared) -> Iterator[str]:
    """The address of the repository over HTTP, which asks for a login."""
    from dulwich.repo import Repo
    from dulwich.server import DictBackend
    from dulwich.web import make_wsgi_chain

    served = make_wsgi_chain(DictBackend({"/shoes.git": Repo(str(shared.folder))}))
    expected = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()

    def guarded(environ: dict, start: Callable) -> object:
        if environ.get("HTTP_AUTHORIZATION") != expected:
            start("401 Unauthorized", [("WWW-Authenticate", "Basic realm=shoes"), ("Content-Length", "0")])
            return [b""]
        return served(environ, start)

    server = make_server("127.0.0.1", 0, guarded, handler_class=Quiet)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/shoes.git"
    server.shutdown()
    server.server_close()


def test_a_login_stays_in_the_process(
    private: str, prepare: Call, environment: dict[str, str], tmp_path: Path, shared: Shared
) -> None:
    settings = ("source=folder", f"repo={private}", "rev=v1", "path=shoes")
    refused = prepare(*settings, code=2).stderr.splitlines()[-1]
    assert "MDPR_GIT_USERNAME and MDPR_GIT_PASSWORD" in refused
    name, password = LOGIN
    done = prepare(*settings, MDPR_GIT_USERNAME=name, MDPR_GIT_PASSWORD=password)
    assert read_card(tmp_path / "prepared").origin is not None
    assert password not in done.stdout + done.stderr
    for folder in (tmp_path, Path(environment["HOME"])):
        for path in folder.rglob("*"):
            assert not path.is_file() or password.encode() not in path.read_bytes(), path


# --- a container's user -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_a_uid_without_an_entry_in_passwd_pulls_as_others_do(
    home: str | None, shared: Shared, environment: dict[str, str], tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    unnamed = {key: value for key, value in environment.items() if key not in ("USER", "LOGNAME", "HOME", "TMPDIR")}
    unnamed |= {"DVC_SITE_CACHE_DIR": str(tmp_path / "dvc"), "TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    (tmp_path / "params.yaml").write_text("prepare: {source: folder, profile: natural}\n")
    reads_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # the interpreter may lie in /root
    command = [sys.executable, "-B", "-m", "mdpr", "prepare", "--prepared", "prepared"]
    source = ["--repo", f"file://{shared.folder}", "--rev", "v1", "--path", "shoes"]
    done = subprocess.run(
        ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *reads_all, *command, *source],
        cwd=tmp_path,
        env=unnamed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_card(tmp_path / "prepared").origin is not None
