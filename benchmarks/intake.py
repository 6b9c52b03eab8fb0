"""How other people's pictures and folders fare: nothing may be lost in silence, nothing may stop without a line.

    python -m benchmarks.intake [--json] [--exif 6000] [--files 100000] [--images 2000] [--rounds 5] [--predict 100000]

exif_survived       pictures with an EXIF block damaged at random that are decoded, of --exif
folder_cases_right  folders, tables and odd pictures that are read as they should be or refused with the word that
                    names the fault, as a fraction of all cases (rows: each of them)
silent_losses       pictures of all cases that were neither used nor counted nor refused
wrappers_read       of the wrappers of benchmarks/llm_wrappers.py, those that all 50 sentences are read out of
prepare_vs_bare, load_vs_bare   as in benchmarks.data
look_s              seconds of `mdpr data look` on a folder of --files files, the start of Python included
predict_s           seconds of `mdpr predict` on a folder of --predict embedded pictures in files (not without it), the
                    start of Python included
predict_peak_mb     resident memory of that process at its peak, in MB
"""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data import PHOTO_PX, measure_load, measure_prepare, median_ratio, photos, timed
from benchmarks.llm_wrappers import wrappers_read
from benchmarks.report import device_name, emit, make_parser
from benchmarks.scale import MB, MDPR
from mdpr.artifacts import read_card, read_classes, read_images
from mdpr.errors import MdprError
from mdpr.images.decoding import decode, decode_image
from mdpr.params import Params, PrepareParams, TrackingParams
from mdpr.stages.stage import load_stage, run_stage

PACKAGES = ("pillow", "pyarrow", "torch", "torchvision")
ORIENTATION, ROWS_PER_STRIP = 0x0112, 0x0116
EXIF_TAGS = {0x010F: "maker", ORIENTATION: 6, 0x011A: 72.0, 0x0128: 2, 0x0132: "2020:01:01 10:00:00"}
CAT_AND_DOG = {"cat": 6, "dog": 6}
WITH_ANT = {**CAT_AND_DOG, "ant": 1}
N1_N2, NAMED = {"n1": 6, "n2": 6}, {"tench": 6, "eel": 6}


@dataclass(frozen=True)
class Case:
    """A source as people have it. It must give `counts` (images of each class, all splits together) or be `refused`.

    folders   pictures to put into each folder
    add       what else belongs to it
    """

    name: str
    folders: Mapping[str, int]
    counts: Mapping[str, int] | None = None
    refused: str = ""
    add: Callable[[Path], object] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A file of the source."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda root: (root / name).symlink_to(target)


