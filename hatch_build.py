"""Puts into the wheel what a project starts from (`mdpr init`): the repository's own files, one copy, mapped.

The container images install the library only, from a context without these files: then none is mapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = (
    "components",
    "data/embedded",
    "dvc.yaml",
    "mlflow/model.py",
    "mlflow/promotion.yaml",
    "params.yaml",
    "pipelines",
)


class ProjectFiles(BuildHookInterface):
    """Maps `FILES` to mdpr/project/files; all of them or none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        present = [name for name in FILES if (Path(self.root) / name).exists()]
        if present and len(present) < len(FILES):
            missing = ", ".join(sorted(set(FILES) - set(present)))
            raise FileNotFoundError(f"the wheel needs {missing} too: build it from a complete checkout")
        build_data["force_include"] |= {name: f"mdpr/project/files/{name}" for name in present}
