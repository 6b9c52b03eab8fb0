"""The files that a stage runs: its import closure over src/mdpr, read and never executed; dvc.yaml is held to it.

    python -m tools.imports --check     exit code 1 if dvc.yaml does not watch exactly what its stages run
    python -m tools.imports --write     write those dependencies into dvc.yaml
    python -m tools.imports STAGE       the files that STAGE runs, one per line

Imports inside functions count. So do the packages on the way (their `__init__` runs) and the data files (templates,
word lists) of a package whose code reads them. Imports under `if TYPE_CHECKING:` never run and do not count.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from mdpr.stages.stage import STAGES

PROJECT = Path(__file__).resolve().parents[1]
READS_DATA = ("from importlib import resources", "PackageLoader", "render_page")
FOLDER_SHARE = 0.5  # of a folder's files: above it the folder is watched, below it the files themselves


def closure(module: str, source: Path = PROJECT / "src") -> set[Path]:
    """Files of `source` that importing `module` and calling its functions may load."""
    found: set[Path] = set()
    waiting, seen = [module], {""}
    while waiting:
        name = waiting.pop()
        path = find_module(name, source)
        if path is None or name in seen:
            continue
        seen.add(name)
        text = path.read_text(encoding="utf-8")
        does_something, imported = _parsed(text)
        if does_something:
            found.add(path)
        if any(word in text for word in READS_DATA):
            found.update(data_files(path.parent))
        waiting += [name.rpartition(".")[0], *imported]
    return found


@cache
def _parsed(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the module `text` does something, and what it imports. All stages run much the same modules."""
    tree = ast.parse(text)
    return _does_something(tree), tuple(imported_modules(tree))


def find_module(name: str, source: Path) -> Path | None:
    """The file of `name`; None if it is no module below `source`."""
    base = source.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Modules that `tree` imports, by name. `from package import name` gives both: `name` may be a module or not."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:` and in a package's `__getattr__`, which loads names on demand."""
    for node in ast.iter_child_nodes(tree):
        checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        on_demand = isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
        if not (checking or on_demand):
            yield node
            yield from _running(node)


def _does_something(tree: ast.Module) -> bool:
    """Whether a module holds more than its docstring: an edit of one that does not changes nothing."""
    return len(tree.body) > (ast.get_docstring(tree) is not None)


def data_files(package: Path) -> list[Path]:
    """A package's files that are not Python, those in its folders included that are no packages themselves."""
    found: list[Path] = []
    for path in sorted(package.iterdir()):
        if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").exists():
            found += [file for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.is_file() and path.suffix != ".py":
            found.append(path)
    return found


def fewest_paths(used: Iterable[Path], root: Path) -> list[Path]:
    """The shortest list that holds `used`: a folder below `root` of which most files are used, else the files."""
    files = set(used)
    every = [path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]

    def cover(folder: Path) -> list[Path]:
        inside = [path for path in every if folder in path.parents and path in files]
        total = sum(folder in path.parents for path in every)
        if folder != root and len(inside) > max(1, FOLDER_SHARE * total):
            return [folder]
        children = sorted({folder / path.relative_to(folder).parts[0] for path in inside})
        return [path for child in children for path in ([child] if child in files else cover(child))]

    return cover(root)


def stage_dependencies(stage: str, project: Path = PROJECT) -> list[str]:
    """The paths of the library that dvc.yaml watches for `stage`."""
    used = closure(f"mdpr.stages.{stage}", project / "src")
    return [path.relative_to(project).as_posix() for path in fewest_paths(used, project / "src/mdpr")]


def with_dependencies(text: str, dependencies: Mapping[str, Sequence[str]]) -> str:
    """dvc.yaml with the lines below src/mdpr of each stage's `deps` replaced; everything else stays as it is."""
    lines: list[str] = []
    stage = section = None
    for line in text.splitlines():
        if match := re.match(r"  (\w+):$", line):
            stage = match[1]
        if match := re.match(r"(?:    )?(\w+):", line):
            if section == "deps":
                lines += [f"      - {path}" for path in dependencies[str(stage)]]
            section = match[1]
        if not (section == "deps" and re.match(r"      - src/mdpr/", line)):
            lines.append(line)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a stage runs, and dvc.yaml held to it.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("stage", nargs="?", choices=list(STAGES))
    group.add_argument("--check", action="store_true", help="exit code 1 if dvc.yaml is not current")
    group.add_argument("--write", action="store_true", help="write the dependencies into dvc.yaml")
    options = parser.parse_args(arguments)
    if options.stage:
        print(*sorted(path.relative_to(PROJECT) for path in closure(f"mdpr.stages.{options.stage}")), sep="\n")
        return 0
    path = PROJECT / "dvc.yaml"
    text = path.read_text(encoding="utf-8")
    current = with_dependencies(text, {stage: stage_dependencies(stage) for stage in STAGES})
    if options.write:
        path.write_text(current, encoding="utf-8")
        return 0
    if current != text:
        print("dvc.yaml does not watch exactly what its stages run: python -m tools.imports --write", file=sys.stderr)
    return int(current != text)


if __name__ == "__main__":
    sys.exit(main())