def fifo(name: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        os.mkfifo(root / name)

    return make


def sparse(root: Path) -> None:
    with (root / "cat" / "s.png").open("wb") as file:
        file.truncate(200 * 2**30)


def picture(kind: str, values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def table(*rows: str) -> Callable[[Path], object]:
    return write("images.csv", "\n".join(["path,label", *rows]) + "\n")


LISTED = tuple(
    f"{label}/{6 * place + index}.png,{label}" for place, label in enumerate(CAT_AND_DOG) for index in range(6)
)
SPLITS = {f"{split}/{label}": 6 for split in ("train", "test") for label in CAT_AND_DOG}
GREY = np.full((40, 64), 88)

CASES = (
    Case("plain", CAT_AND_DOG, CAT_AND_DOG),
    *[
        Case(f"folder {name}", {**CAT_AND_DOG, f"cat/{name}": 3}, CAT_AND_DOG)
        for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints")
    ],
    *[
        Case(f"split {name}", {**SPLITS, f"{name}/cat": 6, f"{name}/dog": 6}, refused=f"{name} is no split")
        for name in ("valid", "validation", "dev", "Val", "eval")
    ],
    Case(
        "Training and Testing", {f"{s}ing/{c}": 6 for s in ("Train", "Test") for c in CAT_AND_DOG}, refused="rename it"
    ),
    Case("class train", {"bus": 6, "plane": 6, "train": 6}, refused="rename it if train is a class"),
    Case("test without labels", {"train/cat": 6, "train/dog": 6, "test": 6}, refused="test_from"),
    Case("splits inside classes", {"cat/train": 6, "cat/test": 6, "dog/train": 6}, refused="above the classes"),
    Case("two levels", {"A/cat": 6, "A/dog": 6, "B/cat": 6, "B/dog": 6}, refused="class_depth"),
    Case("second level", {"A/cat": 6, "A/dog": 6}, CAT_AND_DOG, settings={"class_depth": 2}),
    Case("case", {"Bee": 6, "bee": 6}, refused="differ by case"),
    Case("NFC and NFD", {"\u00e9": 6, "e\u0301": 6, "z": 6}, {"\u00e9": 12, "z": 6}),
    Case(
        "NFC and NFD splits", {"train/\u00e9": 6, "train/z": 6, "test/e\u0301": 6, "test/z": 6}, {"\u00e9": 12, "z": 12}
    ),
    Case("underscores", {"fire_truck": 6, "dog": 6}, {"fire truck": 6, "dog": 6}),
    Case("bell", {"a\x07b": 6, "dog": 6}, refused="control character"),
    Case("not a character", {"a\ufffeb": 6, "dog": 6}, refused="control character"),
    Case("terminal", {"a\x1b]0;t\x07": 6, "dog": 6}, refused="control character"),
    Case(
        "names.csv",
        N1_N2,
        NAMED,
        add=write("names.csv", "folder,name\nn1,tench\nn2,eel\n"),
    ),
    Case(
        "names.json",
        N1_N2,
        NAMED,
        add=write("classes.json", '{"n1": "tench", "n2": "eel"}'),
    ),
    Case("names missing", N1_N2, refused="no name", add=write("classes.json", '{"n1": "tench"}')),
    Case("one image", {"cat": 30, "dog": 1}, refused="small_classes"),
    Case("one image dropped", WITH_ANT, CAT_AND_DOG, settings={"small_classes": "drop"}),
    Case(
        "one image for training",
        WITH_ANT,
        WITH_ANT,
        settings={"small_classes": "train_only"},
    ),
    Case("link out", CAT_AND_DOG, refused="through a link", add=link("cat/more", "/usr/share")),
    Case("link up", CAT_AND_DOG, refused="link to a folder above", add=link("cat/loop", "..")),
    Case("dead link", CAT_AND_DOG, refused="leads nowhere", add=link("cat/x.png", "nowhere.png")),
    Case("device", CAT_AND_DOG, refused="not a regular file", add=link("cat/x.png", "/dev/zero")),
    Case("FIFO", CAT_AND_DOG, refused="not a regular file", add=fifo("cat/p.png")),
    Case("sparse", CAT_AND_DOG, refused="bytes, more than", add=sparse),
    Case("table", CAT_AND_DOG, CAT_AND_DOG, add=table(*LISTED), settings={"source": "csv"}),
    Case(
        "table link out",
        CAT_AND_DOG,
        refused="through a link",
        add=lambda root: (link("away", "/usr/share")(root), table("away/x.png,cat", *LISTED)(root)),
        settings={"source": "csv"},
    ),
    Case(
        "table FIFO",
        CAT_AND_DOG,
        refused="FIFO",
        add=lambda root: (fifo("p.png")(root), table("p.png,cat", *LISTED)(root)),
        settings={"source": "csv"},
    ),
    Case(
        "suffix .jfif",
        {**CAT_AND_DOG, "ant": 0},
        {**CAT_AND_DOG, "ant": 5},
        add=lambda root: [
            (root / "ant" / f"{index}.jfif").write_bytes(picture("JPEG", noise(index))) for index in range(5)
        ],
    ),
    Case(
        "no suffix",
        {**CAT_AND_DOG, "ant": 0},
        {**CAT_AND_DOG, "ant": 5},
        add=lambda root: [(root / "ant" / f"{index}").write_bytes(picture("JPEG", noise(index))) for index in range(5)],
    ),
    Case("suffix .heic", CAT_AND_DOG, CAT_AND_DOG, add=write("cat/x.heic", b"\0\0\0\x18ftypheic")),
    *[
        Case(
            f"grey {name}",
            CAT_AND_DOG,
            {"cat": 7, "dog": 6},
            add=write(f"cat/grey88.{kind.lower()}", picture(kind, values)),
        )
        for name, kind, values in (
            ("12 of 16 bits", "PNG", GREY.astype(np.uint16) << 4),
            ("16 bits", "PNG", GREY.astype(np.uint16) * 257),
            ("32 bits", "TIFF", GREY.astype(np.int32)),
            ("floating point", "TIFF", (GREY / 255).astype(np.float32)),
        )
    ],
    Case(
        "grey negative",
        CAT_AND_DOG,
        refused="grey values",
        add=write("cat/x.tiff", picture("TIFF", GREY.astype(np.int32) - 99)),
    ),
)


def judge(case: Case, folder: Path) -> tuple[bool, int, str]:
    """Whether a case came out as it must, how many pictures were lost in silence, and what was said."""
    root, made = folder / "source", 0
    for name, count in case.folders.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            (root / name / f"{made}.png").write_bytes(picture("PNG", noise(made)))
            made += 1
    if case.add:
        case.add(root)
    params = PrepareParams.model_validate(
        {"source": "folder", "root": str(root), "profile": "natural", **case.settings}
    )
    try:
        run_stage(load_stage("prepare"), {"prepared": folder / "prepared"}, Params(prepare=params))
    except MdprError as error:
        one_line = "\n" not in str(error) and str(error).isprintable()
        return bool(case.refused) and case.refused in str(error) and one_line, 0, str(error).replace(str(folder), "")
    card, classes = read_card(folder / "prepared"), read_classes(folder / "prepared")
    records = [record for split in card.images for record in read_images(folder / "prepared" / f"{split}.parquet")]
    counts = {item.name: sum(record.label == item.index for record in records) for item in classes}
    greys = [np.asarray(decode_image(record.image, "x")) for record in records if "grey88" in record.path]
    sound = counts == case.counts and all((pixels == 88).all() for pixels in greys)
    accounted = bool(card.left_out or card.passed_over or card.dropped_classes)
    return sound, 0 if accounted else max(0, made - len(records)), str(counts)


def measure_look(folder: Path, files: int) -> float:
    """Seconds of the command on empty files in 1,000 class folders."""
    for number in range(files):
        path = folder / f"class {number % 1000:04}" / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    command = [sys.executable, "-m", "mdpr", "data", "look", str(folder)]
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))


