"""`mdpr demo`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

DEFAULT = "fashion-mnist-lt"


@click.command("demo")
@click.argument("recipe", default=DEFAULT)
@click.option("--folder", type=click.Path(path_type=Path), help="new folder to run in  [default: a temporary one]")
def command(recipe: str, folder: Path | None) -> None:
    """Run the whole chain on the embedded data: no network, no key, no GPU.

    RECIPE is fashion-mnist-lt (default) or another one whose data come with the package. The folder stays: look at the
    report, change a setting in params.yaml, run `dvc repro` again.

    Example: mdpr demo --folder demo
    """
    from mdpr import project
    from mdpr.errors import ConfigError, MdprError

    choices = project.Choices(recipe)
    if not choices.embedded:
        raise ConfigError(f"the data of the recipe {recipe} do not come with the package: mdpr demo {DEFAULT}")
    folder = folder or Path(tempfile.mkdtemp(prefix="mdpr-demo-")) / "demo"
    project.create(folder, choices)
    click.echo(f"running in {folder}", err=True)
    if code := subprocess.run(["dvc", "repro"], cwd=folder).returncode:
        raise MdprError(f"dvc repro ended with exit code {code} in {folder}: the lines above say why")
    subprocess.run([sys.executable, "-m", "mdpr", "summary"], cwd=folder, check=True)
