"""A usable data set as Great Expectations over the tables of `mdpr.data.inventory`, and Data Docs of the results.

Importing Great Expectations takes seconds: only the stage `validate` loads this file. The site that it builds loads
style sheets and scripts from other hosts; its section renderer gives the same content as plain HTML, and page frame,
style and the escaping of what comes from data are here.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaSectionView
from pydantic import Field

from mdpr.artifacts import SPLITS, DataCard, Format, Split
from mdpr.errors import CheckFailed, printable
from mdpr.params import ValidateParams

logger = logging.getLogger(__name__)
Level = Literal["error", "warning"]
EXAMPLES = 5
NO_TEXT = "[\\x00-\\x1f\\x7f\\ufffd]"  # control characters, and what a wrong decoding leaves behind


class Finding(Format):
    """One expectation, its level, and what was observed."""

    name: str
    table: str
    level: Level
    success: bool
    observed: str
    rows: tuple[int, ...] = ()  # the first of the table's rows that are not as expected


class Findings(Format):
    """result.json."""

    format: Literal["mdpr-validation/1"] = "mdpr-validation/1"
    success: bool
    expectations: tuple[Finding, ...] = Field(min_length=1)


def expectations(
    class_count: int, card: DataCard, params: ValidateParams, declared_ratio: float
) -> dict[str, list[gxe.Expectation]]:
    """The expectations on each table. Each carries its name and its level in `meta`."""
    splits: dict[str, list[gxe.Expectation]] = {split: _on_images(class_count, params) for split in SPLITS}
    for split, is_cut in (("val", card.validation != "source"), ("test", card.test == "share")):
        splits[split] += _across_splits(params, card.cut_by if is_cut else None)
    balanced = gxe.ExpectColumnMaxToBeBetween(
        column="val_imbalance_ratio",
        min_value=1,
        max_value=1,
        # a split that a source brought, or a share of the training images, may be as it is
        meta=_meta("val_is_balanced", "error" if card.validation == "left_over" else "warning"),
    )
    ratio = gxe.ExpectColumnMaxToBeBetween(
        column="imbalance_ratio",
        min_value=declared_ratio * (1 - params.profile_tolerance),
        max_value=declared_ratio * (1 + params.profile_tolerance),
        meta=_meta("imbalance_ratio_as_declared"),
    )
    return {**splits, "classes": _on_classes(card), "profile": [ratio, balanced]}


def _across_splits(params: ValidateParams, cut_by: str | None) -> list[gxe.Expectation]:
    """No image of val or test in a split before it: nothing of test leaks into train.

    A split that was cut from the pool (`cut_by`) never stops the stage, as there is nothing to mend in the source: by
    content no two splits share a picture, and by order they may, as the published cut has it.
    """
    level: Level = "warning" if cut_by == "order" else "error"
    same = gxe.ExpectColumnValuesToBeNull(column="duplicate_of", meta=_meta("no_duplicate_across_splits", level))
    if params.near_duplicates == "off":
        return [same]
    meta = _meta("no_near_duplicate_across_splits", "warning" if cut_by else params.near_duplicates)
    return [same, gxe.ExpectColumnValuesToBeNull(column="near_duplicate_of", meta=meta)]


def _meta(name: str, level: Level = "error") -> dict[str, str]:
    return {"name": name, "level": level}


def _on_images(class_count: int, params: ValidateParams) -> list[gxe.Expectation]:
    sides = {"min_value": params.min_side_px, "max_value": params.max_side_px}
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, meta=_meta("has_images")),
        gxe.ExpectColumnValuesToNotBeNull(column="label", meta=_meta("has_label")),
        gxe.ExpectColumnValuesToBeOfType(column="label", type_="int64", meta=_meta("label_type")),
        gxe.ExpectColumnValuesToBeBetween(
            column="label", min_value=0, max_value=class_count - 1, meta=_meta("label_in_class_list")
        ),
        gxe.ExpectColumnValuesToBeNull(column="path_fault", meta=_meta("path_is_utf8")),
        gxe.ExpectColumnValuesToBeNull(column="fault", meta=_meta("decodes")),
        gxe.ExpectColumnValuesToBeBetween(column="width_px", **sides, meta=_meta("width_within_bounds")),
        gxe.ExpectColumnValuesToBeBetween(column="height_px", **sides, meta=_meta("height_within_bounds")),
        gxe.ExpectColumnValuesToBeNull(column="one_colour", meta=_meta("not_blank", "warning")),
        gxe.ExpectColumnValuesToBeNull(column="other_label", meta=_meta("one_label_for_an_image")),
        gxe.ExpectColumnValuesToBeNull(column="repeats", meta=_meta("no_repeated_image", "warning")),
    ]


def _on_classes(card: DataCard) -> list[gxe.Expectation]:
    level: dict[Split, Level] = {
        split: "warning" if card.train_only and split != "train" else "error" for split in SPLITS
    }
    every_split = [
        gxe.ExpectColumnValuesToBeBetween(
            column=f"{split}_images", min_value=1, meta=_meta(f"every_class_in_{split}", level[split])
        )
        for split in SPLITS
    ]
    return [
        gxe.ExpectColumnValuesToBeUnique(column="display_name", meta=_meta("class_names_distinct")),
        gxe.ExpectColumnValuesToNotMatchRegex(
            column="display_name", regex=NO_TEXT, meta=_meta("class_names_are_text", "warning")
        ),
        *every_split,
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="train_images", column_B="train_images_declared", meta=_meta("class_counts_as_declared")
        ),
    ]


def run_expectations(
    tables: Mapping[str, pd.DataFrame], suites: Mapping[str, Sequence[gxe.Expectation]]
) -> tuple[Findings, dict[str, ExpectationSuiteValidationResult]]:
    """Check every table: findings in the order of the expectations, and Great Expectations' own results."""
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        ),
    )
    source = context.data_sources.add_pandas("prepared")
    results: dict[str, ExpectationSuiteValidationResult] = {}
    findings: list[Finding] = []
    for name, suite in suites.items():
        whole = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        batch = whole.get_batch({"dataframe": tables[name]})
        results[name] = batch.validate(
            gx.ExpectationSuite(name, expectations=list(suite)),
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
        )
        for result in results[name].results:  # the renderer cannot print NumPy's numbers
            if isinstance(value := result.result.get("observed_value"), np.generic):
                result.result["observed_value"] = value.item()
        by_name = {result.expectation_config.meta["name"]: result for result in results[name].results}
        for expectation in suite:
            meta, result = expectation.meta, by_name[expectation.meta["name"]]
            findings.append(
                Finding(
                    name=meta["name"],
                    table=name,
                    level=meta["level"],
                    success=bool(result.success),
                    observed=observed(result.result, result.exception_info, tables[name]),
                    rows=tuple(result.result.get("partial_unexpected_index_list") or ()),
                )
            )
    failed = [finding for finding in findings if not finding.success and finding.level == "error"]
    return Findings(success=not failed, expectations=tuple(findings)), results