def measure_predict(folder: Path, count: int) -> dict[str, float]:
    """Time and memory of the command on links to a thousand files, with the embedded backbone tuned for an epoch."""
    from benchmarks.serving import tuned_model  # loads MLflow; tests take fuzzed_exif from here

    tracking = TrackingParams(outbox=str(folder / "outbox"))
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    paths, _ = tuned_model(Path("params.yaml"), folder, tracking)
    pictures = read_images(paths["prepared"] / "test.parquet")
    files = [folder / "pictures" / f"{number // 1000:04}" / f"{number:06}.png" for number in range(count)]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < 1000:
            file.write_bytes(pictures.image(number))
        else:
            file.hardlink_to(files[number % 1000])
    out = folder / "predictions.csv"
    command = ("predict", str(folder / "pictures"), "--model", str(paths["model"]), "--out", str(out))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MDPR, *command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    seconds = time.perf_counter() - started
    with out.open(encoding="utf-8") as stream:
        assert sum(1 for _ in stream) == count + 1
    return {"predict_s": seconds, "predict_peak_mb": int(done.stdout.rpartition("PEAK ")[2]) * 1024 / MB}


def survived(count: int) -> int:
    """How many pictures with a damaged EXIF block are decoded."""
    alive = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in fuzzed_exif(count):
            try:
                alive += decode(data, "x").image.size in ((30, 20), (20, 30))
            except MdprError:
                continue
    return alive


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--exif", type=int, default=6000, help="pictures with a damaged EXIF block")
    parser.add_argument("--files", type=int, default=100_000, help="files of the folder that is looked at")
    parser.add_argument("--images", type=int, default=2000, help="JPEGs that are prepared and loaded")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of preparing and loading; the median counts")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads and processes")
    parser.add_argument("--predict", type=int, default=0, help="pictures that are classified")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, case in enumerate(CASES):
            right, lost, outcome = judge(case, folder / str(number))
            rows.append({"case": case.name, "right": right, "lost": lost, "outcome": outcome[:200]})
        wrappers = wrappers_read(folder / "wrappers")
        look_s = measure_look(folder / "look", arguments.files)
        files = photos(folder / "photos", arguments.images, PHOTO_PX)
        prepare_s = measure_prepare(folder, files, arguments.rounds, arguments.workers)
        load_s = measure_load(folder, files, arguments.rounds, arguments.workers)
        predicted = measure_predict(folder, arguments.predict) if arguments.predict else {}
    figures = {
        "exif_survived": survived(arguments.exif),
        "folder_cases_right": sum(row["right"] for row in rows) / len(rows),
        "silent_losses": sum(row["lost"] for row in rows),
        "wrappers_read": sum(wrappers.values()),
        "wrappers": len(wrappers),
        "prepare_vs_bare": median_ratio(prepare_s),
        "load_vs_bare": median_ratio(load_s),
        "look_s": look_s,
        **predicted,
    }
    shown = [{"figure": name, "value": value} for name, value in figures.items()]
    emit("intake", device_name(), PACKAGES, figures, rows, arguments.json, shown)


def fuzzed_exif(count: int, seed: int = 0) -> Iterator[bytes]:
    """Sound pictures of 30 x 20 pixels (JPEG, PNG, WebP and TIFF in turn) whose EXIF blocks are damaged at random."""
    chance = random.Random(seed)  # noqa: S311
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    for tag, value in EXIF_TAGS.items():
        exif[tag] = value
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 10:00:00"
    block, tiff = exif.tobytes(), _encoded(image, "TIFF", exif)
    places = _exif_places(tiff)
    for number in range(count):
        kind = ("JPEG", "PNG", "WEBP", "TIFF")[number % 4]
        damaged = bytearray(tiff if kind == "TIFF" else block)
        for _ in range(chance.randrange(1, 9)):
            place = chance.choice(places) if kind == "TIFF" else chance.randrange(6, len(block))
            damaged[place] = chance.randrange(256)
        if kind == "TIFF":
            yield bytes(damaged)
            continue
        if chance.random() < 0.2:
            del damaged[chance.randrange(6, len(damaged)) :]
        yield _encoded(image, kind, bytes(damaged))


def _encoded(image: Image.Image, kind: str, exif: Image.Exif | bytes) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def _exif_places(tiff: bytes) -> list[int]:
    """Where, in a TIFF, EXIF's tags lie: the value of the orientation, and all of those behind the pixels' own tags."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, start)
    places: list[int] = []
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from("<H", tiff, entry)
        if tag == ORIENTATION:
            places += range(entry + 8, entry + 12)
        elif tag in EXIF_TAGS and tag > ROWS_PER_STRIP:
            places += range(entry + 2, entry + 12)
    return places


if __name__ == "__main__":
    main()
