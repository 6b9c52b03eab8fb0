"""What preparing, loading and validating images cost, beside a bare loop over the same images.

    python -m benchmarks.data [--json] [--images 2000] [--many 200000] [--rows 100000] [--rounds 5]

prepare_vs_bare       images/s of the stage prepare (decode, verify, write, hash) over those of a bare Pillow decode and
                      sha256 of the same files in as many threads; JPEGs of 500 x 375, in turn, medians
load_vs_bare          images/s of mdpr's loader over those of a bare decode and torchvision transform in torch's loader
                      with as many worker processes; the same JPEGs, to 224 x 224, in turn, medians
prepare_peak_mb_200k  peak resident size in MB of a process that prepares --many images (listed again and again from
                      500 files of 224 x 224)
validate_100k_s       seconds that validate needs beside decoding for --rows rows: relating them, near-duplicates,
                      Great Expectations, Data Docs; loading its library once (rows: import_s) is not in it
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.report import device_name, emit, make_parser
from mdpr.artifacts import ImageRecord, read_card, read_classes, read_images, write_image_records, write_json
from mdpr.images.loading import ImageTable, eval_transform, make_loader
from mdpr.params import Params, PrepareParams, ValidateParams
from mdpr.stages.stage import load_stage, run_stage

PACKAGES = ("pillow", "pyarrow", "torch", "torchvision", "great_expectations")
PHOTO_PX = (500, 375)
SMALL_PX = (224, 224)
SMALL_FILES = 500
CLASSES = 10
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE_PX = 224
BATCH_IMAGES = 64

# Run in a process of its own, which then says how much memory it held at its peak, in KiB.
PREPARE_AND_TELL = """
from pathlib import Path
from mdpr.params import load_params
from mdpr.stages.stage import load_stage, run_stage
run_stage(load_stage("prepare"), {"prepared": Path("../prepared-many")}, load_params(Path("params.yaml")))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="JPEGs that are prepared and loaded")
    parser.add_argument("--many", type=int, default=200_000, help="images whose preparation's memory is measured")
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are validated")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, all in turn in each; the median counts")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads and processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = photos(folder / "photos", arguments.images, PHOTO_PX)
        prepare_s = measure_prepare(folder, files, arguments.rounds, arguments.workers)
        load_s = measure_load(folder, files, arguments.rounds, arguments.workers)
        peak_mb = measure_peak(folder, arguments.many)
        validate = measure_validate(folder, arguments.rows)
    rows = [
        {"what": what, "images": arguments.images, "round": number, "mdpr_s": ours, "bare_s": bare}
        for what, seconds in (("prepare", prepare_s), ("load", load_s))
        for number, (ours, bare) in enumerate(seconds)
    ]
    rows += [
        {"what": f"validate: {part}", "images": arguments.rows, "mdpr_s": value} for part, value in validate.items()
    ]
    figures = {
        "prepare_vs_bare": median_ratio(prepare_s),
        "load_vs_bare": median_ratio(load_s),
        "prepare_peak_mb_200k": peak_mb,
        "validate_100k_s": sum(value for part, value in validate.items() if part not in ("inspect_s", "import_s")),
    }
    table = [{"figure": name, "value": value} for name, value in figures.items()]
    emit("data", device_name(), PACKAGES, figures, rows, arguments.json, table)


def median_ratio(seconds: list[tuple[float, float]]) -> float:
    """Speed of ours over the bare loop's: the ratio of the median times."""
    ours, bare = zip(*seconds, strict=True)
    return statistics.median(bare) / statistics.median(ours)


def photos(folder: Path, count: int, size_px: tuple[int, int]) -> list[Path]:
    """JPEGs with the detail of a photograph: shapes with some noise on them; folder/<class>/<number>.jpg."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        file = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        shapes = np.asarray(coarse.resize(size_px, Image.Resampling.BICUBIC), np.int16)
        noisy = shapes + random.integers(-12, 13, shapes.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file)
    return files


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_prepare(folder: Path, files: list[Path], rounds: int, workers: int) -> list[tuple[float, float]]:
    """Seconds of the stage and of the bare loop, in turn; one round of each to warm up (page cache, imports)."""
    params = PrepareParams(source="folder", root=str(folder / "photos"), profile="natural")
    stage = load_stage("prepare")

    def ours() -> None:
        run_stage(stage, {"prepared": folder / "prepared"}, Params(prepare=params))

    def look(file: Path) -> str:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return hashlib.sha256(data).hexdigest()

    def bare() -> None:
        with ThreadPoolExecutor(workers) as threads:
            assert len(set(threads.map(look, files, chunksize=1))) == len(files)

    ours()
    bare()
    return [(timed(ours), timed(bare)) for _ in range(rounds)]


class BareImages(Dataset[Any]):
    """What anyone would write: open the file, transform, return."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.Resize(SIZE_PX, interpolation=v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(SIZE_PX),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), index


