"""`mdpr pipeline compile`: the pipelines as YAML, in two documents: the graph, and its Kubernetes options.

The pictures of the graphs in pipelines/README.md are made from the same YAML, and checked with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from kfp import compiler

from mdpr.errors import CheckFailed, ConfigError
from pipelines.pictures import with_pictures
from pipelines.settings import read_params, site_option
from pipelines.site import Site, read_site
from pipelines.variants import VARIANTS

FOLDER = Path(__file__).resolve().parent  # of the compiled pipelines of the default site; CI fails when one is stale
README = "README.md"


def compile_pipeline(output: Path, site: Site, variant: str = "training") -> None:
    """Write a pipeline, with params.yaml as it is now, to `output`."""
    compiler.Compiler().compile(VARIANTS[variant].make(read_params(), site), str(output))


def compiled(folder: Path, variant: str) -> Path:
    """Where the pipeline `variant` lies in `folder`."""
    return folder / f"{variant}.yaml"


def stale(folder: Path, site: Site) -> list[Path]:
    """What in `folder` is not as compiling now would leave it: compiled pipelines, and the pictures in a README."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        if (folder / README).is_file():
            (fresh / README).write_bytes((folder / README).read_bytes())
        return [
            folder / path.name
            for path in write_pipelines(fresh, site)
            if not (folder / path.name).is_file() or (folder / path.name).read_bytes() != path.read_bytes()
        ]


def write_pipelines(folder: Path, site: Site) -> list[Path]:
    """Compile every pipeline into `folder`, and draw them in the README that lies there; returns what was written."""
    written = []
    for variant in VARIANTS:
        compile_pipeline(compiled(folder, variant), site, variant)
        written.append(compiled(folder, variant))
    readme = folder / README
    if readme.is_file():
        graphs = {variant: compiled(folder, variant) for variant in VARIANTS}
        readme.write_text(with_pictures(readme.read_text("utf-8"), graphs), "utf-8")
        written.append(readme)
    return written


@contextmanager
def package(site_file: Path | None, variant: str = "training") -> Iterator[Path]:
    """The file to upload: the committed one, which must be current, or one made for the site of `site_file`.

    Raises `ConfigError`.
    """
    site, committed = read_site(site_file), compiled(FOLDER, variant)
    with tempfile.TemporaryDirectory() as name:
        fresh = compiled(Path(name), variant)
        compile_pipeline(fresh, site, variant)
        if site_file is None:
            if not committed.is_file() or committed.read_bytes() != fresh.read_bytes():
                raise ConfigError(f"{committed.name} is stale: run mdpr pipeline compile, then try again")
            yield committed
        else:
            yield fresh


@click.command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="folder that receives a file a pipeline",
)
@click.option("--check", is_flag=True, help="Write nothing; fail when a file is stale.")
@site_option
def command(output: Path, check: bool, site_file: Path | None) -> None:
    """Compile the pipelines, and draw their graphs in the README beside them."""
    site = read_site(site_file)
    if check:
        if faulty := stale(output, site):
            names = ", ".join(str(path) for path in faulty)
            raise CheckFailed(f"stale: {names}; run mdpr pipeline compile")
        return
    if not output.is_dir():
        raise ConfigError(f"{output} does not exist: make the folder, or name another --output")
    for path in write_pipelines(output, site):
        click.echo(f"wrote {path}")
