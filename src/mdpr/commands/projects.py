"""`mdpr init`, `mdpr demo`, `mdpr repro`, `mdpr recipe`, `mdpr pipeline`: a project, its settings, and what runs it.

`mdpr pipeline` has the commands of the project's own package `pipelines` if the working folder has one, else of ours;
it is imported only when one of them is used.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import click

from mdpr.commands import PATH, TableGroup
from mdpr.errors import ConfigError, MdprError

DEMO = "emblems-lt"
PACKAGE = "pipelines"


@click.command("init")
@click.argument("folder", type=PATH)
@click.option("--recipe", default="own-data", show_default=True, help="settings to start from: mdpr recipe list")
@click.option(
    "--images", default="", help="folder of your images, CLASS/*.jpg; one that is not here is one in the project"
)
@click.option("--with-pipeline", is_flag=True, help="Copy the Kubeflow graph and its components, to change them.")
@click.option("--update", is_flag=True, help="Bring an existing project to this version; your changes stay.")
def init(folder: Path, recipe: str, images: str, with_pipeline: bool, update: bool) -> None:
    """Make a project of your own: Git, DVC, settings, the gate's policy, a README, a CI workflow.

    Example: mdpr init shoes --images /data/shoes
    """
    from mdpr import project

    if update:
        report = project.update(folder)
        for name, difference in report.differences.items():
            click.echo(f"{difference}\n")
            click.echo(f"{name}: you changed it, it stays as it is", err=True)
        click.echo(f"{len(report.written)} files written, {len(report.current)} were current", err=True)
        return
    if images and Path(images).is_dir():
        images = str(Path(images).absolute())
    files = project.create(folder, project.Choices(recipe, images, with_pipeline))
    click.echo(f"{folder}: {len(files)} files, Git and DVC are set up", err=True)
    first = f"put images into {images}; " if images and not Path(images).is_dir() else ""
    click.echo(f"next: cd {shlex.quote(str(folder))}; {first}read README.md; dvc repro", err=True)


@click.command("demo")
@click.argument("recipe", default=DEMO)
@click.option(
    "--folder",
    type=PATH,
    help="new folder, or that of an earlier demo  [default: a temporary one]",
)
def demo(recipe: str, folder: Path | None) -> None:
    """Run the whole chain on the embedded data: no network, no key, no GPU.

    RECIPE is emblems-lt (default), fashion-mnist-lt, or another one whose data come with the package. The folder stays:
    look at the report, change a setting in params.yaml, run `dvc repro` or the demo again.

    Example: mdpr demo --folder demo
    """
    from mdpr import project

    choices = project.Choices(recipe)
    if not choices.embedded:
        raise ConfigError(f"the data of the recipe {recipe} do not come with the package: mdpr demo {DEMO}")
    project.require_dvc("mdpr demo")
    folder = (folder or Path(tempfile.mkdtemp(prefix="mdpr-demo-")) / "demo").absolute()
    if not (folder / project.RECORD).exists():
        project.create(folder, choices)
    elif (made := project.read_record(folder)[0]) != choices:
        raise ConfigError(f"{folder} is a project of the recipe {made.recipe}: name another folder")
    click.echo(f"running in {folder}", err=True)
    if code := subprocess.run([*project.DVC, "repro"], cwd=folder, env=project.environment()).returncode:
        raise MdprError(f"dvc repro ended with exit code {code} in {folder}: the lines above say why")
    summary = [sys.executable, "-m", "mdpr", "summary", "--evaluation", str(folder / "data/evaluation")]
    if code := subprocess.run(summary, cwd=folder).returncode:
        sys.exit(code)  # its own error is above


@click.command("repro", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS OF DVC]...")
def repro(arguments: tuple[str, ...]) -> None:
    """`dvc repro` of the environment that this command is in, activated or not: DVC starts the stages by name.

    Example: .venv/bin/mdpr repro evaluate
    """
    from mdpr import project

    project.require_dvc("mdpr repro")
    os.execve(project.DVC[0], [*project.DVC, "repro", *arguments], project.environment())  # noqa: S606 - no shell


@click.group("recipe")
def recipe() -> None:
    """List, show or use the settings of a known benchmark."""


@recipe.command("list")
def list_recipes() -> None:
    """Every recipe, its variants and what it is."""
    from rich.console import Console
    from rich.table import Table

    from mdpr.recipes import read_recipe, recipe_names

    grid = Table("recipe", "variants", "what it is")
    for recipe in map(read_recipe, recipe_names()):
        grid.add_row(recipe.name, ", ".join(recipe.all_variants), recipe.title)
    Console().print(grid)


@recipe.command("show")
@click.argument("name")
def show(name: str) -> None:
    """The recipe's file: paper, commands, published figures, settings."""
    from mdpr.recipes import recipe_text

    click.echo(recipe_text(name), nl=False)


@recipe.command("use")
@click.argument("name")
@click.option("--variant", metavar="NAME", help="one of the recipe's variants; without it, the recipe as it is")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter over the recipe's")
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True, help="file to write")
@click.option("--force", is_flag=True, help="replace the file; nothing of it is kept")
def use(name: str, variant: str | None, overrides: tuple[str, ...], params: Path, force: bool) -> None:
    """Write params.yaml: all settings of the recipe, and the defaults of what it does not name."""
    from mdpr.recipes import params_text, read_recipe
    from mdpr.stages.outputs import write_whole

    recipe = read_recipe(name)
    text = params_text(recipe, variant, overrides)
    if params.exists() and not force:
        raise ConfigError(f"{params} exists: --force replaces it, --params writes another file")
    write_whole(params, text)
    click.echo(f"wrote {params}; next: {recipe.commands[-1]}")


def load_graph(name: str) -> ModuleType:
    """A module of the graph's package; raises `MdprError` if a library is missing."""
    from mdpr.project import packaged

    own = Path.cwd() / PACKAGE / "__init__.py"
    folder = Path.cwd() if own.is_file() else packaged(PACKAGE).parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind the libraries: a folder here must not stand in for one of them
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MdprError(f"mdpr pipeline needs {error.name}: pip install 'mdpr[pipeline]'") from None


def tables() -> dict[str, dict[str, str]]:
    """The commands that the project's package names in `COMMANDS` (name -> module, line of help)."""
    return {"Commands": {name: line for name, (_, line) in load_graph(PACKAGE).COMMANDS.items()}}


def load(name: str) -> click.Command:
    """The command `name` of `tables`."""
    module, _ = load_graph(PACKAGE).COMMANDS[name]
    command: click.Command = getattr(load_graph(f"{PACKAGE}.{module}"), f"{name}_command")
    return command


@click.group("pipeline", cls=TableGroup, tables=tables, load=load)
def pipeline() -> None:
    """Compile the Kubeflow pipeline, run it here, or start it on a cluster."""