def measure_load(folder: Path, files: list[Path], rounds: int, workers: int) -> list[tuple[float, float]]:
    """Seconds of a pass with each loader, in turn, over the same encoded images in the same number of processes."""
    records = (ImageRecord(file.read_bytes(), file.name, 0) for file in files)
    write_image_records(folder / "load.parquet", records)
    table = read_images(folder / "load.parquet")
    dataset = ImageTable(table, eval_transform(SIZE_PX, MEAN, STD), cache_max_bytes=0)

    def ours() -> None:
        assert sum(len(labels) for _, labels in make_loader(dataset, BATCH_IMAGES, workers=workers)) == len(files)

    def bare() -> None:
        loader = DataLoader(BareImages(files), BATCH_IMAGES, num_workers=workers)
        assert sum(len(labels) for _, labels in loader) == len(files)

    ours()
    bare()
    return [(timed(ours), timed(bare)) for _ in range(rounds)]


def measure_peak(folder: Path, count: int) -> float:
    """MB (10^6 bytes) that a process of its own held at its peak while it prepared `count` images."""
    root = folder / "many"
    files = photos(root, min(SMALL_FILES, count), SMALL_PX)
    with (root / "images.csv").open("w", encoding="utf-8") as stream:
        stream.write("path,label,split\n")
        for number in range(count):
            file = files[number % len(files)]
            split = "test" if number // CLASSES % 10 == 9 else "train"
            stream.write(f"{file.relative_to(root)},{file.parent.name},{split}\n")
    (root / "params.yaml").write_text(f"prepare: {{source: csv, root: {root}, profile: natural}}\n")
    done = subprocess.run([sys.executable, "-c", PREPARE_AND_TELL], cwd=root, check=True, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024 / 1e6


def measure_validate(folder: Path, count: int) -> Mapping[str, float]:
    """Seconds of each part of the stage validate for `count` rows, a tenth of them val and a tenth test."""
    parts: dict[str, float] = {}
    started = time.perf_counter()

    def part(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        parts[name] = now - started
        started = now

    from mdpr.data.checks import expectations, raise_for_errors, run_expectations, write_data_docs
    from mdpr.data.inventory import class_table, inspect_splits, profile_table, split_tables, thumbnails

    part("import_s")
    prepared = tiny_set(folder, count)
    params = ValidateParams(min_side_px=1)
    started = time.perf_counter()
    classes, card = read_classes(prepared), read_card(prepared)
    inspected = inspect_splits(prepared)
    part("inspect_s")
    splits = split_tables(inspected, classes, params.near_duplicate_bits)
    part("relate_s")
    counts = class_table(classes, splits)
    profile = profile_table(counts, card)
    suites = expectations(len(classes), card, params, profile["declared_imbalance_ratio"].item())
    tables = {"classes": counts, "profile": profile, **{str(split): rows for split, rows in splits.items()}}
    findings, results = run_expectations(tables, suites)
    part("expectations_s")
    docs = folder / "docs"
    docs.mkdir()
    write_json(docs / "result.json", findings)
    write_data_docs(docs, findings, results, card, thumbnails(prepared))
    raise_for_errors(findings)
    part("data_docs_s")
    return parts


def tiny_set(folder: Path, count: int) -> Path:
    """A prepared set of `count` different pictures of 16 x 16, made by the stage."""
    root = folder / "tiny"
    root.mkdir()
    random = np.random.default_rng(1)
    tenth = count // 10

    def records(number: int) -> Any:
        for row in range(number):
            header = b"P6 16 16 255\n"  # PPM: nothing to compress
            yield ImageRecord(header + random.bytes(16 * 16 * 3), f"{row}.ppm", row % CLASSES)

    for name, number in (("pool", count - 2 * tenth), ("val", tenth), ("test", tenth)):
        write_image_records(root / f"{name}.parquet", records(number))
    write_json(root / "classes.json", {"classes": [{"index": i, "name": f"class {i}"} for i in range(CLASSES)]})
    params = PrepareParams(source="parquet", root=str(root), profile="natural")
    run_stage(load_stage("prepare"), {"prepared": folder / "tiny-prepared"}, Params(prepare=params))
    return folder / "tiny-prepared"


if __name__ == "__main__":
    main()
