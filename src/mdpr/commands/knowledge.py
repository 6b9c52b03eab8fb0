"""`mdpr knowledge`: check a knowledge base, or put one together, without a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mdpr.knowledge.audit import Finding

COLORS: Mapping[str, str] = {"error": "red", "warning": "yellow"}


@click.group("knowledge")
def command() -> None:
    """Check a knowledge base, or put one together from shards."""


@command.command("audit")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--names", type=click.Path(path_type=Path), help="class names, one a line, in order of class index")
@click.option("--tokens", is_flag=True, help="count CLIP's tokens too (loads open_clip)")
@click.option("--json", "as_json", is_flag=True, help="print audit.json instead of a line a finding")
@click.option("--strict", is_flag=True, help="warnings fail too")
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="writes: every sentence with its findings, as one HTML file",
)
def audit_file(file: Path, names: Path | None, tokens: bool, as_json: bool, strict: bool, page: Path | None) -> None:
    """Look for faults in a knowledge base: missing or repeated sentences, chatter, markup, another class, and so on.

    Contrasts that wait for another rival are read too.

    Exit code 0 where there is no error (with --strict: nothing at all), else 2.
    """
    import json
    from dataclasses import asdict

    from mdpr.artifacts import parse_knowledge, read_knowledge
    from mdpr.errors import CheckFailed
    from mdpr.knowledge.audit import audit, too_many_tokens

    knowledge = parse_knowledge(file)
    findings = audit(knowledge, alternatives=True)
    if tokens:
        findings += too_many_tokens(knowledge, _tokenizer())
    if page:
        from mdpr.knowledge.page import render_knowledge
        from mdpr.stages.outputs import write_whole

        write_whole(page, render_knowledge(knowledge, findings))
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        _show(findings)
    failing = [finding for finding in findings if strict or finding.level == "error"]
    if failing:
        raise CheckFailed(f"{file}: {len(failing)} of {len(findings)} findings are to be mended")
    read_knowledge(file, _read_names(names) if names else None)  # the label set, and that nothing is missing
    if not as_json:
        click.echo(f"{file}: {len(knowledge.classes)} classes, {len(findings)} warnings, no errors")


@command.command("merge")
@click.argument("shards", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--prepared", type=click.Path(path_type=Path), required=True, help="reads: the classes")
@click.option("--probe", type=click.Path(path_type=Path), required=True, help="reads: which class is taken for which")
@click.option("--knowledge", type=click.Path(path_type=Path), required=True, help="writes: the whole")
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True)
def merge_folders(shards: tuple[Path, ...], prepared: Path, probe: Path, knowledge: Path, params: Path) -> None:
    """One knowledge base from the folders SHARDS, which `mdpr describe --shard I/N` wrote, audited as a whole."""
    from mdpr.errors import KnowledgeError
    from mdpr.kubeflow.side_by_side import write_merged
    from mdpr.params import load_params

    section = load_params(params).describe
    for shard in shards:
        if shards.count(shard) > 1:
            raise KnowledgeError(f"{shard} is given {shards.count(shard)} times: give each shard once")
    write_merged({str(shard): shard for shard in shards}, prepared, probe, knowledge, section)


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        level = click.style(finding.level, fg=COLORS[finding.level])
        where = f"class {finding.class_index} ({finding.class_name}), {finding.dimension}"
        click.echo(f"{level} {finding.check}: {where}: {finding.message}")


def _tokenizer() -> Callable[[str], list[int]]:
    from mdpr.errors import KnowledgeError

    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError as error:
        raise KnowledgeError(f"--tokens needs the package {error.name}: pip install 'mdpr[train]'") from error
    encode: Callable[[str], list[int]] = SimpleTokenizer().encode
    return encode


def _read_names(path: Path) -> list[str]:
    from mdpr.errors import KnowledgeError

    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{path} cannot be read: {error}") from None
