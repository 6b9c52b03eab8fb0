"""The functions that Kubeflow components call: a stage by its name, parameters as text, ports as artifacts.

Parameters travel as YAML text because Kubeflow turns whole numbers inside dictionaries into floats. Nothing
here imports kfp: an artifact is anything with a `path` and a `metadata` dictionary.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mdpr.artifacts import data_digests, read_json, write_json
from mdpr.errors import CheckFailed, ConfigError, MdprError, TrackingError
from mdpr.params import SECTIONS, Params, choices, dump_yaml, parse_params, parse_yaml
from mdpr.stages.outputs import Place
from mdpr.stages.stage import CHECKPOINTS, STAGES, Stage, load_stage, run_stage

logger = logging.getLogger(__name__)

# In front of environment variables that Kubeflow's launcher, which runs in the same container, must not read.
HIDDEN = "MDPR_HIDDEN_"
# In the folder that a task has in the workspace: results for MLflow, and the name of its TrainJob.
OUTBOX = "mlflow.outbox"
TRAIN_JOB = "trainjob"
# The states of a pipeline that ended well: of the cluster's backend, of kfp.local, of a pipeline from the cache.
SUCCEEDED = ("COMPLETE", "SUCCEEDED", "CACHED")


class Artifact(Protocol):
    """The part of `kfp.dsl.Artifact` that is used here."""

    path: str
    metadata: dict[str, Any]


def run_component(stage_name: str, params: str, workspace: str = "", /, **ports: Artifact) -> None:
    """Run a stage on the paths of `ports`; `params` is YAML text of the sections it reads.

    `workspace`: folder that outlives a task that is killed, "" for none. With MDPR_PROCESSES above 1 the stage runs in
    as many processes under torchrun, one per GPU. A user's mistake ends the process with one line on stderr and exit
    code 2.
    """
    with one_line_errors():
        _run(stage_name, params, workspace, ports)
        _summarise_outputs(stage_name, ports)


def run_check(stage_name: str, params: str, workspace: str = "", /, **ports: Artifact) -> str:
    """Run a stage that judges what it reads or writes; returns what is wrong in one line, "" if nothing is.

    Of a task that fails, Kubeflow keeps only the log. So the task that judges succeeds, with all that it wrote, and the
    one after it fails (`require_none`). Other mistakes end the process as in `run_component`.
    """
    with one_line_errors():
        outputs = {port: Path(ports[port].path) for port in load_stage(stage_name).outputs}
        problem = keep_outputs(stage_name, outputs, lambda: _run(stage_name, params, workspace, ports))
        _summarise_outputs(stage_name, ports)
        return problem


def keep_outputs(task: str, outputs: Mapping[str, Path], write: Callable[[], None]) -> str:
    """Do `write`; if a check of it fails, what it wrote stands all the same. Returns the problem in one line, or ""."""
    try:
        write()
    except CheckFailed as error:
        for port, path in outputs.items():
            Place.of(port, path).failed.rename(path)
        return f"{task}: {str(error).partition('; see ')[0]}; the outputs of the task {task} show it"
    return ""


def _run(stage_name: str, params: str, workspace: str, ports: Mapping[str, Artifact]) -> None:
    stage = load_stage(stage_name)
    paths = {port: Path(artifact.path) for port, artifact in ports.items()}
    sections = parse_params(read_sections(params, "params"))
    if workspace:
        if "tracking" in stage.sections and stage_name != "tune":  # models of a sweep are tuned side by side
            publish_workspace(Path(workspace))
        sections = keep_state(sections, Path(workspace), paths[stage.outputs[0]])
    processes = int(os.environ.get("MDPR_PROCESSES", "1"))
    with _checkpoints_in(state_folder(Path(workspace), paths[stage.outputs[0]]) if workspace else None):
        if processes > 1:
            _spread(stage, paths, dump_yaml(sections.dump(stage.sections.values())), processes)
        else:
            run_stage(stage, paths, sections)


def _summarise_outputs(stage_name: str, ports: Mapping[str, Artifact]) -> None:
    for port in load_stage(stage_name).outputs:
        ports[port].metadata.update(summarise(Path(ports[port].path)))


def require_none(problem: str) -> None:
    """End the process with `problem` as its one line and exit code 2, if there is one."""
    with one_line_errors():
        if problem:
            raise CheckFailed(problem)


def keep_state(params: Params, workspace: Path, output: Path) -> Params:
    """`params`, whose files that must outlive the task are in its `state_folder`.

    A store of answers with an absolute path stays, so that runs can share one.
    """
    own = state_folder(workspace, output)
    store = Path(params.describe.llm.store)
    llm = params.describe.llm.model_copy(update={"store": str(store if store.is_absolute() else own / store.name)})
    tracking = params.tracking.model_copy(update={"outbox": str(own / OUTBOX)})
    return replace(params, describe=params.describe.model_copy(update={"llm": llm}), tracking=tracking)


def state_folder(workspace: Path, output: Path) -> Path:
    """The task's own folder in `workspace`.

    A retry of a task has the same `output`, and finds what the attempt before it left. Tasks side by side, maybe on
    several nodes, share no file.
    """
    own = workspace / hashlib.sha256(str(output).encode()).hexdigest()[:16]
    own.mkdir(parents=True, exist_ok=True)
    return own


@contextmanager
def _checkpoints_in(folder: Path | None) -> Iterator[None]:
    """Tell the stage, and the processes it starts, where checkpoints are kept; nothing if `folder` is None."""
    if folder:
        os.environ[CHECKPOINTS] = str(folder)
    try:
        yield
    finally:
        if folder:
            del os.environ[CHECKPOINTS]


def publish_workspace(workspace: Path) -> None:
    """Send MLflow what the tasks of this run could not; a server that does not answer is a warning."""
    outboxes = sorted(workspace.glob(f"*/{OUTBOX}"))
    if not outboxes:
        return
    from mdpr.mlops.publishing import publish_outbox
    from mdpr.mlops.store import connect

    for outbox in outboxes:
        try:
            publish_outbox(connect(), outbox)
        except TrackingError as error:
            logger.warning("%s; results of this run wait in %s", error, outbox)


def _spread(stage: Stage, paths: Mapping[str, Path], params: str, processes: int) -> None:
    """`mdpr STAGE` in `processes` processes of this machine, their output that of this process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(params, encoding="utf-8")
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        ports = [part for port in stage.ports for part in (f"--{port}", str(paths[port].absolute()))]
        command = [sys.executable, *launch, "-m", "mdpr", stage.name, "--params", str(file), *ports]
        code = subprocess.run(command).returncode
    if code:
        raise MdprError(
            f"{stage.name}: one of {processes} processes failed with exit code {code}; its own line is above"
        )


