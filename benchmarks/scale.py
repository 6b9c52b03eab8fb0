"""The whole chain on very many classes: time and peak memory of every stage, each in a process of its own.

    python -m benchmarks.scale [--classes 8142] [--json]

Made-up pictures and sentences of as many classes as iNaturalist 2018 has: two pictures of each class to tune on, one to
validate, three to test; the embedded mdpr-tiny, one epoch in batches of 128,
otherwise the settings of params.yaml.

probe_peak_mb, tune_peak_mb, evaluate_peak_mb  peak resident size of the stage, in 10^6 bytes
evaluate_s               processor seconds of evaluate as it is configured: ablations of routing, post-hoc, report
evaluate_over_one_pass   these over the processor seconds of evaluate without ablations
report_mb                size of report.html
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import device_name, emit, make_parser
from benchmarks.speed import class_names
from mdpr.artifacts import ImageRecord, write_image_records, write_json
from mdpr.params import DIMENSIONS
from mdpr.progress import track
from mdpr.stages.stage import load_stage

PACKAGES = ("torch", "open_clip_torch", "numpy", "pandas")
STAGES = ("prepare", "validate", "probe", "describe", "encode", "tune", "evaluate")
TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 2, 1, 3  # per class
SIDE_PX, NOISE = 28, 40
MB = 1e6
ONE_PASS = ("evaluate.ablations=false",)
# `mdpr STAGE`, which prints at its end the memory it held at its peak, in KiB. (wait4 also counts the parent's memory
# before exec.)
MDPR = """
import atexit, pathlib, sys
from mdpr.cli import main
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print("PEAK", status.read_text().partition("VmHWM:")[2].split()[0]))
sys.argv[0] = "mdpr"
main()
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder / "source", arguments.classes)
        options = [*settings(folder), *arguments.overrides]
        rows = [run(folder, stage, options) for stage in track(STAGES, "stages")]
        report_mb = (folder / "evaluation" / "report.html").stat().st_size / MB
        rows.append(run(folder, "evaluate", [*options, *ONE_PASS]) | {"what": "evaluate, no ablations"})
    cost = {row["what"]: row for row in rows}
    figures = {f"{stage}_peak_mb": cost[stage]["peak_mb"] for stage in ("probe", "tune", "evaluate")} | {
        "evaluate_s": cost["evaluate"]["cpu_s"],
        "evaluate_over_one_pass": cost["evaluate"]["cpu_s"] / cost["evaluate, no ablations"]["cpu_s"],
        "report_mb": report_mb,
    }
    emit("scale", device_name(), PACKAGES, figures, rows, arguments.json)


def write_world(folder: Path, classes: int) -> None:
    """A source of made-up classes: pool.parquet, test.parquet, classes.json, and knowledge.json beside them."""
    folder.mkdir(parents=True)
    names = class_names(classes)
    write_image_records(folder / "pool.parquet", pictures(classes, TRAIN_IMAGES + VAL_IMAGES, seed=0))
    write_image_records(folder / "test.parquet", pictures(classes, TEST_IMAGES, seed=1))
    classes_json = [{"index": index, "name": name} for index, name in enumerate(names)]
    write_json(folder / "classes.json", {"classes": classes_json})
    knowledge = {
        "format": "mdpr-knowledge/1",
        "provenance": {"author": "benchmarks.scale"},
        "classes": [
            {
                "index": index,
                "name": name,
                "rival": names[index - 1],
                "sentences": {
                    key: f"The {key.replace('_', ' ')} of the {name} is that of kind {index} in {classes}."
                    for key in DIMENSIONS
                },
            }
            for index, name in enumerate(names)
        ],
    }
    (folder / "knowledge.json").write_text(json.dumps(knowledge), encoding="utf-8")


def pictures(classes: int, images: int, seed: int) -> Iterator[ImageRecord]:
    """Grey pictures: a coarse pattern of the class under noise of the picture."""
    noise = np.random.default_rng(seed)
    for label in range(classes):
        coarse = Image.fromarray(np.random.default_rng((7, label)).integers(0, 256, (5, 5), dtype=np.uint8))
        pattern = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC), np.int16)
        for number in range(images):
            noisy = pattern + noise.integers(-NOISE, NOISE + 1, pattern.shape, dtype=np.int16)
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            yield ImageRecord(file.getvalue(), f"{label}/{seed}-{number}.png", label)


def settings(folder: Path) -> list[str]:
    return [
        "prepare.source=parquet",
        f"prepare.root={folder / 'source'}",
        "prepare.profile=step",
        "prepare.imbalance_ratio=1",
        "prepare.cut_by=order",
        f"prepare.max_images_per_class={TRAIN_IMAGES}",
        f"prepare.val_images_per_class={VAL_IMAGES}",
        f"describe.path={folder / 'source' / 'knowledge.json'}",
        "describe.strict=false",
        "validate.near_duplicates=off",
        "tune.epochs=1",
        "tune.batch_size=128",
        f"tracking.outbox={folder / 'outbox'}",
    ]


def run(folder: Path, stage: str, overrides: Sequence[str]) -> dict[str, Any]:
    """`mdpr STAGE` in a process of its own; its processor and wall seconds and its peak resident size."""
    paths = [part for port in load_stage(stage).ports for part in (f"--{port}", str(folder / port))]
    options = [part for item in overrides for part in ("--set", item)]
    environment: Mapping[str, str] = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    command = [sys.executable, "-c", MDPR, stage, *paths, *options]
    before = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"mdpr {stage} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    peak_kib = int(done.stdout.rpartition("PEAK ")[2])
    return {"what": stage, "cpu_s": seconds, "wall_s": after.elapsed - before.elapsed, "peak_mb": peak_kib * 1024 / MB}


if __name__ == "__main__":
    main()
