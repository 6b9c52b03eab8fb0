"""A team's own project: from a wheel, by the tutorial to the letter, to a champion on own pictures."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pyarrow.parquet as pq
import pytest
import yaml
from benchmarks.llm_stub import running, usual

from mdpr import project
from mdpr.errors import MdprError
from mdpr.params import DIMENSIONS

pytestmark = pytest.mark.integration
Run = Callable[..., str]
TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
NOT_RUN = ("pip install", "cd ", "mdpr serve")  # the wheel is installed; test_serving.py starts servers
AUTHOR = {f"GIT_{who}_{what}": "somebody@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
COUNTS = {9: 40, 6: 20, 8: 12}  # label of Fashion-MNIST -> pictures


@pytest.fixture(scope="module")
def installed(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, project_root)
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (file,) = folder.glob("mdpr-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    install = ("--python", folder / "venv", "install", "--no-deps", "--no-index", "--no-compile", file)
    subprocess.run([*pip, *install], check=True, capture_output=True)
    # As a line of a .pth file, the folder adds its packages and not its own .pth files, which lead to the checkout.
    (site_packages(folder / "venv") / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "venv"


def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python3.*/site-packages")
    return folder


@pytest.fixture(scope="module")
def environment(installed: Path) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "DVC_", "GIT_")) and key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    path = (str(installed / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    return kept | {"PATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def run(environment: dict[str, str]) -> Run:
    def call(folder: Path, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


@pytest.fixture(scope="module")
def knowledge(project_root: Path) -> list[dict[str, Any]]:
    """The sentences of the embedded classes that the pictures show, in order of their names."""
    content = json.loads((project_root / "data/embedded/knowledge/fashion-mnist.json").read_text())
    return sorted((item for item in content["classes"] if item["index"] in COUNTS), key=lambda item: str(item["name"]))


@pytest.fixture(scope="module")
def pictures(project_root: Path, knowledge: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's own pictures, one folder per class, of uneven size."""
    folder = tmp_path_factory.mktemp("pictures")
    table = pq.read_table(project_root / "data/embedded/fashion-mnist/pool.parquet").to_pylist()
    for item in knowledge:
        rows = [row for row in table if row["label"] == item["index"]][: COUNTS[item["index"]]]
        (folder / item["name"]).mkdir()
        for number, row in enumerate(rows):
            (folder / item["name"] / f"{number}.png").write_bytes(row["image"]["bytes"])
    return folder


