"""What Kubeflow adds to the stages: time of its driver, of compiling, of importing; and the sizes of the images.

    python -m benchmarks.pipeline [--json] [--set tune.epochs=1]

driver_over_stages: the whole pipeline under kfp's SubprocessRunner over the sum of its stages as `mdpr STAGE`, one
process each, with the same parameters on the embedded data. compile_s: `mdpr pipeline compile`, from the shell.
import_s: what a component's body waits for before its stage starts. image_cpu_mb and image_gpu_mb (10^6 bytes,
unpacked) are left out where no Docker engine answers or an image was not built.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker  # type: ignore[import-untyped]
from components.images import IMAGE_CPU, IMAGE_GPU

from benchmarks.report import device_name, emit, make_parser
from mdpr.progress import track
from mdpr.stages.stage import STAGES, load_stage

PACKAGES = ("kfp", "kfp-kubernetes", "torch", "mlflow")
SETTINGS = ("prepare.max_images_per_class=300", "prepare.val_images_per_class=20", "tune.epochs=1")
IMPORT = "import time; t = time.perf_counter(); import mdpr.kubeflow.components; print(time.perf_counter() - t)"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of everything, in turn; medians are reported")
    parser.add_argument("--set", dest="overrides", action="append", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    options = [part for item in arguments.overrides or SETTINGS for part in ("--set", item)]

    rows = [measure(options) for _ in track(range(arguments.repeats), "rounds")]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    figures = {
        "driver_over_stages": middle["pipeline_s"] / sum(middle[f"{name}_s"] for name in STAGES),
        "compile_s": middle["compile_s"],
        "import_s": middle["import_s"],
        **image_sizes(),
    }
    emit("pipeline", device_name(), PACKAGES, figures, rows, arguments.json)


def measure(options: Sequence[str]) -> dict[str, float]:
    """Seconds of each stage on its own, of the whole pipeline, of compiling and of importing, once each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {}
        for stage_name in STAGES:
            ports = load_stage(stage_name).ports
            paths = [part for port in ports for part in (f"--{port}", str(folder / "stages" / port))]
            seconds[f"{stage_name}_s"] = timed(folder / "stages", stage_name, *paths, *options)
        runs = folder / "pipeline"
        seconds["pipeline_s"] = timed(runs, "pipeline", "run", "--output", str(runs), *options)
        seconds["compile_s"] = timed(folder, "pipeline", "compile", "--output", str(folder))
    imported = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return {**seconds, "import_s": float(imported.stdout)}


def timed(folder: Path, *arguments: str) -> float:
    """Seconds of `mdpr ARGUMENTS` in a process of its own, with an MLflow store in `folder`."""
    folder.mkdir(exist_ok=True)
    environment: Mapping[str, str] = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "mdpr", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"mdpr {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def image_sizes() -> dict[str, float]:
    """Sizes of the images that are there."""
    try:
        client: Any = docker.from_env(timeout=10)
    except docker.errors.DockerException:
        return {}
    tags = {tag: image.attrs["Size"] for image in client.images.list() for tag in image.tags}
    client.close()
    named = {"image_cpu_mb": IMAGE_CPU, "image_gpu_mb": IMAGE_GPU}
    return {figure: tags[tag] / 1e6 for figure, tag in named.items() if tag in tags}


if __name__ == "__main__":
    main()
