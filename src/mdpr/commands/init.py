"""`mdpr init`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--recipe", default="own-data", show_default=True, help="settings to start from: mdpr recipe list")
@click.option("--images", default="", help="folder of your images (CLASS/*.jpg), absolute or in the project")
@click.option("--with-pipeline", is_flag=True, help="Copy the Kubeflow graph and its components, to change them.")
@click.option("--update", is_flag=True, help="Bring an existing project to this version; your changes stay.")
def command(folder: Path, recipe: str, images: str, with_pipeline: bool, update: bool) -> None:
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
    files = project.create(folder, project.Choices(recipe, images, with_pipeline))
    click.echo(f"{folder}: {len(files)} files, Git and DVC are set up", err=True)
    click.echo(f"next: cd {folder}; read README.md; dvc repro", err=True)
