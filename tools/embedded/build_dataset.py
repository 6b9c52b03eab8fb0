"""Write the embedded Fashion-MNIST: `pool.parquet` to cut long tails from, and the official `test.parquet`.

    python -m tools.embedded.build_dataset --source /usr/share/datasets/fashion-mnist

The layout is Hugging Face's for images, so `datasets.load_dataset("parquet", ...)` gives Image and ClassLabel
columns. The same source gives the same bytes every time.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mdpr.artifacts import sha256, write_json
from tools.embedded import run
from tools.embedded.fashion_mnist import CLASS_NAMES, SELECTION_SEED, Selection, Split, read_split, select

DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_OUTPUT = Path("data/embedded/fashion-mnist")

LICENSE = """\
The MIT License (MIT)

Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return one grey image (28, 28) as an optimised PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode="L").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def image_table(split: Split, indices: NDArray[np.int64], folder: str) -> pa.Table:
    """Return the chosen images as a table: `image` (PNG bytes, path with the original index) and `label`."""
    images = [
        {"bytes": encode_png(split.pixels[index]), "path": f"{folder}/{index:05d}.png"} for index in indices.tolist()
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [pa.array(images, image_type), pa.array(split.labels[indices], pa.int64())]
    return pa.Table.from_arrays(columns, schema=schema)


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet without per-column extras that would only repeat incompressible PNG bytes."""
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=["label"])


def make_card(selection: Selection, test: Split, files: list[Path]) -> dict[str, object]:
    """Return the data card: source, how the pool was chosen, counts, and the files' checksums."""
    return {
        "name": "Fashion-MNIST, tuning pool and test set",
        "source": "https://github.com/zalandoresearch/fashion-mnist (Debian package dataset-fashion-mnist)",
        "license": "MIT, 2017 Zalando SE",
        "selection": {
            "seed": SELECTION_SEED,
            "rule": "numpy default_rng(seed) permutes the 60,000 training images; pre-training draws from "
            "the first half, the pool from the second; no pixels are in two of pre-training, pool and test",
            "paths": "the number in image.path is the index in the official split",
        },
        "images": {"pool": len(selection.pool), "test": len(test.labels)},
        "images_per_class": {
            "pool": len(selection.pool) // len(CLASS_NAMES),
            "test": len(test.labels) // len(CLASS_NAMES),
        },
        "sha256": {path.name: sha256(path) for path in files},
    }


def build(source: Path, output: Path) -> None:
    """Read the official files in `source` and write the embedded data set into `output`."""
    train, test = read_split(source, "train"), read_split(source, "t10k")
    selection = select(train, test)
    output.mkdir(parents=True, exist_ok=True)
    pool_path, test_path, classes_path = (output / name for name in ("pool.parquet", "test.parquet", "classes.json"))
    write_table(image_table(train, selection.pool, "train"), pool_path)
    write_table(image_table(test, np.arange(len(test.labels), dtype=np.int64), "test"), test_path)
    classes = [{"index": index, "name": name} for index, name in enumerate(CLASS_NAMES)]
    write_json(classes_path, {"classes": classes})
    (output / "LICENSE").write_text(LICENSE, encoding="utf-8")
    write_json(output / "card.json", make_card(selection, test, [pool_path, test_path, classes_path]))
    for path in (pool_path, test_path):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the embedded Fashion-MNIST as Parquet files.")
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder with the four .gz files")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write")
    options = parser.parse_args(arguments)
    return run(lambda: build(options.source, options.output))


if __name__ == "__main__":
    sys.exit(main())
