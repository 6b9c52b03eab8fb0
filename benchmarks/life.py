"""The life of a model: data that grow, models that follow each other, and what comes in after deployment.

    python -m benchmarks.life [--only splits gate coverage shift champions queue] [--json]

Embedded pictures as own images in three versions: few of nine classes; many of them; a class more and other shares of
the classes, some pictures gone.

images_moved_between_splits   pictures of a version that the next one has in another split, `prepare.previous` named
                              (rows: moved_afresh without it, across: look-alikes in two splits)
promotions_that_should        share of better models that the gate promotes: the first, more data, a class more
promotions_that_should_not    others that it promotes: another seed of the champion, hardly trained ones
coverage_min                  least share of 95 % intervals that hold the truth, over images per class and classes
shift_error, shift_error_of_counting, accuracy_gain_with_prior   as in benchmarks.shift, on the last champion's test
champions_after_20            versions that win when 20 promote at once
queue_runs_lost               queued DVC experiments whose run the project's MLflow store does not have
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.coverage import Cell, simulate
from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import (
    NO_HASH,
    PICTURES_FILE,
    SPLITS,
    Promotion,
    Split,
    read_card,
    read_json,
    read_pictures,
    write_json,
)
from mdpr.artifacts import Pictures as PreparedPictures
from mdpr.data.near_duplicates import NOTHING, nearest_within
from mdpr.params import Params, dump_yaml, load_params, parse_yaml
from mdpr.project import environment as with_scripts
from mdpr.stages.stage import load_stage, run_stage

PACKAGES = ("torch", "mlflow", "scipy")
EMBEDDED = Path(__file__).resolve().parent.parent / "data" / "embedded"
NEW_CLASS = "bag"
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 1.0, 0.2)  # of each class in the third version
SHIFT_RATIO = 10.0  # between the most and the least frequent class in deployment
LAST_BETTER = "model-2"  # what the gate should promote last
Row = dict[str, Any]
Figures = dict[str, float]


class Pictures:
    """The embedded pictures, a folder per class as people have them."""

    def __init__(self) -> None:
        self.names = [item["name"] for item in read_json(EMBEDDED / "fashion-mnist" / "classes.json")["classes"]]
        rows = pq.read_table(EMBEDDED / "fashion-mnist" / "pool.parquet").to_pylist()
        self._of_class = [[row["image"]["bytes"] for row in rows if row["label"] == index] for index in range(10)]

    def write(self, root: Path, counts: Mapping[str, int]) -> Path:
        """CLASS/NNNN.png, the first so many of each class."""
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for number, data in enumerate(self._of_class[self.names.index(name)][:count]):
                (root / name / f"{number:04}.png").write_bytes(data)
        return root

    def versions(self, few: int, many: int) -> list[dict[str, int]]:
        """Images per class of the three versions."""
        old = [name for name in self.names if name != NEW_CLASS]
        last = {name: int(many * share) for name, share in zip(self.names, SHARES, strict=True)}
        return [dict.fromkeys(old, few), dict.fromkeys(old, many), last]

    def knowledge(self, file: Path, names: Sequence[str]) -> Path:
        """The shipped sentences of these classes, numbered as their folders are."""
        content = read_json(EMBEDDED / "knowledge" / "fashion-mnist.json")
        of_name = {item["name"]: item for item in content["classes"]}
        classes = [of_name[name] | {"index": index} for index, name in enumerate(sorted(names))]
        for item in classes:
            item["rival"] = item["rival"] if item["rival"] in names else next(n for n in names if n != item["name"])
        write_json(file, content | {"classes": classes})
        return file


@dataclass
class Life:
    """Versions of a data set and of a model, in one folder with one MLflow store (mlflow.db in the working folder)."""

    folder: Path
    pictures: Pictures
    policy: Path = EMBEDDED.parent.parent / "mlflow" / "promotion.yaml"
    overrides: tuple[str, ...] = ()

    def params(self, name: str, *overrides: str) -> Params:
        root = EMBEDDED.parent.parent
        return load_params(
            root / "params.yaml",
            [
                "prepare.source=folder",
                f"prepare.root={self.folder / name / 'images'}",
                "prepare.profile=natural",
                f"backbone.architecture={EMBEDDED / 'mdpr-tiny' / 'mdpr-tiny.json'}",
                f"backbone.weights={EMBEDDED / 'mdpr-tiny' / 'mdpr-tiny.safetensors'}",
                "backbone.device=cpu",
                f"describe.path={self.folder / name / 'knowledge.json'}",
                f"register.pyfunc={root / 'mlflow' / 'model.py'}",
                f"promote.policy={self.policy}",
                "tracking.system_metrics=false",
                "evaluate.gallery_images=0",
                "evaluate.ablations=false",
                *self.overrides,
                *overrides,
            ],
        )

    def prepare(self, name: str, counts: Mapping[str, int], previous: str = "", *overrides: str) -> Path:
        """Own images as prepared data; `previous` names an earlier version."""
        if not (self.folder / name / "images").exists():
            self.pictures.write(self.folder / name / "images", counts)
            self.pictures.knowledge(self.folder / name / "knowledge.json", list(counts))
        earlier = json.dumps(str(self.folder / previous / "prepared") if previous else "")
        prepared = self.folder / name / "prepared"
        params = self.params(name, f"prepare.previous={earlier}", *overrides)
        run_stage(load_stage("prepare"), {"prepared": prepared}, params)
        return prepared

    def train(self, name: str, model: str = "", *overrides: str) -> Promotion:
        """A model of a prepared version through every later stage; what belongs to the data is made once."""
        params, shared = self.params(name, *overrides), self.folder / name
        paths = {port: shared / port for port in ("prepared", "probe", "knowledge", "features")}
        for stage, port in (("probe", "probe"), ("describe", "knowledge"), ("encode", "features")):
            if not paths[port].exists():
                run_stage(load_stage(stage), paths, params)
        own = self.folder / (model or name)
        paths |= {port: own / port for port in ("model", "evaluation", "scores")}
        paths |= {port: own / f"{port}.json" for port in ("registration", "promotion")}
        own.mkdir(exist_ok=True)
        for stage in ("tune", "evaluate", "register", "promote"):
            run_stage(load_stage(stage), paths, params)
        return Promotion.read(paths["promotion"])


def moved(before: Path, after: Path) -> int:
    """Pictures that the two prepared versions have in different splits."""
    first, second = (
        {image: name for name, of in _pictures(folder).items() for image in of.image_N.tolist()}
        for folder in (before, after)
    )
    return sum(first[image] != second[image] for image in first.keys() & second.keys())


def _pictures(prepared: Path) -> dict[Split, PreparedPictures]:
    return read_pictures(prepared / PICTURES_FILE, str(prepared))


def across(prepared: Path, bits: int) -> int:
    """Pictures of validation and test that look like one of an earlier split."""
    of = _pictures(prepared)
    hashes = [of[name].hash_N[of[name].hash_N != NO_HASH] for name in SPLITS]
    pairs = ((hashes[0], hashes[1]), (np.concatenate(hashes[:2]), hashes[2]))
    return sum(int((nearest_within(known, asked, bits)[0] != NOTHING).sum()) for known, asked in pairs)


def measure_splits(life: Life) -> tuple[Figures, list[Row]]:
    """Three versions, each beside the one before: once with it named, once without."""
    rows: list[Row] = []
    earlier: list[Path] = []
    for number, counts in enumerate(life.pictures.versions(120, 600), start=1):
        name, before = f"splits-{number}", f"splits-{number - 1}" if number > 1 else ""
        prepared = life.prepare(name, counts, before)
        afresh = life.folder / f"afresh-{number}"
        run_stage(load_stage("prepare"), {"prepared": afresh}, life.params(name))
        card = read_card(prepared)
        share = card.images["test"] / sum(card.images.values())
        row: Row = {"version": number, "images": sum(card.images.values()), "test_share": 100 * share}
        row |= {"groups": card.alike.groups if card.alike else 0, "largest": card.alike.largest if card.alike else 0}
        row["moved"] = card.since.moved if card.since else 0
        row["stayed"] = card.since.stayed if card.since else 0
        row["moved_afresh"] = moved(earlier[-1], afresh) if earlier else 0
        row["across"] = across(prepared, card.near_duplicate_bits)
        assert row["moved"] == (moved(life.folder / before / "prepared", prepared) if before else 0)
        rows.append(row)
        earlier.append(afresh)
    return {"images_moved_between_splits": sum(row["moved"] for row in rows)}, rows


def growing(names: Sequence[str]) -> list[dict[str, int]]:
    """Images per class of three versions: more of every class each time; then a class more, and other shares."""
    old = [name for name in names if name != NEW_CLASS]
    last = {name: 500 + int(700 * share) for name, share in zip(names, SHARES, strict=True)}
    return [dict.fromkeys(old, 100), dict.fromkeys(old, 500), last]


def measure_gate(life: Life) -> tuple[Figures, list[Row]]:
    """Three versions are trained and judged; between them models that are no better.

    The first model learns prompts. With more images comes an adapter with a learned head, which can use them: images by
    themselves gain this small model too little for a test set of this size to show it.
    """
    first, second, third = growing(life.pictures.names)
    life.overrides += ("tune.prompting=lora", "tune.head=cosine")
    share = "prepare.test_share=0.5"  # a gate needs test images, a small model needs few to learn from
    life.prepare("first", first, "", share)
    life.prepare("second", second, "first", share)
    life.prepare("third", third, "second", share)
    # The machine of a benchmark is seldom quiet enough to judge latency.
    policy = parse_yaml(life.policy.read_text(encoding="utf-8"), str(life.policy))
    policy["first_model"]["max_latency_ms"] = policy["later_models"]["max_latency_ratio"] = 1e6
    life.policy = life.folder / "promotion.yaml"
    life.policy.write_text(dump_yaml(policy), encoding="utf-8")
    steps: list[tuple[str, str, bool, tuple[str, ...]]] = [
        ("first", "first model", True, ("tune.epochs=1", "tune.prompting=maple", "tune.head=text")),
        ("second", "more data and an adapter", True, ("tune.epochs=3",)),
        ("third", "a class more", True, ("tune.epochs=3",)),
        ("third", "another seed", False, ("tune.epochs=3", "tune.seed=1")),
        ("third", "hardly trained", False, ("tune.epochs=1", "tune.learning_rate=1e-6", "tune.min_learning_rate=1e-7")),
    ]
    rows: list[Row] = []
    for number, (version, step, should, overrides) in enumerate(steps):
        promotion = life.train(version, f"model-{number}", *overrides)
        rows.append(
            {
                "step": step,
                "should": should,
                "promoted": promotion.decision == "promoted",
                "champion": str(promotion.champion_after),
                "reason": promotion.reason,
            }
        )
    better = [row["promoted"] for row in rows if row["should"]]
    others = [row["promoted"] for row in rows if not row["should"]]
    return {"promotions_that_should": sum(better) / len(better), "promotions_that_should_not": sum(others)}, rows


def measure_coverage(_: Life) -> tuple[Figures, list[Row]]:
    """Intervals of class-balanced accuracies and of paired differences, on simulated test sets."""
    worst: dict[tuple[int, int], Cell] = {}
    for cell in simulate():
        place = cell.classes, cell.images
        worst[place] = min(worst.get(place, cell), cell, key=lambda item: item.coverage)
    return {"coverage_min": min(cell.coverage for cell in worst.values())}, [asdict(cell) for cell in worst.values()]


def measure_shift(life: Life) -> tuple[Figures, list[Row]]:
    """`benchmarks.shift` on the test images of the last champion, or of a model that is trained for it."""
    from benchmarks.shift import measure_shift as measured
    from mdpr.monitoring.sample import read_reference

    model = life.folder / LAST_BETTER
    if not model.exists():
        life.prepare("shifted", dict.fromkeys(life.pictures.names, 300))
        life.train("shifted", LAST_BETTER, "tune.epochs=1")
    return measured(read_reference(model / "evaluation"), range(10), SHIFT_RATIO)


def measure_champions(life: Life) -> tuple[Figures, list[Row]]:
    """Twenty processes promote their own version at the same moment."""
    from benchmarks.serving_crowd import count_winners

    folder = life.folder / "crowd"
    folder.mkdir()
    winners = count_winners(folder, 20)
    return {"champions_after_20": winners}, [{"promoters": 20, "winners": winners}]


def measure_queue(life: Life) -> tuple[Figures, list[Row]]:
    """Two queued experiments in a project that `mdpr init` made."""
    from benchmarks.queued import queue_runs_lost

    project = life.folder / "project"
    environment = {key: value for key, value in with_scripts().items() if not key.startswith("MLFLOW_TRACKING")}

    def run(*command: str, cwd: Path = project) -> None:
        subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)

    def commit() -> None:
        run("git", "add", "--all")
        run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "version")

    run(sys.executable, "-m", "mdpr", "init", str(project), "--recipe", "fashion-mnist-lt", cwd=life.folder)
    commit()
    small = ("prepare.max_images_per_class=60", "prepare.imbalance_ratio=10", "prepare.val_images_per_class=10")
    settings = [*small, "tune.epochs=1", "evaluate.gallery_images=0", "evaluate.ablations=false"]
    run(sys.executable, "-m", "dvc", "exp", "run", *(f"--set-param={pair}" for pair in settings))
    commit()
    lost = queue_runs_lost(project, ["tune.seed=1", "tune.seed=2"], environment)
    return {"queue_runs_lost": lost}, [{"queued": 2, "lost": lost}]


SECTIONS: dict[str, Callable[[Life], tuple[Figures, list[Row]]]] = {
    "splits": measure_splits,
    "gate": measure_gate,
    "coverage": measure_coverage,
    "shift": measure_shift,
    "champions": measure_champions,
    "queue": measure_queue,
}


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, with an MLflow store of its own."""
    with tempfile.TemporaryDirectory() as name, chdir(Path(name)):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(name) / 'mlflow.db'}"
        yield Path(name)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="parts to measure")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    figures: Figures = {}
    rows: list[Row] = []
    with working_folder() as folder:
        life = Life(folder, Pictures())
        for name in arguments.only:
            found, made = SECTIONS[name](life)
            figures |= found
            rows += [{"section": name, **row} for row in made]
    shown = [{"figure": name, "value": float(value)} for name, value in figures.items()]
    emit("life", device_name(), PACKAGES, figures, rows, arguments.json, shown)


if __name__ == "__main__":
    main()
