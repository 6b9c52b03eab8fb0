"""How far a stranger is from a champion: commands, seconds, and how much there is to read.

    python -m benchmarks.adoption [--json]

demo_s               from an empty folder to a champion on the embedded data, installation excluded
demo_commands        number of those commands
own_images_commands  the commands for a folder of own images, as the tutorial gives them up to the first champion
readme_words         words of README.md
docs_pages           pages of the documentation site
dead_links           what mkdocs finds broken in it when it builds strictly
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import device_name, emit, make_parser
from mdpr.project import environment as with_scripts

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("dvc", "mlflow", "torch")
DEMO = (["mdpr", "demo", "--folder", "demo"],)
OWN_IMAGES = ("mdpr init", "cd ", "dvc repro")


def main() -> None:
    parser = make_parser(__doc__)
    options = parser.parse_args()
    tutorial = (PROJECT / "docs/tutorial.md").read_text(encoding="utf-8")
    pages, dead_links = build_docs()
    figures = {
        "demo_s": run_demo(),
        "demo_commands": float(len(DEMO)),
        "own_images_commands": float(sum(f"    {command}" in tutorial for command in OWN_IMAGES)),
        "readme_words": float(len((PROJECT / "README.md").read_text(encoding="utf-8").split())),
        "docs_pages": float(pages),
        "dead_links": float(dead_links),
    }
    rows = [{"figure": name, "value": value} for name, value in figures.items()]
    emit("adoption", device_name(), PACKAGES, figures, rows, options.json)


def run_demo() -> float:
    """Seconds until the champion stands, in an empty folder outside of the checkout."""
    environment = {key: value for key, value in with_scripts().items() if not key.startswith(("MLFLOW_", "DVC_"))}
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for command in DEMO:
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        promotion = (Path(folder) / "demo/data/promotion.json").read_text(encoding="utf-8")
        assert '"decision": "promoted"' in promotion, promotion
        return time.perf_counter() - started_s


def build_docs() -> tuple[int, int]:
    """Pages of the site, and broken links."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mkdocs", "build", "--no-strict", "--site-dir", folder]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
        pages = [path for path in Path(folder).rglob("*.html") if path.name != "404.html"]
        return len(pages), len(re.findall(r"WARNING.*link", done.stderr))


if __name__ == "__main__":
    main()
