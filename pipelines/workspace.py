"""The DVC workspace that a run's artifacts are brought into: where each goes, and what must not be lost."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from scmrepo.exceptions import SCMError

from mdpr.errors import ConfigError
from mdpr.stages.stage import STAGES, load_stage

PARAMS = "params.yaml"


@dataclass(frozen=True)
class Workspace:
    """The project of the working folder."""

    repo: Repo

    @property
    def params(self) -> Path:
        return Path(self.repo.root_dir) / PARAMS

    def name(self, path: Path) -> str:
        """A path of the project as people write it."""
        return path.relative_to(self.repo.root_dir).as_posix()

    def places(self) -> dict[str, Path]:
        """Output port -> path, as the commands in dvc.yaml say it."""
        commands = {stage.addressing: shlex.split(str(stage.cmd)) for stage in self.repo.index.stages if stage.cmd}
        found: dict[str, Path] = {}
        for name in STAGES:
            words = commands.get(name)
            if words is None:
                raise ConfigError(f"dvc.yaml has no stage {name}: run from a project of mdpr")
            for port in load_stage(name).outputs:
                if f"--{port}" not in words[:-1]:
                    raise ConfigError(f"dvc.yaml: the command of {name} has no --{port}")
                found[port] = Path(self.repo.root_dir) / words[words.index(f"--{port}") + 1]
        return found

    def uncommitted(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that hold what neither DVC nor Git has: changed outputs, a changed params.yaml."""
        outs = {Path(out.fs_path): out for out in self.repo.index.outs}
        return [path for path in paths if path.exists() and self._is_changed(path, outs.get(path))]

    def _is_changed(self, path: Path, out: object) -> bool:
        if out is not None:
            return bool(out.status())  # type: ignore[attr-defined]  # dvc.output.Output
        scm = self.repo.scm
        staged, unstaged, untracked = scm.status(untracked_files="normal")
        inside = path.relative_to(scm.root_dir).as_posix()
        return inside in {*unstaged, *untracked, *(name for names in staged.values() for name in names)}


@contextmanager
def open_workspace() -> Iterator[Workspace]:
    """The DVC project around the working folder, held against a `dvc repro` at the same time; raises `ConfigError`."""
    try:
        with Repo() as repo, repo.lock:
            yield Workspace(repo)
    except (DvcException, SCMError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"this is no DVC workspace to fetch into ({reason}): run from the project's folder") from None
