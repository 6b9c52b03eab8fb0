"""`mdpr pipeline trainjob`: tune on the GPUs of several nodes, as a TrainJob of Kubeflow Trainer.

    mdpr pipeline trainjob --name maple --nodes 2 --pvc work --folder maple --cluster cluster.yaml | kubectl create -f -

The first document is a ConfigMap with the parameters of tune, the second the TrainJob that reads them. Nodes share one
volume (`--pvc`, ReadWriteMany): tune reads prepared/, probe/ and features/ in `--folder` on it, and the main process
writes model/ beside them.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import click
import yaml
from pydantic import Field, ValidationError

from mdpr.errors import ConfigError
from mdpr.params import Section, fault_line
from mdpr.stages.outputs import write_whole
from mdpr.stages.stage import load_stage
from pipelines.cluster import NAME, ClusterProfile, read_profile
from pipelines.nodes import STAGE, check_batch, train_job
from pipelines.options import arguments, cluster_option, read_params, recipe_option, set_option, stage_texts

HEADER = "# Made by mdpr pipeline trainjob."  # of a file that --output may replace
WORK_PATH = PurePosixPath("/mnt/mdpr")  # where the shared volume is mounted
PARAMS_PATH = PurePosixPath("/etc/mdpr")
PARAMS_FILE = "params.yaml"


class Request(Section):
    """One TrainJob: its name, how many machines, and where on the volume they share its inputs and outputs lie."""

    # The names of its pods, which are longer, must be labels of 63 characters.
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", description="small letters, digits and -, up to 40")
    nodes: int = Field(ge=1, description="1 or more machines")
    pvc: str = Field(pattern=NAME, min_length=1, description="name the PersistentVolumeClaim that the nodes share")
    folder: str = Field(pattern=r"^\w[-\w]*(/\w[-\w]*)*$", description="a relative path of letters, digits, - and _")


def render(request: Request, tune_params: str, profile: ClusterProfile) -> list[dict[str, Any]]:
    """ConfigMap and TrainJob. `tune_params`: YAML text of the sections that tune reads.

    Raises `ConfigError` if a step has fewer images than there are processes.
    """
    check_batch(tune_params, request.nodes, profile)
    settings = f"{request.name}-params"
    folder = WORK_PATH / request.folder
    ports = [part for port in load_stage(STAGE).ports for part in (f"--{port}", str(folder / port))]
    arguments = ["--params", str(PARAMS_PATH / PARAMS_FILE), *ports]
    claims = {str(WORK_PATH): request.pvc}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": settings},
        "data": {PARAMS_FILE: tune_params},
    }
    job = train_job(request.name, request.nodes, profile, arguments, claims, (settings, str(PARAMS_PATH)))
    return [config, job]


def read_request(**options: Any) -> Request:
    """The options of the command, checked; raises `ConfigError` that names one."""
    try:
        return Request.model_validate(options)
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise ConfigError(f"--{fault_line(error, Request)}; {Request.model_fields[key].description}") from None


@click.command("trainjob")
@click.option("--name", default="mdpr-tune", show_default=True, help="of the TrainJob")
@click.option("--nodes", type=int, default=2, show_default=True, help="machines, each with the GPUs of the profile")
@click.option("--pvc", help="PersistentVolumeClaim the nodes share (ReadWriteMany); default: the profile's data_claim")
@click.option("--folder", default="mdpr", show_default=True, help="on the volume: prepared/, probe/, features/, model/")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="file to write instead of printing")
@cluster_option
@recipe_option
@set_option
def trainjob_command(
    name: str,
    nodes: int,
    pvc: str | None,
    folder: str,
    output: Path | None,
    profile_file: Path | None,
    recipe: str,
    settings: tuple[str, ...],
) -> None:
    """Print the manifest that tunes on several nodes: a ConfigMap and a TrainJob of Kubeflow Trainer."""
    params, profile = read_params(), read_profile(profile_file)
    request = read_request(name=name, nodes=nodes, pvc=pvc or profile.data_claim, folder=folder)
    values = arguments(params, recipe, settings)
    documents = render(request, stage_texts(params, values)[STAGE], profile)
    text = yaml.safe_dump_all(documents, sort_keys=False)
    if output is None:
        click.echo(text, nl=False)
        return
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} does not exist: make it, or name another --output")
    write_whole(output, f"{HEADER}\n{text}", replaces=HEADER)
    click.echo(f"wrote {output}")