def observed(result: Mapping[str, Any], exception_info: Mapping[str, Any], table: pd.DataFrame) -> str:
    """The result of an expectation in one line: a value, or how many rows are unexpected and the first of them.

    Rows are named by the image's file or by the class, if the table has a column of them.
    """
    if "observed_value" in result:
        return str(result["observed_value"])
    if "unexpected_count" not in result:
        return f"could not be evaluated: {exception_info}"[:300]
    count = f"{result['unexpected_count']} of {result['element_count']} unexpected"
    values = result.get("partial_unexpected_list", ())
    rows = result.get("partial_unexpected_index_list", ())
    names = next((table[column] for column in ("path", "display_name") if column in table), None)
    examples = [
        f"row {row}{_name(names, row)}: {printable(str(value))}" for row, value in zip(rows, values, strict=False)
    ]
    return count + (f" ({'; '.join(examples)})" if examples else "")


def _name(names: pd.Series | None, row: int) -> str:
    return f", {printable(names[row])}" if names is not None and isinstance(names[row], str) else ""


def raise_for_errors(findings: Findings) -> None:
    """Log the warnings; raise `CheckFailed` that names the first failed expectation of level error."""
    for item in findings.expectations:
        if not item.success and item.level == "warning":
            logger.warning("%s: %s in %s: %s", item.level, item.name, item.table, item.observed)
    failed = [item for item in findings.expectations if not item.success and item.level == "error"]
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more" if len(failed) > 1 else ""
        raise CheckFailed(f"{first.name} fails in {first.table}: {first.observed}{more}")


STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #18794e; --bad: #c62a2f; --warn: #ad5700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h5 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
.badge { background: #8883; border-radius: .3rem; padding: 0 .3rem; }
.good, .text-success { color: var(--good); }
.bad, .text-danger { color: var(--bad); }
.warn, .text-warning { color: var(--warn); }
.fa-check-circle::before { content: "✓"; font-style: normal; }
.fa-times::before { content: "✗"; font-style: normal; }
.fa-exclamation-triangle::before { content: "!"; font-style: normal; }
"""


def write_data_docs(
    folder: Path,
    findings: Findings,
    results: Mapping[str, ExpectationSuiteValidationResult],
    card: DataCard,
    thumbnail: Callable[[str, int], bytes | None],
) -> None:
    """index.html, all expectations in one list, and a page per table with Great Expectations' own wording.

    `thumbnail` gives a row of a split as a small PNG: those of failed expectations are shown.
    """
    (folder / "index.html").write_text(_page("Data Docs", _overview(findings, card, thumbnail)), encoding="utf-8")
    for name, result in results.items():
        back = '<p><a href="index.html">All expectations</a></p>'
        (folder / f"{name}.html").write_text(_page(name, back + _sections(result)), encoding="utf-8")


def _sections(result: ExpectationSuiteValidationResult) -> str:
    """The body of Great Expectations' page, without its first section: load times change with every run."""
    document = ValidationResultsPageRenderer().render(result)
    view = DefaultJinjaSectionView()
    sections = [_escaped(section.to_json_dict()) for section in document.sections[1:]]
    return "\n".join(
        view.render({"section": section, "section_loop": {"index": index}})
        for index, section in enumerate(sections, start=1)
    )


def _escaped(content: Any, in_table: bool = False) -> Any:
    """Section content with the texts in table cells escaped, as Great Expectations escapes those in sentences."""
    if isinstance(content, dict):
        return {key: _escaped(value, key == "table") for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_escaped(item, in_table) for item in content]
    return escape(printable(content)) if in_table and isinstance(content, str) else content


def _overview(findings: Findings, card: DataCard, thumbnail: Callable[[str, int], bytes | None]) -> str:
    decision = '<b class="good">usable</b>' if findings.success else '<b class="bad">not usable</b>'
    counts = ", ".join(f"{images:,} {split}" for split, images in card.images.items())
    head = "".join(f"<th>{title}</th>" for title in ("", "Table", "Expectation", "Level", "Observed"))
    rows = "\n".join(_row(finding, thumbnail) for finding in findings.expectations)
    return (
        f"<p>Source <b>{escape(card.source)}</b>, profile {card.profile}, seed {card.seed}: {counts} images. "
        f"The data set is {decision}.</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    )


def _row(finding: Finding, thumbnail: Callable[[str, int], bytes | None]) -> str:
    style, mark = ("good", "✓") if finding.success else ("bad", "✗") if finding.level == "error" else ("warn", "!")
    cells = (
        f'<span class="{style}">{mark}</span>',
        f'<a href="{finding.table}.html">{finding.table}</a>',
        escape(finding.name.replace("_", " ")),
        finding.level,
        escape(finding.observed) + ("" if finding.success else _thumbnails(finding, thumbnail)),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _thumbnails(finding: Finding, thumbnail: Callable[[str, int], bytes | None]) -> str:
    shown = [(row, png) for row in finding.rows if (png := thumbnail(finding.table, row))]
    return "".join(
        f' <img alt="row {row}" src="data:image/png;base64,{base64.b64encode(png).decode()}">' for row, png in shown
    )


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
