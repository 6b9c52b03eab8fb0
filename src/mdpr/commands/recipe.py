"""`mdpr recipe`: the shipped settings of known benchmarks."""

from __future__ import annotations

from pathlib import Path

import click

from mdpr.errors import ConfigError


@click.group("recipe")
def command() -> None:
    """List, show or use the settings of a known benchmark."""


@command.command("list")
def list_recipes() -> None:
    """Every recipe, its variants and what it is."""
    from rich.console import Console
    from rich.table import Table

    from mdpr.recipes import read_recipe, recipe_names

    grid = Table("recipe", "variants", "what it is")
    for recipe in map(read_recipe, recipe_names()):
        grid.add_row(recipe.name, ", ".join(recipe.variants) or "-", recipe.title)
    Console().print(grid)


@command.command("show")
@click.argument("name")
def show(name: str) -> None:
    """The recipe's file: paper, commands, published figures, settings."""
    from mdpr.recipes import recipe_text

    click.echo(recipe_text(name), nl=False)


@command.command("use")
@click.argument("name")
@click.option("--variant", metavar="NAME", help="one of the recipe's variants; without it, the recipe as it is")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter over the recipe's")
@click.option(
    "--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True, help="file to write"
)
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