def run_monitor(
    params: str, workspace: str, log: str, limits: Mapping[str, float], *, monitoring: Artifact, page: Artifact
) -> str:
    """`mdpr monitor` on the log and the reference of the champion; its advice, `retrain` without a champion.

    `params` is YAML text with the section tracking, `limits` are thresholds by their names.
    """
    from mdpr.mlops.registry import find_champion

    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        sections = parse_params(read_sections(params, "params"))
        if workspace:
            sections = keep_state(sections, Path(workspace), Path(monitoring.path))
        name, folder = sections.tracking.model_name, Path(scratch)
        if find_champion(name) is None:
            write_json(Path(monitoring.path), {"advice": "retrain", "reason": f"{name} has no champion yet"})
            Path(page.path).write_text("<p>There is no champion yet.</p>\n", encoding="utf-8")
            return "retrain"
        file = folder / "params.yaml"
        file.write_text(dump_yaml(sections.dump(["tracking"])), encoding="utf-8")
        options = [f"--{key.replace('_', '-')}={value}" for key, value in limits.items()]
        command = [sys.executable, "-m", "mdpr", "monitor", "--params", str(file), "--output", scratch, "--log", log]
        code = subprocess.run([*command, "--reference", f"models:/{name}@champion", *options]).returncode
        if code not in (0, 1):
            raise MdprError(f"monitor failed with exit code {code}; its own line is above")
        content = read_json(folder / "monitor.json")
        shutil.copyfile(folder / "monitor.json", monitoring.path)
        shutil.copyfile(folder / "monitor.html", page.path)
        monitoring.metadata.update(summarise(Path(monitoring.path)))
        return str(content["advice"])


