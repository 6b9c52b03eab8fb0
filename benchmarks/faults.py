"""The fault campaign: what a mistake, a signal, an attack or a changed file may destroy, in a throw-away copy.

    python -m benchmarks.faults --json
    python -m benchmarks.faults --only outputs tampered
    python -m benchmarks.faults --only signals --stages tune evaluate --signals 10

outputs     wrong paths for every output: foreign_files_deleted of foreign_files, over output_ways
bytes       all nine stages twice: artifacts_byte_identical of artifacts_compared (what holds times, ids of MLflow and
            measured latencies is named in `trial_project.TIMED` and not compared)
tampered    a file of a finished run changed: tampered_refused of tampered_tried (exit code 2, one line)
signals     SIGTERM and SIGKILL at random moments of every stage: signals_survived of signals_tried (the output is the
            old one, the new one or absent; the same command then gives the same bytes)
drivers     DVC and the subprocess runner of Kubeflow killed without it, counted with the signals: no stage goes on
outbox      damaged items for MLflow beside good ones: spool_bad_items_isolated of spool_bad_items
llm         answers and servers of `describe`: llm_faults_survived of llm_faults
names       hostile class names through all nine stages: hostile_names_survived of hostile_names
serving     requests made to exhaust the server: serving_attacks_survived of serving_attacks; serving_peak_mb, the
            largest memory of the server, of serving_bound_mb, the limit in mlflow/kubernetes/inference-service.yaml

Tests take the same cases from the same modules. Figures that several sections have add up.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.hostile_names import hostile_names
from benchmarks.interruptions import drivers, signals
from benchmarks.llm_faults import llm_faults
from benchmarks.outbox_faults import outbox
from benchmarks.report import device_name, emit, make_parser
from benchmarks.serving_attacks import serving
from benchmarks.tampering import tampered
from benchmarks.trial_project import Figures, Project, artifacts, contents, tell
from mdpr.progress import track
from mdpr.stages.stage import STAGES, load_stage

PACKAGES = ("torch", "mlflow", "dvc")
WITHOUT_A_RUN = {"drivers", "outbox", "llm", "names"}  # sections that need no finished run


def wrong_outputs(project: Project) -> list[str]:
    """Paths that an output must not take: the user's folders and files, folders above, inputs, names too long."""
    (project.root / "alias").symlink_to("data")
    (project.root / "pictures").symlink_to(project.root.parent / "photos")
    return [
        *("data", "./data/", "data/../data", "alias", "alias/embedded", str(project.root / "data"), "src", "mlflow"),
        *("..", ".", "", "data/..", "../..", "/", "../../..", str(project.root), str(project.root.parent)),
        *("photos", "../photos", "pictures", "notes", "notes/deep", "data/embedded/fashion-mnist/new"),
        *("data/embedded/fashion-mnist", "README.md", "params.yaml", "mlflow/promotion.yaml", "dvc.yaml", "n" * 256),
        *("runs", "runs/first", "shaped", "annotated", "mine", "busy", "site"),
    ]


def outputs(project: Project, seed: int) -> Figures:
    """Every output of every stage under every wrong path."""
    root = project.root
    mine = ("photos/1.png", "notes/deep/a.txt", "mine.failed/a.txt", ".busy.mdpr/a.txt", "site/index.html", ".git/HEAD")
    for name in (*mine, "../photos/2.png", "shaped/knowledge.json", "shaped/config.json", "shaped/card.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    ways = wrong_outputs(project)
    shutil.copytree(project.path("features"), root / "annotated")
    (root / "annotated" / "notes.txt").write_text("mine")
    before, ends = contents(root.parent), Counter[bool]()
    ports = [(stage, port) for stage in STAGES for port in load_stage(stage).outputs]
    for stage, port in track(ports, "outputs"):
        inputs = {str(project.path(name)) for name in load_stage(stage).inputs}
        for way in [*ways, *sorted(inputs)]:
            arguments = project.arguments(stage, "first", "unused")
            arguments[arguments.index(f"--{port}") + 1] = way
            end = project.call(arguments)
            ends[end.is_one_line] += 1
            if not end.is_one_line:
                tell("%s --%s %s: exit code %d: %s", stage, port, way[:60], end.code, end.text[-300:])
    after = contents(root.parent)
    gone = [name for name, digest in before.items() if after.get(name) != digest]
    return {
        "foreign_files_deleted": len(gone),
        "foreign_files": len(before),
        "output_ways": len(ways),
        "outputs_refused": ends[True],
        "outputs_tried": ends.total(),
    }


def same_bytes(project: Project, seed: int) -> Figures:
    """All nine stages again, with another order of hashing."""
    project.run_all("second", PYTHONHASHSEED=str(seed + 1))
    first, second = artifacts(project, "first"), artifacts(project, "second")
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    for name in different:
        tell("%s differs between two runs", name)
    return {"artifacts_byte_identical": len(first) - len(different), "artifacts_compared": len(first)}


Section = Callable[[Project, int], Figures]


def sections(killed: Sequence[str], signals_per_stage: int) -> dict[str, Section]:
    """Name -> section, in the order in which they run. Signals go to the stages `killed`."""
    return {
        "outputs": outputs,
        "bytes": same_bytes,
        "tampered": tampered,
        "signals": partial(signals, stages=killed, per_stage=signals_per_stage),
        "drivers": drivers,
        "outbox": outbox,
        "llm": llm_faults,
        "names": hostile_names,
        "serving": serving,
    }


def main() -> None:
    names = list(sections([], 0))
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="to be killed")
    parser.add_argument("--signals", type=int, default=7, help="per stage")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    chosen, figures = sections(parsed.stages, parsed.signals), dict[str, float]()
    with Project.copied(finished=bool(set(parsed.only) - WITHOUT_A_RUN)) as project:
        for name in parsed.only:
            found = chosen[name](project, parsed.seed)
            tell("%s: %s", name, dict(found))
            for figure, value in found.items():
                figures[figure] = figures.get(figure, 0) + value
    emit("faults", device_name(), PACKAGES, figures, [figures], parsed.json)


if __name__ == "__main__":
    main()
