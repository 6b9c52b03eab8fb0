"""Every recipe of CONTRIBUTING.md, "How to add", followed in a copy of the project: what it names must be enough."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mdpr.stages.stage import STAGES

pytestmark = pytest.mark.integration
KNOWLEDGE = "data/embedded/knowledge/fashion-mnist.json"


@pytest.fixture
def project(copy_project: Callable[[Path], None], tmp_path: Path) -> Path:
    copy_project(tmp_path)
    return tmp_path


def edit(project: Path, name: str, before: str, after: str) -> None:
    """Put `after` in place of the one `before` in a file of the copy."""
    path = project / name
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{name} holds {text.count(before)} of {before!r}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def append(project: Path, name: str, text: str) -> None:
    with (project / name).open("a", encoding="utf-8") as stream:
        stream.write(text)


def into_table(project: Path, name: str, table: str, line: str) -> None:
    """Add a line to the dictionary called `table`."""
    path = project / name
    text, count = re.subn(
        rf"(^{table}\b[^\n]*\{{\n)", rf"\g<1>    {line}\n", path.read_text("utf-8"), flags=re.MULTILINE
    )
    assert count == 1, f"{name} has no table {table}"
    path.write_text(text, encoding="utf-8")


def run(project: Path, *arguments: str, code: int = 0) -> str:
    """Run Python in the copy, with the copy's code."""
    environment = os.environ | {"PYTHONPATH": f"{project / 'src'}{os.pathsep}{project}"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_tuner_a_router_a_sampler_and_a_loss_train(project: Path, encoded: Mapping[str, Path]) -> None:
    """All at once, because each needs a training run."""
    edit(
        project,
        "src/mdpr/model/tuners.py",
        "TUNERS: dict",
        "def _mine(backbone, params, classes):\n    return _lora(backbone, params, classes)\n\n\nTUNERS: dict",
    )
    into_table(project, "src/mdpr/model/tuners.py", "TUNERS", '"mine": _mine,')
    edit(
        project,
        "src/mdpr/params/tuning.py",
        '"ssf", "bitfit"]',
        '"ssf", "bitfit", "mine"]',
    )
    edit(
        project,
        "src/mdpr/images/loading.py",
        "ORDERS: dict",
        "def reversed_order(label_N, seed, epoch):\n    return np.arange(len(label_N))[::-1].copy()\n\n\nORDERS: dict",
    )
    into_table(project, "src/mdpr/images/loading.py", "ORDERS", '"reversed": reversed_order,')
    edit(
        project,
        "src/mdpr/params/tuning.py",
        'Literal["instance", "class_balanced"]',
        'Literal["instance", "class_balanced", "reversed"]',
    )
    edit(
        project,
        "src/mdpr/training/losses.py",
        "BASE_LOSSES: dict",
        "def _halved(counts_C, tau, scale):\n    return _focal(counts_C, tau, scale)\n\n\nBASE_LOSSES: dict",
    )
    into_table(project, "src/mdpr/training/losses.py", "BASE_LOSSES", '"halved": _halved,')
    edit(project, "src/mdpr/params/tuning.py", '"focal", "class_balanced"]', '"focal", "class_balanced", "halved"]')
    into_table(project, "src/mdpr/model/routing.py", "ROUTERS", '"even": lambda params, w, d: PairedGate(w, d),')
    edit(
        project,
        "src/mdpr/params/tuning.py",
        'Literal["attention", "paired_gate"]',
        'Literal["attention", "paired_gate", "even"]',
    )
    ports = [word for port in ("prepared", "probe", "features") for word in (f"--{port}", str(encoded[port]))]
    chosen = ["--prompting", "mine", "--sampling", "reversed", "--base-loss", "halved", "--router", "even"]
    run(
        project,
        "-m",
        "mdpr",
        "tune",
        *ports,
        "--model",
        "model",
        *chosen,
        "--epochs",
        "1",
        "--set",
        "backbone.device=cpu",
    )
    assert '"prompting": "mine"' in (project / "model/config.json").read_text()


def test_a_source_gives_the_splits(project: Path) -> None:
    append(
        project,
        "src/mdpr/data/sources/folders.py",
        "\n\ndef twice_source(place):\n    return folder_source(place)\n",
    )
    edit(project, "src/mdpr/data/sources/__init__.py", "import folder_source", "import folder_source, twice_source")
    into_table(project, "src/mdpr/data/sources/__init__.py", "SOURCES", '"twice": twice_source,')
    edit(project, "src/mdpr/params/preparing.py", '"folder",\n', '"folder",\n        "twice",\n')
    from PIL import Image

    for number in range(12):
        for shade, name in enumerate(("cat", "dog")):
            folder = project / "pictures" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").rotate(7 * number + 90 * shade).resize((40, 40)).save(folder / f"{number}.png")
    settings = ["--source", "twice", "--root", "pictures", "--profile", "natural", "--val-images-per-class", "2"]
    run(project, "-m", "mdpr", "prepare", "--prepared", "prepared", *settings)
    assert '"cat"' in (project / "prepared/classes.json").read_text()


def test_an_audit_check_finds(project: Path) -> None:
    edit(
        project,
        "src/mdpr/knowledge/audit.py",
        "# Name -> level and check.\n",
        "def _shirt(sentence):\n    return 'speaks of a shirt' if 'shirt' in sentence else None\n\n\n"
        "# Name -> level and check.\n",
    )
    into_table(project, "src/mdpr/knowledge/audit.py", "SENTENCE_CHECKS", '"shirt": ("warning", _shirt),')
    assert "speaks of a shirt" in run(project, "-m", "mdpr", "knowledge", "audit", KNOWLEDGE)


def test_a_setting_becomes_an_option_of_its_stage(project: Path) -> None:
    edit(
        project,
        "src/mdpr/params/releasing.py",
        "class EvaluateParams(Section):\n",
        "class EvaluateParams(Section):\n    favourite: int = Field(7, ge=0, description='a number')\n",
    )
    assert "--favourite" in run(project, "-m", "mdpr", "evaluate", "--help")
    printed = run(project, "-m", "mdpr", "evaluate", "--set", "evaluate.favourite=-1", code=2)
    assert "evaluate.favourite = -1" in printed


def test_a_command_is_listed_and_runs(project: Path) -> None:
    (project / "src/mdpr/commands/hello.py").write_text(
        '"""`mdpr hello`."""\n\nimport click\n\n\n@click.command("hello")\ndef hello() -> None:\n'
        '    """Say hello."""\n    click.echo("hello")\n'
    )
    into_table(project, "src/mdpr/cli.py", "COMMANDS", '"hello": ("hello", "Say hello."),')
    assert "Say hello." in run(project, "-m", "mdpr", "--help")
    assert run(project, "-m", "mdpr", "hello").strip() == "hello"


def test_a_recipe_is_listed(project: Path) -> None:
    text = (project / "src/mdpr/recipes/own-data.yaml").read_text().replace("name: own-data", "name: mine")
    (project / "src/mdpr/recipes/mine.yaml").write_text(text)
    assert "mine" in run(project, "-m", "mdpr", "recipe", "list")
    run(project, "-m", "mdpr", "recipe", "use", "mine", "--params", "mine-params.yaml")
    assert "recipe show mine" in (project / "mine-params.yaml").read_text()


def test_the_page_names_every_place_that_the_recipes_edit() -> None:
    """A place that a test here edits and the page does not name would be found by nobody."""
    project = Path(__file__).resolve().parents[2]
    page = (project / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = Path(__file__).read_text(encoding="utf-8")
    edited = set(re.findall(r'"src/mdpr/([\w/]+\.(?:py|yaml))"', source)) - {"recipes/own-data.yaml"}
    tables = set(re.findall(r'"([A-Z_]+)", \'"', source))
    assert {place for place in edited if place not in page} == set()
    assert {table for table in tables if table not in page} == set()
    assert len(STAGES) == 9
