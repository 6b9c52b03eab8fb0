"""A team's own project, made from the installed package: `mdpr init`.

The files of this repository that a project starts from (dvc.yaml, the gate's policy, the Kubeflow graph, the embedded
data) are in the wheel below `mdpr/project/files`; in a checkout they are the repository's own.

What was written is remembered by digest in `.mdpr.json`, so that an update can tell a file the team has changed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources, util
from pathlib import Path

from mdpr import __version__
from mdpr.errors import ConfigError, MdprError
from mdpr.recipes import params_text, read_recipe

RECORD = ".mdpr.json"
VERSION_FILE = "mdpr.version"  # a dependency of every stage: a new version of the package runs them again
EMBEDDED = "data/embedded"
DVC = (sys.executable, "-m", "dvc")  # of this environment, whether or not it is activated
PIPELINE = ("pipelines", "components")


@dataclass(frozen=True)
class Choices:
    """The start of a project: a recipe, a folder of images, and whether it keeps a Kubeflow graph of its own."""

    recipe: str = "own-data"
    images: str = ""
    with_pipeline: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the recipe runs on data that come with the package."""
        settings = read_recipe(self.recipe).settings
        return str(settings.get("backbone", {}).get("architecture", "")).startswith(EMBEDDED)

    def overrides(self) -> list[str]:
        return [f"prepare.root={json.dumps(self.images)}"] if self.images else []


@dataclass
class Update:
    """The result of `update`: files that are current, files written anew, the difference of those the team changed."""

    current: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    differences: dict[str, str] = field(default_factory=dict)


def environment() -> dict[str, str]:
    """The variables of this process with the scripts of its Python first on the path: DVC starts `mdpr` by name."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    }


def require_dvc(command: str) -> None:
    """Raises `MdprError` if DVC, which `command` runs, is not installed."""
    if util.find_spec("dvc") is None:
        raise MdprError(f"{command} needs the package dvc, which is not installed: pip install 'mdpr[pipeline]'")


def packaged(name: str) -> Path:
    """A file or folder that comes with the package; raises `MdprError` if this installation lacks it."""
    for root in (Path(__file__).parent / "files", Path(__file__).parents[3]):
        if (root / name).exists():
            return root / name
    raise MdprError(f"{name} did not come with this installation of mdpr: install it from its wheel")


def create(folder: Path, choices: Choices) -> list[str]:
    """Make a project in `folder`, with Git and DVC; returns the files written.

    Raises `ConfigError` if the folder holds anything, or lies in another repository that does not ignore it, and
    `MdprError` if Git or DVC is not installed. Nothing is left behind then.
    """
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file:
        raise ConfigError(f"{file} is a file: name a new folder")
    if folder.exists() and any(folder.iterdir()):
        update = "; mdpr init --update brings this project to a new version" if (folder / RECORD).exists() else ""
        raise ConfigError(f"{folder} is not empty: name a new folder{update}")
    if shutil.which("git") is None:
        raise MdprError("git is not on the path: install it")
    above = next((parent for parent in folder.resolve().parents if (parent / ".git").exists()), None)
    if above and not _is_ignored(folder.resolve(), above):
        raise ConfigError(
            f"{folder} lies in the repository {above}: name a folder outside of it, or one that it ignores"
        )
    require_dvc("mdpr init")
    files = dict(project_files(choices))
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, files)
        if choices.embedded:
            shutil.copytree(packaged(EMBEDDED), folder / EMBEDDED)
        _run(folder, "git", "init", "--quiet")
        _run(folder, *DVC, "init", "--quiet")
        for key in ("core.analytics", "core.check_update", "core.autostage"):
            _run(folder, *DVC, "config", "--quiet", key, "false")
    except BaseException as error:
        if folder.is_dir():
            for path in folder.iterdir():  # it was empty before
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if made:
                folder.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"{folder} cannot be made ({error.strerror or error}): name another folder") from None
        raise
    _remember(folder, choices, files)
    return sorted([*files, RECORD])


def read_record(folder: Path) -> tuple[Choices, dict[str, str]]:
    """The choices that a project was made from, and the digest of each file as it was written.

    Raises `ConfigError` if `create` did not make it.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Choices(**record["choices"]), dict(record["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder} holds no {RECORD}: it was not made by mdpr init") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / RECORD} is damaged: restore it from Git") from None


def update(folder: Path) -> Update:
    """Bring the files of a project to this version; a file that the team has changed is never touched.

    Raises `ConfigError` if the folder is not a project that `create` made.
    """
    choices, digests = read_record(folder)
    report, written = Update(), {}
    for name, text in project_files(choices):
        path = folder / name
        present = path.read_text(encoding="utf-8") if path.is_file() else None
        if present == text:
            report.current.append(name)
        elif present is not None and digests.get(name) != _digest(present):
            lines = difflib.unified_diff(present.splitlines(), text.splitlines(), f"{name} (yours)", name, lineterm="")
            report.differences[name] = "\n".join(lines)
        else:
            written[name] = text
    _write(folder, written)
    report.written = sorted(written)
    _remember(folder, choices, written, digests)
    return report


def project_files(choices: Choices) -> Iterator[tuple[str, str]]:
    """Name and text of every file of a project."""
    yield "params.yaml", params_text(read_recipe(choices.recipe), None, choices.overrides())
    flow = packaged("dvc.yaml").read_text(encoding="utf-8")
    yield "dvc.yaml", project_dvc_yaml(flow, embedded_backbone=choices.embedded)
    yield VERSION_FILE, f"{__version__}\n"
    for name in ("mlflow/promotion.yaml", "mlflow/model.py"):
        yield name, packaged(name).read_text(encoding="utf-8")
    images = choices.images or str(read_recipe(choices.recipe).settings["prepare"]["root"])
    marks = {"@RECIPE@": choices.recipe, "@VERSION@": __version__, "@IMAGES@": shlex.quote(images)}
    for name, template in {
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".dvcignore": "dvcignore",
        ".github/workflows/train.yml": "train.yml",
    }.items():
        text = (resources.files(__name__) / "templates" / template).read_text(encoding="utf-8")
        for mark, value in marks.items():
            text = text.replace(mark, value)
        yield name, text
    if choices.with_pipeline:
        for package in PIPELINE:
            root = packaged(package)
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"{package}/{path.relative_to(root).as_posix()}", path.read_text(encoding="utf-8")


def project_dvc_yaml(text: str, *, embedded_backbone: bool) -> str:
    """The repository's dvc.yaml for a project: the package's version is watched in place of its source."""
    lines: list[str] = []
    for line in text.splitlines():
        path = re.sub(r"^      - ", "", line).split("  #")[0]
        if path.startswith("src/mdpr/"):
            if f"- {VERSION_FILE}" not in lines[-1]:
                lines.append(f"      - {VERSION_FILE}")
        elif embedded_backbone or not path.startswith(EMBEDDED):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _remember(
    folder: Path, choices: Choices, files: Mapping[str, str], before: Mapping[str, str] | None = None
) -> None:
    digests = {**(before or {}), **{name: _digest(text) for name, text in files.items()}}
    record = {"version": __version__, "choices": vars(choices), "files": dict(sorted(digests.items()))}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ignored(folder: Path, repository: Path) -> bool:
    # The slash marks a folder: it need not exist yet, and the pattern `demo/` is of folders only.
    command = ("git", "-C", str(repository), "check-ignore", "--quiet", f"{folder}/")
    return subprocess.run(command, capture_output=True).returncode == 0


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MdprError(f"{' '.join(command)} failed: {' '.join((done.stderr or done.stdout).split())[:300]}")
