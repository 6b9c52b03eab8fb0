"""dvc.yaml watches what its stages run, no less and no more than the fewest lines can say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tools.imports import closure, fewest_paths, main, stage_dependencies, with_dependencies

from mdpr.stages.stage import STAGES

PROJECT = Path(__file__).resolve().parents[2]
Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write({name: text}) -> the folder `src` that holds these files."""

    def write_all(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "src"

    return write_all


def names(paths: set[Path], source: Path) -> set[str]:
    return {path.relative_to(source).as_posix() for path in paths}


def test_dvc_yaml_is_current() -> None:
    assert main(["--check"]) == 0, "run python -m tools.imports --write"


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_runs_is_watched(stage: str) -> None:
    watched = [PROJECT / path for path in stage_dependencies(stage)]
    missed = [path for path in closure(f"mdpr.stages.{stage}") if not {path, *path.parents} & set(watched)]
    assert missed == []


def test_an_import_inside_a_function_counts_and_one_for_type_checkers_does_not(write: Write) -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.c\ndef f():\n    from p import b\n"
    source = write({"p/__init__.py": "", "p/a.py": code, "p/b.py": "VALUE = 1\n", "p/c.py": "VALUE = 2\n"})
    assert names(closure("p.a", source), source) == {"p/a.py", "p/b.py"}


def test_a_package_on_the_way_runs_and_what_it_loads_on_demand_does_not(write: Write) -> None:
    lazy = "from p import first\ndef __getattr__(name):\n    from p import second\n"
    source = write({"p/__init__.py": lazy, "p/first.py": "A = 1", "p/second.py": "B = 1", "p/q.py": "import p"})
    assert names(closure("p.q", source), source) == {"p/__init__.py", "p/first.py", "p/q.py"}


def test_data_files_of_a_package_that_reads_them_count(write: Write) -> None:
    source = write(
        {
            "p/__init__.py": "",
            "p/reads.py": "from importlib import resources\n",
            "p/words.txt": "one",
            "p/templates/page.html": "two",
            "p/inner/__init__.py": "",
            "p/inner/other.txt": "three",
        }
    )
    assert names(closure("p.reads", source), source) == {"p/reads.py", "p/words.txt", "p/templates/page.html"}


def test_a_folder_is_watched_only_if_most_of_it_is_used(write: Write) -> None:
    source = write({f"p/{room}/{name}.py": "X = 1" for room in ("most", "least") for name in "abcde"})
    used = [source / f"p/most/{name}.py" for name in "abc"] + [source / "p/least/a.py"]
    assert names(set(fewest_paths(used, source / "p")), source) == {"p/most", "p/least/a.py"}


def test_only_the_library_s_lines_are_rewritten() -> None:
    text = "stages:\n  one:\n    deps:\n      - data  # why\n      - src/mdpr/old.py\n    outs:\n      - made\n"
    expected = "stages:\n  one:\n    deps:\n      - data  # why\n      - src/mdpr/new.py\n    outs:\n      - made\n"
    assert with_dependencies(text, {"one": ["src/mdpr/new.py"]}) == expected
