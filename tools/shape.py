"""How the library is cut: files, their length, and how many a reader opens to follow `mdpr tune`.

    python -m tools.shape            a line per figure
    python -m tools.shape --json     for benchmarks and notes

`files_to_follow_tune` counts the route from the command to the optimiser's step: the files of cli, commands, stages,
training and model that `mdpr tune` runs. Formats, settings, pictures and tracking are side roads.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from tools.imports import PROJECT, closure

ROUTE = ("cli.py", "commands/", "stages/", "training/", "model/")
COUNTED = ("src", "pipelines", "components")  # folders whose Python lines are counted, comments and blanks included


def measure(project: Path = PROJECT) -> dict[str, Any]:
    """The figures of the checkout at `project`."""
    package = project / "src/mdpr"
    modules = [path for path in sorted(package.rglob("*.py")) if "__pycache__" not in path.parts]
    lines = {path.relative_to(package).as_posix(): count_lines(path) for path in modules}
    longest = max(lines, key=lambda name: lines[name])
    run = set().union(*(closure(f"mdpr.{name}", project / "src") for name in ("cli", "stages.tune")))
    route = sorted(name for path in run if (name := path.relative_to(package).as_posix()).startswith(ROUTE))
    # A command is named after its word on the command line, a section of settings after its stage.
    rooms = [path for path in modules if path.parent.name not in ("commands", "params")]
    names = Counter(path.stem for path in rooms if not path.stem.startswith("__"))
    return {
        "files": len(modules),
        "median_lines": statistics.median(lines.values()),
        "longest_file": f"{longest} ({lines[longest]})",
        "longest_file_lines": lines[longest],
        "short_files": sum(count < 50 for name, count in lines.items() if not name.endswith("__init__.py")),
        "files_to_follow_tune": len(route),
        "route": route,
        "names_in_several_rooms": sorted(name for name, count in names.items() if count > 1),
        "lines_src_pipelines_components": sum(
            count_lines(path) for folder in COUNTED for path in (project / folder).rglob("*.py")
        ),
    }


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description="How the library is cut.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--project", type=Path, default=PROJECT, help="another checkout")
    options = parser.parse_args()
    figures = measure(options.project.resolve())
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:32} {' '.join(value) if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