def close_runs(state: str, workspace: str = "") -> None:
    """Send MLflow what waits in `workspace`, stop a TrainJob that goes on without its task, and mark the MLflow runs
    that this run of Kubeflow left open as failed.

    `state`: how the pipeline ended, in the backend's words; after a task that was killed it may be RUNNING. KFP_RUN_ID
    is the run of Kubeflow; without it (on one machine) there is nothing to find.
    """
    from mdpr.mlops.runs import fail_open_runs

    run_id = os.environ.get("KFP_RUN_ID")
    with one_line_errors():
        if workspace:
            publish_workspace(Path(workspace))
            if any(Path(workspace).glob(f"*/{TRAIN_JOB}")):
                from mdpr.kubeflow.train_jobs import stop_jobs  # few runs need Kubernetes' client

                stop_jobs(Path(workspace))
        if state in SUCCEEDED or not run_id:
            return
        for closed in fail_open_runs("kfp.run_id", run_id):
            logger.info("MLflow run %s was left open: marked as failed", closed)


def configure_stages(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of each stage as YAML text, in the order of `STAGES`: what `run_component` takes.

    `arguments` are those of the component: `base` holds all sections as YAML text, `recipe` names a benchmark or is
    empty, `overrides`, YAML text too, has the last word, and the others are choices by their names in the UI. With a
    recipe, its settings stand in the place of `base`, and of the choices only those count that differ from `base`.
    Each text holds only the sections its stage reads, so that a setting of `tune` leaves the input of `prepare` as it
    was. All of them together go into the file of the artifact `settings`. A wrong key or value ends the process with
    one line, exit code 2.
    """
    with one_line_errors():
        chosen = {name: arguments[name] for name in choices() if name in arguments}
        texts = merge_params(arguments["base"], as_sections(chosen), arguments["overrides"], arguments["recipe"])
        settings: Artifact = arguments["settings"]
        Path(settings.path).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.path).write_text(_together(texts.values()), encoding="utf-8")
        return tuple(texts.values())


def _together(texts: Iterable[str]) -> str:
    """The sections of several texts as one params.yaml."""
    found = {section: values for text in texts for section, values in read_sections(text, "params").items()}
    return dump_yaml({section: found[section] for section in SECTIONS})


def as_sections(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen`, values by their names in the UI, as sections and keys of params.yaml."""
    sections: dict[str, Any] = {}
    for name, choice in choices().items():
        if name in chosen:
            *parents, leaf = choice.key.split(".")
            node = sections
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = chosen[name]
    return sections


def merge_params(
    base: str, chosen: Mapping[str, Mapping[str, Any]], overrides: str, recipe: str = ""
) -> dict[str, str]:
    """`configure_stages` by stage name; raises `ConfigError`."""
    merged = read_sections(base, "base")
    if recipe:
        from mdpr.recipes import params_text, read_recipe  # only `configure` needs it: no stage's task waits

        chosen = _changed(chosen, merged)
        merged = read_sections(params_text(read_recipe(recipe), None), recipe)
    for layer in (chosen, read_sections(overrides, "overrides")):
        merged = lay_over(merged, layer)
    sections = parse_params(merged)
    return {name: dump_yaml(sections.dump(load_stage(name).sections.values())) for name in STAGES}


def read_sections(text: str, what: str) -> dict[str, Any]:
    """The sections that YAML `text` holds; raises `ConfigError` that starts with `what`."""
    content = parse_yaml(text, what)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{what} must hold sections, like tune: {{epochs: 5}}, not {text.strip()!r}")
    return content


def _changed(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `values` that differs from `base`, mapping by mapping."""
    nested = {key: _changed(value, base.get(key, {})) for key, value in values.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in values.items() if key not in nested and value != base.get(key)}
    return {key: value for key, value in nested.items() if value} | plain


def lay_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = lay_over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Progress on stderr; a user's mistake as the last line of the log instead of a traceback.

    Secrets that are hidden from Kubeflow's launcher get their own names, in this process and those it starts.
    """
    for name in [name for name in os.environ if name.startswith(HIDDEN)]:
        os.environ[name.removeprefix(HIDDEN)] = os.environ[name]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # kfp's executor made it INFO, for every library
    logging.getLogger("mdpr").setLevel(logging.INFO)
    try:
        yield
    except MdprError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def summarise(output: Path) -> dict[str, Any]:
    """Single values and digests for an artifact's metadata, from the JSON file it is or from the run.json inside it."""
    path = output if output.is_file() else output / "run.json"
    content = read_json(path) if path.is_file() else {}
    digests = data_digests(output) if (output / "card.json").is_file() else content.get("digests", {})
    return {key: value for key, value in content.items() if isinstance(value, str | int | float | bool)} | digests
