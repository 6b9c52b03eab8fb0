"""`mdpr pipeline fetch`: what a run of the pipeline made, in the DVC workspace of the working folder.

    mdpr pipeline fetch local_outputs/mdpr-training-2026-01-31-12-00-00-000000
    mdpr pipeline fetch s3://mlpipeline/v2/artifacts/mdpr-training/5df0cd85-5615-4b99-8c17-a16f018c6819
    mdpr pipeline fetch 5df0cd85-5615-4b99-8c17-a16f018c6819 --host http://localhost:8888

Each output goes where dvc.yaml has it, and params.yaml becomes the run's own; then `dvc commit --force` records them as
if they had been computed here, and `dvc push` shares them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from mdpr.artifacts import read_model_config
from mdpr.errors import ArtifactError, ConfigError
from mdpr.params import Params, dump_yaml, load_params
from mdpr.stages.outputs import whole_or_not_at_all
from pipelines.api import Cluster, cluster_options, one_line_errors
from pipelines.run_folder import SETTINGS, RunFolder, store_errors
from pipelines.workspace import Workspace, open_workspace

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"  # of Kubeflow, where the config map kfp-launcher names no other
HEADER = "# The settings of {run}, brought here by `mdpr pipeline fetch`.\n"


def fetch(folder: RunFolder, workspace: Workspace, *, force: bool) -> list[Path]:
    """Bring the outputs and the settings of a run into the workspace, all or none; returns what was written.

    Raises `ArtifactError` where the run lacks something, `ConfigError` where work that is not committed would be lost.
    """
    found, places = folder.outputs(), workspace.places()
    settings = folder.find(*SETTINGS)
    if settings is None:
        raise ArtifactError(f"{folder.address} has no {'/'.join(SETTINGS)}: the run failed before it began")
    targets = {port: places[port] for port in found}
    outputs = {**targets, "params": workspace.params}
    paths = list(outputs.values())
    if not force and (changed := workspace.uncommitted(paths)):
        names = ", ".join(map(workspace.name, changed))
        raise ConfigError(f"{names}: changed and not committed; commit them (dvc commit, git commit), or use --force")
    with whole_or_not_at_all(outputs, overwrites=["params"]) as partial, tempfile.TemporaryDirectory() as name:
        copies = dict(zip(targets, partial, strict=False))
        used = Path(name) / workspace.params.name
        folder.copy({settings: used} | {found[port]: copies[port] for port in found})
        params = as_run(load_params(used), copies.get("model"))
        partial[-1].write_text(params_text(params, workspace.params, folder.name), encoding="utf-8")
    return paths


def as_run(params: Params, model: Path | None) -> Params:
    """The run's settings; those of `tune` are the model's own, for a sweep chose among several."""
    return replace(params, tune=read_model_config(model).tune) if model else params


def params_text(params: Params, present: Path, run: str) -> str:
    """params.yaml with `params`; as it is, comments and all, if it says the same already."""
    if present.is_file() and load_params(present) == params:
        return present.read_text("utf-8")
    return HEADER.format(run=run) + dump_yaml(params.dump())


def find_run(cluster: Cluster, run_id: str, default_root: str) -> str:
    """Address of the folder of a run: below the pipeline root that the run names, or `default_root`."""
    with one_line_errors(cluster.host):
        run = cluster.connect().get_run(run_id)
    config = run.runtime_config
    root = RunFolder.open((config.pipeline_root if config else None) or default_root)
    with store_errors(root.address):
        found = [path for path in root.files.glob(f"{root.path}/*/{run_id}") if root.files.isdir(path)]
    if len(found) != 1:
        raise ArtifactError(f"{root.address} has no folder of run {run_id}: name the cluster's pipeline root by --root")
    return str(root.files.unstrip_protocol(found[0]))


@click.command("fetch")
@click.argument("run")
@cluster_options(required=False)
@click.option(
    "--root", default=DEFAULT_ROOT, show_default=True, help="pipeline root of the cluster, where a run names none"
)
@click.option("--force", is_flag=True, help="Overwrite what is changed and not committed.")
def command(run: str, cluster: Cluster | None, root: str, force: bool) -> None:
    """Bring what RUN made into this DVC workspace: a folder, an address such as s3://..., or an id with --host."""
    folder = RunFolder.open(find_run(cluster, run, root) if cluster else run)
    with open_workspace() as workspace:
        written = fetch(folder, workspace, force=force)
        for path in written:
            click.echo(f"wrote {workspace.name(path)}")
        if left := [workspace.name(path) for path in workspace.places().values() if path not in written]:
            click.echo(f"the run has no {', '.join(left)}: what is here is not the run's")
    click.echo("next: dvc commit --force, git commit, dvc push")
