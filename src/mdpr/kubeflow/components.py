"""The code behind the components of the stages: parameters as text, ports as artifacts, views for the UI.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mdpr.artifacts import data_digests, read_json, read_metrics, read_run, read_table
from mdpr.artifacts.prepared import CLASSES_FILE
from mdpr.errors import CheckFailed, ConfigError, MdprError, TrackingError
from mdpr.evaluation.score_table import BRANCHES, Metrics, ScoreTable, in_percent, markdown_table
from mdpr.launch import collect_rarely
from mdpr.params import Params, choices, dump_yaml, parse_params, parse_yaml
from mdpr.stages.outputs import Place
from mdpr.stages.stage import CHECKPOINTS, STAGES, Stage, load_stage, run_stage

if TYPE_CHECKING:
    from mdpr.mlops.registry import Version

logger = logging.getLogger(__name__)

# In front of environment variables that Kubeflow's launcher, which runs in the same container, must not read.
HIDDEN = "MDPR_HIDDEN_"
# In the folder that a task has in the workspace: results for MLflow, and the name of its TrainJob.
OUTBOX = "mlflow.outbox"
TRAIN_JOB = "trainjob"
CONFUSION_MAX_CLASSES = 100  # the matrix is drawn by a browser, and kept in the metadata store


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
        stage = load_stage(stage_name)
        _run(stage, params, workspace, ports)
        _summarise_outputs(stage, ports)


def run_check(stage_name: str, params: str, workspace: str = "", /, **ports: Artifact) -> str:
    """Run a stage that judges what it reads or writes; returns what is wrong in one line, "" if nothing is.

    Of a task that fails, Kubeflow keeps only the log. So the task that judges succeeds, with all that it wrote, and the
    one after it fails (`require_none`). Other mistakes end the process as in `run_component`.
    """
    with one_line_errors():
        stage = load_stage(stage_name)
        outputs = {port: Path(ports[port].path) for port in stage.outputs}
        problem = keep_outputs(stage_name, outputs, lambda: _run(stage, params, workspace, ports))
        _summarise_outputs(stage, ports)
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


def _run(stage: Stage, params: str, workspace: str, ports: Mapping[str, Artifact]) -> None:
    collect_rarely()
    paths = {port: Path(artifact.path) for port, artifact in ports.items()}
    sections = parse_params(read_sections(params, "params"))
    if workspace:
        if "tracking" in stage.sections and stage.name != "tune":  # models of a sweep are tuned side by side
            publish_workspace(Path(workspace))
        own = state_folder(Path(workspace), paths[stage.outputs[0]])
        sections = keep_state(sections, own)
        os.environ[CHECKPOINTS] = str(own)  # for the processes that the stage starts, too
    processes = int(os.environ.get("MDPR_PROCESSES", "1"))
    try:
        if processes > 1:
            _spread(stage, paths, dump_yaml(sections.dump(stage.sections.values())), processes)
        else:
            run_stage(stage, paths, sections)
    finally:
        if workspace:
            del os.environ[CHECKPOINTS]


def _summarise_outputs(stage: Stage, ports: Mapping[str, Artifact]) -> None:
    for port in stage.outputs:
        ports[port].metadata.update(summarise(Path(ports[port].path)))


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


def summarise(output: Path) -> dict[str, Any]:
    """Single values and digests for an artifact's metadata, from the JSON file it is or from the run.json inside it."""
    path = output if output.is_file() else output / "run.json"
    content = read_json(path) if path.is_file() else {}
    digests = data_digests(output) if (output / "card.json").is_file() else content.get("digests", {})
    return {key: value for key, value in content.items() if isinstance(value, str | int | float | bool)} | digests


# --- what outlives a task -----------------------------------------------------------------------------------


def keep_state(params: Params, own: Path) -> Params:
    """`params`, whose files that must outlive the task are in `own`, its `state_folder`.

    A store of answers with an absolute path stays, so that runs can share one.
    """
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


def publish_workspace(workspace: Path) -> None:
    """Send MLflow what the tasks of this run could not; a server that does not answer is a warning."""
    outboxes = sorted(workspace.glob(f"*/{OUTBOX}"))
    if not outboxes:
        return
    from mdpr.mlops.publishing import publish_outbox
    from mdpr.mlops.store import connect

    try:
        store = connect()  # once: a server that is down costs its time-out, not one per task
    except TrackingError as error:
        logger.warning("%s; results of this run wait in %s", error, workspace)
        return
    for outbox in outboxes:
        try:
            publish_outbox(store, outbox)
        except TrackingError as error:
            logger.warning("%s; results wait in %s", error, outbox)


# --- what the UI draws --------------------------------------------------------------------------------------


