"""`mdpr data`, `mdpr knowledge`: data sets and knowledge bases, looked at, started or fetched without a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import click

from mdpr.commands import PATH, params_option
from mdpr.errors import CheckFailed, DataError, KnowledgeError, MdprError, one_line, printable

COLORS: Mapping[str, str] = {"error": "red", "warning": "yellow"}


# --- data sets ----------------------------------------------------------------------------------------------


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


# --- knowledge bases ----------------------------------------------------------------------------------------


@click.group("knowledge")
def knowledge() -> None:
    """Start a knowledge base, check one, or merge one from shards."""


@knowledge.command("audit")
@click.argument("file", type=PATH)
@click.option("--names", type=PATH, help="class names, one per line, in order of class index")
@click.option("--tokens", is_flag=True, help="count CLIP's tokens too (loads open_clip)")
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of one line per finding")
@click.option("--strict", is_flag=True, help="warnings count as errors")
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="writes: every sentence with its findings, as one HTML file",
)
def audit_file(file: Path, names: Path | None, tokens: bool, as_json: bool, strict: bool, page: Path | None) -> None:
    """Check a knowledge base: missing or repeated sentences, chatter, markup, invisible characters, other classes ...

    Contrasts with other rivals are checked too. Exit code 2 if there is an error (with --strict, a finding), else 0.
    """
    import json
    from dataclasses import asdict

    from mdpr.artifacts import parse_knowledge, read_knowledge
    from mdpr.knowledge.audit import audit, too_many_tokens
    from mdpr.params import read_text

    knowledge = parse_knowledge(file)
    findings = audit(knowledge, alternatives=True)
    if tokens:
        findings += too_many_tokens(knowledge, _tokenizer())
    if page:
        from mdpr.knowledge.write import render_knowledge
        from mdpr.pages import GENERATOR
        from mdpr.stages.outputs import write_whole

        write_whole(page, render_knowledge(knowledge, findings), replaces=GENERATOR)
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            level = click.style(finding.level, fg=COLORS[finding.level])
            click.echo(f"{level} {finding.check}: {printable(finding.where)}: {printable(finding.message)}")
    failing = [finding for finding in findings if strict or finding.level == "error"]
    if failing:
        raise CheckFailed(f"{file}: {len(failing)} of {len(findings)} findings must be corrected")
    # The label set, and that nothing is missing.
    read_knowledge(file, read_text(names, KnowledgeError).splitlines() if names else None)
    if not as_json:
        click.echo(f"{file}: {len(knowledge.classes)} classes, {len(findings)} warnings, no errors")


@knowledge.command("new")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--prepared", type=PATH, required=True, help="reads: the classes")
@click.option("--probe", type=PATH, help="reads: the class that each is most confused with")
@click.option("--earlier", type=PATH, help="reads: a knowledge base whose sentences are kept, by class name")
def new_file(file: Path, prepared: Path, probe: Path | None, earlier: Path | None) -> None:
    """Write a knowledge base with all classes of the data and empty sentences, to be filled in.

    With --earlier only the classes that are new to that file are empty. With provider = completed, a chat model writes
    what is left empty.
    """
    from mdpr.artifacts import parse_knowledge, read_classes, read_probe
    from mdpr.knowledge.bases import new_base
    from mdpr.stages.outputs import write_whole

    if file.exists():
        raise KnowledgeError(f"{file} exists already: name a new file")
    classes = read_classes(prepared)
    rival_C = read_probe(probe, [item.name for item in classes]).rival_C.tolist() if probe else None
    base = new_base(classes, rival_C, parse_knowledge(earlier) if earlier else None)
    write_whole(file, base.model_dump_json(indent=2) + "\n")
    gaps = sum(not text.strip() for item in base.classes for text in item.sentences.values())
    click.echo(f"{file}: {len(classes)} classes, {gaps} sentences to write; then set describe.path to it")


@knowledge.command("merge")
@click.argument("shards", type=PATH, nargs=-1, required=True)
@click.option("--prepared", type=PATH, required=True, help="reads: the classes")
@click.option("--probe", type=PATH, required=True, help="reads: the class that each is most confused with")
@click.option("--knowledge", type=PATH, required=True, help="writes: the merged knowledge base")
@params_option
def merge_folders(shards: tuple[Path, ...], prepared: Path, probe: Path, knowledge: Path, params: Path) -> None:
    """Merge the folders SHARDS, written by `mdpr describe --shard I/N`, and audit the result."""
    from mdpr.params import load_params
    from mdpr.stages.describe import merge

    section = load_params(params).describe
    for shard in shards:
        if shards.count(shard) > 1:
            raise KnowledgeError(f"{shard} is given {shards.count(shard)} times: give each shard once")
    merge({str(shard): shard for shard in shards}, prepared, probe, knowledge, section)


def _tokenizer() -> Callable[[str], list[int]]:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError as error:
        raise KnowledgeError(f"--tokens needs the package {error.name}: pip install 'mdpr[train]'") from error
    encode: Callable[[str], list[int]] = SimpleTokenizer().encode
    return encode
