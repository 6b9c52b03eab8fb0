"""`mdpr pipeline trainjob`: tune on the GPUs of several nodes, as a TrainJob of Kubeflow Trainer.

    mdpr pipeline trainjob --name maple --nodes 2 --claim work --folder maple --site site.yaml | kubectl create -f -

The first document is a ConfigMap with the parameters of tune, the second the TrainJob that reads them. Nodes share one
volume (`--claim`, ReadWriteMany): what tune reads lies in `--folder` on it as prepared/, probe/ and features/, and the
process that leads writes model/ beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from mdpr.errors import ConfigError
from pipelines.manifest import STAGE, Request, render
from pipelines.settings import arguments, read_params, recipe_option, set_option, site_option, stage_texts
from pipelines.site import read_site


def read_request(**options: Any) -> Request:
    """The options of the command, checked; raises `ConfigError` that names one."""
    try:
        return Request.model_validate(options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        raise ConfigError(
            f"--{key} {options[key]!r}: {fault['msg']}; {Request.model_fields[key].description}"
        ) from None


@click.command("trainjob")
@click.option("--name", default="mdpr-tune", show_default=True, help="of the TrainJob")
@click.option("--nodes", type=int, default=2, show_default=True, help="machines, each with the GPUs of the site file")
@click.option("--claim", help="PersistentVolumeClaim the nodes share (ReadWriteMany); default: the site's data_claim")
@click.option("--folder", default="mdpr", show_default=True, help="on the claim: prepared/, probe/, features/, model/")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="file to write instead of printing")
@site_option
@recipe_option
@set_option
def command(
    name: str,
    nodes: int,
    claim: str | None,
    folder: str,
    output: Path | None,
    site_file: Path | None,
    recipe: str,
    settings: tuple[str, ...],
) -> None:
    """Print the manifest that tunes on several nodes: a ConfigMap and a TrainJob of Kubeflow Trainer."""
    params, site = read_params(), read_site(site_file)
    request = read_request(name=name, nodes=nodes, claim=claim or site.data_claim, folder=folder)
    values = arguments(params, recipe, settings)
    documents = render(request, stage_texts(params, values)[STAGE], site)
    text = yaml.safe_dump_all(documents, sort_keys=False)
    if output is None:
        click.echo(text, nl=False)
        return
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} does not exist: make it, or name another --output")
    output.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}")
