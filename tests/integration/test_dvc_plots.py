"""`dvc plots show` of a finished evaluation, in a real browser without a network: every chart has marks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tools import dvc_plots

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.integration
SYNTHETIC = Path(__file__).resolve().parents[1] / "unit" / "evaluation" / "conftest.py"
MARKS = "svg .mark-rect path, svg .mark-symbol path, svg .mark-line path"


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """index.html of `dvc plots show`, with the project's own plots, templates and configuration."""
    spec = importlib.util.spec_from_file_location("synthetic_evaluation", SYNTHETIC)
    assert spec is not None
    assert spec.loader is not None
    synthetic: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    project = tmp_path_factory.mktemp("plots")
    for folder in ("data/evaluation", "data/model"):
        (project / folder).mkdir(parents=True)
    content = synthetic.make_content(10, 20)
    content.results.write(project / "data/evaluation")
    content.history.to_csv(project / "data/model/history.csv", index=False)
    for name in ("config", "plots.html", "plots/bars.json"):
        (project / ".dvc" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project_root / ".dvc" / name, project / ".dvc" / name)
    shown = yaml.safe_load((project_root / "dvc.yaml").read_text("utf-8"))["plots"]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"plots": shown}), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["dvc", "plots", "show", "--out", "dvc_plots"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return project / "dvc_plots" / "index.html"


def test_every_plot_has_marks_without_a_network(browser: Browser, plots: Path, project_root: Path) -> None:
    faults: list[str] = []
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
    page.goto(plots.as_uri())
    page.wait_for_function("document.querySelectorAll('body > div svg').length >= 8")
    marks = page.evaluate(
        "(marks) => Object.fromEntries([...document.querySelectorAll('body > div[id]')]"
        ".map((plot) => [plot.id, plot.querySelectorAll(marks).length]))",
        MARKS,
    )
    titles = [next(iter(plot)) for plot in yaml.safe_load((project_root / "dvc.yaml").read_text("utf-8"))["plots"]]
    assert set(marks) == {title.replace(" ", "_") for title in titles}
    assert min(marks.values()) > 2, marks
    assert faults == []
    context.close()


def test_the_page_that_dvc_fills_is_current() -> None:
    assert dvc_plots.main(["--check"]) == 0, "run python -m tools.dvc_plots --write"