@pytest.fixture(scope="module")
def team(
    pictures: Path, installed: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The project after every command and setting of docs/tutorial.md, in their order.

    What a reader replaces is replaced: the folder of images, the address of the remote, the chat model (a server here).
    The backbone is the embedded one, tuned for two epochs; the gate asks no more than a dozen test images can show.
    """
    above = tmp_path_factory.mktemp("team")
    folder = above / "shoe-project"
    tiny = site_packages(installed) / "mdpr/project/files/data/embedded/mdpr-tiny/mdpr-tiny"
    small = {
        "backbone": {"architecture": f"{tiny}.json", "weights": f"{tiny}.safetensors", "device": "cpu"},
        "prepare": {"val_images_per_class": 3, "short_side_px": 0},
        "tune": {"epochs": 2, "context_tokens": 4, "prompt_depth": 2, "augment": "none"},
        "evaluate": {"gallery_images": 2},
    }
    replaced = {"/data/shoes": str(pictures), "/path/or/s3/address": str(above / "remote"), "epochs=10": "epochs=1"}
    shell = {**environment, "OPENAI_API_KEY": "key", "BROWSER": "true", "HOME": str(above), **AUTHOR}
    with running(usual(0.0)) as server:
        shell["OPENAI_BASE_URL"] = server.url
        for block in indented_blocks(TUTORIAL.read_text(encoding="utf-8")):
            if re.match(r"\w+:$", block[0]):
                change_params(folder, yaml.safe_load("\n".join(block)))
                continue
            for line in block:
                if line.startswith(NOT_RUN):
                    continue
                for written, here in replaced.items():
                    line = line.replace(written, here)
                where = folder if folder.exists() else above
                done = subprocess.run(["bash", "-c", line], cwd=where, env=shell, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                if line.startswith("mdpr init"):
                    change_params(folder, small)
                    policy = folder / "mlflow/promotion.yaml"
                    wide = re.sub(r"(all|few): -[25]\.0\b", r"\1: -90.0", policy.read_text())
                    policy.write_text(wide.replace("max_ece_percent: 25", "max_ece_percent: 100"))
                    shutil.copytree(pictures / "bag", folder / "photos")
    return folder


def indented_blocks(page: str) -> list[list[str]]:
    """The commands and settings of a page of Markdown: its indented blocks, line by line."""
    return [
        [line[4:] for line in block.splitlines()] for block in re.findall(r"(?:^    .*\n)+", page, flags=re.MULTILINE)
    ]


def change_params(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Type `settings` into params.yaml."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, values in settings.items():
        params[section] |= values
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def test_an_empty_folder_becomes_a_project_with_a_champion_by_the_tutorial(team: Path, run: Run) -> None:
    assert json.loads((team / "data/promotion.json").read_text())["champion_after"] == "1"
    assert len((team / "predictions.csv").read_text().splitlines()) == 1 + len(list((team / "photos").iterdir()))
    assert not [name for name in run(team, "git", "ls-files", "data").split() if not name.endswith(".gitignore")]
    assert (team.parent / "remote").is_dir()


def test_nothing_comes_from_the_checkout(run: Run, installed: Path, project_root: Path, tmp_path: Path) -> None:
    shown = run(tmp_path, "python", "-c", "import mdpr, sys; print(mdpr.__file__, *sys.path, sep='\\n')").splitlines()
    assert Path(shown[0]).is_relative_to(installed)
    assert not [path for path in shown if Path(path) in (project_root, project_root / "src")]


def test_predict_classifies_a_folder_and_says_what_it_could_not_read(team: Path, pictures: Path, run: Run) -> None:
    (team / "photos/broken.png").write_bytes(b"not a picture")
    (team / "photos/notes.txt").write_text("not one either")
    printed = run(team, "mdpr", "predict", "photos", "--top-k", "2", "--routing")
    assert "13 images, 1 could not be read" in printed
    assert "passed over: 1 files without the suffix of an image, for example photos/notes.txt" in printed
    with (team / "predictions.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert "not an image" in rows["photos/broken.png"]["error"]
    good = [row for name, row in rows.items() if "broken" not in name]
    assert {row["class"] for row in good} <= {item.name for item in pictures.iterdir()}
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in good)
    assert all(0 <= float(row[dimension]) <= 1 for row in good for dimension in DIMENSIONS)
    run(team, "mdpr", "predict", "photos", "--model", "data/model", "--top-k", "2", "--routing", "--out", "local.csv")
    assert (team / "local.csv").read_text() == (team / "predictions.csv").read_text()


def test_predict_that_is_killed_leaves_the_earlier_table(
    team: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    picture = next((team / "photos").glob("[0-9]*.png"))
    listed, out = tmp_path / "list.csv", tmp_path / "out.csv"
    listed.write_text("path\n" + f"{picture}\n" * 100_000)
    before = shutil.copy(team / "predictions.csv", out).read_bytes()
    command = ["mdpr", "predict", str(listed), "--model", "data/model", "--out", str(out)]
    with subprocess.Popen(command, cwd=team, env=environment, stderr=subprocess.DEVNULL) as process:
        while not any(path.stat().st_size for path in tmp_path.glob(".out.csv.*.partial")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.png"], "does not exist"),
        (["data/prepared"], "no image in"),
        (["photos/broken.png", "--model", "data/model"], "none of the 1 images"),
        (["photos", "--model", "data/model", "--out", "params.yaml"], "was not written by mdpr predict"),
        (["photos", "--model", "models:/nobody@champion"], "nobody"),
    ],
)
def test_predict_refuses_in_one_line(arguments: list[str], words: str, team: Path, run: Run) -> None:
    before = (team / "params.yaml").read_bytes()
    printed = run(team, "mdpr", "predict", *arguments, code=2)
    assert words in printed.strip().splitlines()[-1]
    assert (team / "params.yaml").read_bytes() == before


def test_the_notebook_runs_in_the_project_from_top_to_bottom(
    team: Path, installed: Path, environment: dict[str, str], project_root: Path
) -> None:
    notebook = nbformat.read(project_root / "examples/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": team}}
    )
    packages = str(site_packages(installed))  # the kernel is that of the environment that runs the tests
    client.execute(env={**environment, "PYTHONPATH": packages, "IPYTHONDIR": str(team.parent)})
    outputs = [output for cell in client.nb.cells for output in cell.get("outputs", ())]
    answers, bars, comparison = (out.data["text/plain"] for out in outputs if out.output_type == "execute_result")
    assert "true class" in answers
    assert "Chart" in bars
    assert "p (Holm)" in comparison
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 3


def test_the_graph_compiles_in_a_project_without_one(team: Path, run: Run, tmp_path: Path) -> None:
    run(team, "mdpr", "pipeline", "compile", "--output", str(tmp_path))
    assert list(tmp_path.glob("*.yaml"))


def test_update_writes_what_is_untouched_and_shows_the_rest(team: Path, run: Run) -> None:
    (team / "README.md").write_text("ours\n")
    (team / ".dvcignore").unlink()
    printed = run(team, "mdpr", "init", "--update", ".")
    assert "-ours" in printed
    assert "it stays as it is" in printed
    assert (team / "README.md").read_text() == "ours\n"
    assert (team / ".dvcignore").exists()
    assert "params.yaml: you changed it" in printed


def test_init_refuses_where_something_is(tmp_path: Path, run: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for command in (("init", "full"), ("demo", "--folder", "full")):
        printed = run(tmp_path, "mdpr", *command, code=2)
        assert "is not empty" in printed
        assert "--update" not in printed  # it would refuse a folder that is no project
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    subprocess.run(["git", "init", "--quiet", tmp_path / "other"], check=True)
    assert "lies in the repository" in run(tmp_path, "mdpr", "init", "other/inner", code=2)
    assert not (tmp_path / "other/inner").exists()
    (tmp_path / "other/.gitignore").write_text("build/\n")
    (tmp_path / "pictures").mkdir()
    run(tmp_path, "mdpr", "init", "other/build/inner", "--images", "pictures")
    params = yaml.safe_load((tmp_path / "other/build/inner/params.yaml").read_text())
    assert params["prepare"]["root"] == str(tmp_path / "pictures")
    assert "mdpr init --update" in run(tmp_path, "mdpr", "init", "other/build/inner", code=2)
    printed = run(tmp_path / "other", "mdpr", "init", "../beside it", "--images", "data/later")
    assert "cd '../beside it'; put images into data/later; " in printed
    assert "is a file" in run(tmp_path, "mdpr", "init", "full/notes.txt/new", code=2)
    assert "of the recipe own-data" in run(tmp_path, "mdpr", "demo", "--folder", "other/build/inner", code=2)
    assert "do not come with the package" in run(tmp_path, "mdpr", "demo", "imagenet-lt", code=2)
    assert "there is no recipe" in run(tmp_path, "mdpr", "init", "new", "--recipe", "nothing", code=2)
    assert not (tmp_path / "new").exists()


def test_init_without_git_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MdprError, match="git is not on the path"):
        project.create(tmp_path / "new", project.Choices())
    assert not (tmp_path / "new").exists()
