"""What must start fast loads none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "mlflow", "kfp", "open_clip", "great_expectations", "langchain", "pandas", "numpy", "dvc")


@pytest.mark.parametrize(
    "code",
    [
        "from mdpr.cli import cli; cli.main(['--help'], standalone_mode=False)",
        "from mdpr.stages.stage import STAGES, load_stage; [load_stage(name) for name in STAGES]",
        "import mdpr.kubeflow.components",
    ],
    ids=["help", "signatures", "component body"],
)
def test_reading_the_interface_loads_nothing_heavy(code: str) -> None:
    check = f"import sys; {code}; print('loaded', *[m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded"


def test_a_component_body_waits_neither_for_recipes_nor_for_formats_it_does_not_read() -> None:
    """Validators are built when they are first used (pydantic's defer_build)."""
    code = (
        "import sys, mdpr.kubeflow.components, mdpr.artifacts as artifacts, mdpr.params as config;"
        "print('mdpr.recipes' in sys.modules, artifacts.DataCard.__pydantic_complete__,"
        " config.Params.__pydantic_complete__);"
        "config.parse_params({}); print(config.Params.__pydantic_complete__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "False", "True"]


def test_what_only_reads_results_needs_no_torch() -> None:
    """components/Dockerfile: register and monitor run in the image without torch, and so does reading the registry.

    summary, report and compare start in half the time.
    """
    code = (  # a finder, not None in sys.modules, which scipy takes for torch itself
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'open_clip'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import mdpr.mlops.releases, mdpr.mlops.promotions, mdpr.mlops.registry, mdpr.mlops.runs\n"
        "import mdpr.monitoring.shift, mdpr.monitoring.result, mdpr.commands.monitor\n"
        "import mdpr.evaluation.report.document, mdpr.evaluation.comparison, mdpr.commands.results\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