class ConfusionView(Protocol):
    """The part of `kfp.dsl.ClassificationMetrics` that is used here."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


def show_metrics(evaluation: Artifact, view: Artifact) -> None:
    """metrics.json, each value as branch.figure, in percent (NLL in nats)."""
    for branch, figures in read_metrics(Path(evaluation.path)).items():
        view.metadata.update({f"{branch}.{figure}": value for figure, value in in_percent(figures).items()})


def show_confusion(evaluation: Artifact, view: ConfusionView) -> None:
    """confusion.csv (columns actual, predicted; one row per test image) as a matrix, rows actual."""
    import pandas as pd

    pairs = read_table(Path(evaluation.path), "confusion.csv")
    names = sorted(set(pairs["actual"]) | set(pairs["predicted"]))
    if len(names) > CONFUSION_MAX_CLASSES:
        logger.info("no confusion matrix in the UI: %d classes, at most %d", len(names), CONFUSION_MAX_CLASSES)
        return
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=names, columns=names, fill_value=0)
    view.log_confusion_matrix(names, counts.to_numpy().tolist())


def show_page(source: Artifact, name: str, view: Artifact) -> None:
    """One HTML file of an output as an artifact of its own, which the UI opens."""
    shutil.copyfile(Path(source.path) / name, view.path)


def copy_classes(prepared: Artifact, classes: Artifact) -> None:
    """The class list as an artifact of its own: Kubeflow copies every input whole, used or not."""
    folder = Path(classes.path)
    folder.mkdir()
    shutil.copyfile(Path(prepared.path) / CLASSES_FILE, folder / CLASSES_FILE)


def show_summary(evaluation: Artifact, params: str, view: Artifact) -> None:
    """The model's accuracy by shot group beside the zero-shot model's and the champion's, as Markdown.

    `params` is YAML text with the section tracking. If the registry does not answer, a note takes the
    place of the champion's line: the scores do not depend on it.
    """
    from mdpr.mlops.registry import TEST_SET_TAG, find_champion

    with one_line_errors():
        tracking = parse_params(read_sections(params, "params")).tracking
        folder, note = Path(evaluation.path), ""
        try:
            champion = find_champion(tracking.model_name)
        except TrackingError as error:
            champion, note = None, f"The champion is not known: {error}"
        else:
            if champion is None:
                note = "There is no champion yet."
            elif champion.tags.get(TEST_SET_TAG) != read_run(folder).test_sha256:
                note = "The champion was scored on other test images: the two lines do not compare."
        Path(view.path).write_text(summary_table(read_metrics(folder), champion, note), encoding="utf-8")


def summary_table(metrics: Metrics, champion: Version | None, note: str) -> str:
    """The score table as Markdown: accuracies in percent, gains of the model's answer in points.

    A group without classes is left out.
    """
    table, own, frozen = ScoreTable.of(metrics), BRANCHES["fused"], BRANCHES["zero_shot"]
    references = [frozen]
    if champion:
        references.append(f"Champion, version {champion.number}")
        fractions = {name: percent / 100 for name, percent in champion.figures().items()}
        table = replace(table, rows={**table.rows, references[-1]: fractions})
    rows = [[f"**{name}**" if name == own else name, *table.cells(name)] for name in table.rows]
    rows += [[f"gain over {name}", *table.gain_cells(own, name)] for name in references]
    parts = ["# Test accuracy", markdown_table(["percent", *table.groups], rows), *filter(None, [note])]
    return "\n\n".join(parts) + "\n"


# --- parameters as text -------------------------------------------------------------------------------------


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
        chosen = as_sections(arguments)
        params = _merged(arguments["base"], chosen, arguments["overrides"], arguments["recipe"])
        settings = Path(arguments["settings"].path)
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(dump_yaml(params.dump()), encoding="utf-8")
        return tuple(_by_stage(params).values())


def as_sections(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `chosen` that the UI offers, by their names there, as sections and keys of params.yaml."""
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
    return _by_stage(_merged(base, chosen, overrides, recipe))


def _by_stage(params: Params) -> dict[str, str]:
    return {name: dump_yaml(params.dump(load_stage(name).sections.values())) for name in STAGES}


def _merged(base: str, chosen: Mapping[str, Mapping[str, Any]], overrides: str, recipe: str) -> Params:
    merged = read_sections(base, "base")
    if recipe:
        from mdpr.recipes import params_text, read_recipe  # only `configure` needs it: no stage's task waits

        chosen = _changed(chosen, merged)
        merged = read_sections(params_text(read_recipe(recipe), None), recipe)
    for layer in (chosen, read_sections(overrides, "overrides")):
        merged = lay_over(merged, layer)
    return parse_params(merged)


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
