"""Whether a tag may be released: it names the package's version, and the changelog has a section for it.

python -m tools.release v0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def faults(tag: str, project: Path = PROJECT) -> list[str]:
    """The reasons not to release `tag`, a line each."""
    source = (project / "src/mdpr/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    version = match[1] if match else "unknown"
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, src/mdpr/__init__.py says {version}")
    if f"\n## {version} " not in (project / "CHANGELOG.md").read_text(encoding="utf-8"):
        found.append(f"CHANGELOG.md has no section for {version}")
    return found


if __name__ == "__main__":
    lines = faults(sys.argv[1])
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    sys.exit(bool(lines))
