"""`mdpr data`: how a data set would be read, and data sets that DVC keeps elsewhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import click

from mdpr.commands.stage import PATH, params_option
from mdpr.errors import DataError, MdprError, one_line


@click.group("data")
def data() -> None:
    """See how a data set would be read; bring one that DVC keeps elsewhere into data/."""


@data.command("look")
@click.argument("root", type=PATH)
@click.option("--source", help="prepare.source; without it, what the files in ROOT suggest")
@click.option(
    "--class-depth", metavar="top|leaf|N", help="which folder is the class; leaf: the innermost (prepare.class_depth)"
)
@click.option("--classes", "most_classes", type=int, default=20, show_default=True, help="classes that are shown")
@params_option
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="one parameter; may be repeated")
def look_command(
    root: Path,
    source: str | None,
    class_depth: str | None,
    most_classes: int,
    params: Path,
    overrides: tuple[str, ...],
) -> None:
    """Show how ROOT would be read: splits, classes, the text of each class, and what would be passed over."""
    from mdpr.data.preparation import look, source_of
    from mdpr.params import apply_overrides, parse_params, read_yaml

    raw = apply_overrides(read_yaml(params) if params.exists() else {}, overrides)
    named = {
        "source": source or source_of(root),
        "root": str(root),
        "repo": "",
        "rev": "",
        "path": "",
        "image_root": "",
    }
    chosen = {} if class_depth is None else {"class_depth": {"top": "1", "leaf": "0"}.get(class_depth, class_depth)}
    parsed = parse_params({**raw, "prepare": {**(raw.get("prepare") or {}), **named, **chosen}})
    for line in look(parsed.prepare, parsed.probe.templates[0], most_classes):
        click.echo(line)


@data.command("import")
@click.option("--repo", required=True, metavar="URL", help="Git repository with DVC data: an address or a folder")
@click.option("--path", required=True, help="the data set in that repository")
@click.option("--rev", help="commit, tag or branch; without it, the default branch as it is now")
@click.option("--out", type=PATH, help="where it goes; without it, data/ and the path's last part")
def import_data(repo: str, path: str, rev: str | None, out: Path | None) -> None:
    """Fetch a data set, and track which commit of which repository it is (`dvc import`)."""
    target = out or Path("data") / PurePosixPath(path).name
    if target.exists():
        raise DataError(f"{target} exists: remove it, or name another place with --out")
    if not target.parent.is_dir():
        raise DataError(f"{target.parent} does not exist: make it, or name another place with --out")
    fetch(repo, path, rev, target)
    click.echo(f"wrote {target} and {target}.dvc; next: git add {target}.dvc, and prepare.root = {target}")


def fetch(repo: str, path: str, rev: str | None, target: Path) -> None:
    """`dvc import`: the data at `target`, its origin in `target`.dvc. Raises `MdprError` in one line."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.scm import SCMError
        from dvc_data.index import DataIndexError

        from mdpr.data.dvc_origin import name_user
    except ModuleNotFoundError as error:
        raise MdprError(f"mdpr data import needs {error.name}: pip install 'mdpr[pipeline]'") from None
    name_user()
    try:
        with Repo() as project:
            project.imp(repo, path, out=str(target), rev=rev)
    except (DvcException, SCMError, DataIndexError, OSError) as error:
        what = f"{path} of {repo}{f' at {rev}' if rev else ''}"
        raise DataError(
            f"{what} cannot be imported ({one_line(error)}): `dvc list --dvc-only -R {repo}` shows what is there"
        ) from None
