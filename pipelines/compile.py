"""`mdpr pipeline compile`: the graph as YAML, in two documents: the pipeline, and its Kubernetes options."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from kfp import compiler

from mdpr.errors import CheckFailed, ConfigError
from pipelines.settings import read_params, site_option
from pipelines.site import Site, read_site
from pipelines.training import NAME, training_pipeline

COMPILED = Path(__file__).resolve().with_name("training.yaml")  # for the default site; CI fails when it is stale


def compile_pipeline(output: Path, site: Site) -> None:
    """Write the pipeline, with params.yaml as it is now, to `output`."""
    compiler.Compiler().compile(training_pipeline(read_params(), site), str(output))


def is_current(compiled: Path, site: Site) -> bool:
    """Whether `compiled` is what compiling now would write."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.yaml"
        compile_pipeline(fresh, site)
        return compiled.is_file() and compiled.read_bytes() == fresh.read_bytes()


@contextmanager
def package(site_file: Path | None) -> Iterator[Path]:
    """The file to upload: the committed one, which must be current, or one made for the site of `site_file`.

    Raises `ConfigError`.
    """
    site = read_site(site_file)
    if site_file is None:
        if not is_current(COMPILED, site):
            raise ConfigError(f"{COMPILED.name} is stale: run mdpr pipeline compile, then try again")
        yield COMPILED
        return
    with tempfile.TemporaryDirectory() as folder:
        compile_pipeline(Path(folder) / f"{NAME}.yaml", site)
        yield Path(folder) / f"{NAME}.yaml"


@click.command("compile")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=COMPILED, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing; fail when the file is stale.")
@site_option
def command(output: Path, check: bool, site_file: Path | None) -> None:
    """Compile the training pipeline."""
    site = read_site(site_file)
    if check:
        if not is_current(output, site):
            raise CheckFailed(f"{output} is stale: run mdpr pipeline compile")
        return
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} does not exist: make it, or name another --output")
    compile_pipeline(output, site)
    click.echo(f"wrote {output}")
