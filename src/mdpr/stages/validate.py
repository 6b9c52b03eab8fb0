"""validate: a broken data set stops here."""

from __future__ import annotations

from mdpr.params import ValidateParams
from mdpr.stages.stage import In, Out


def validate(prepared: In, validation: Out, *, params: ValidateParams) -> str:
    """Write result.json and Data Docs (index.html); raises `CheckFailed` if an expectation is not met."""
    from mdpr.artifacts import read_card, read_classes, write_json
    from mdpr.data.checks import expectations, raise_for_errors, run_expectations, write_data_docs
    from mdpr.data.inventory import class_table, inspect_splits, profile_table, split_tables, thumbnails

    classes, card = read_classes(prepared), read_card(prepared)
    near_duplicate_bits = None if params.near_duplicates == "off" else params.near_duplicate_bits
    splits = split_tables(inspect_splits(prepared), classes, near_duplicate_bits)
    counts = class_table(classes, splits)
    profile = profile_table(counts, card)
    suites = expectations(len(classes), card, params, profile["declared_imbalance_ratio"].item())
    tables = {"classes": counts, "profile": profile, **{str(split): rows for split, rows in splits.items()}}
    findings, results = run_expectations(tables, suites)
    validation.mkdir()
    write_json(validation / "result.json", findings)
    write_data_docs(validation, findings, results, card, thumbnails(prepared))
    raise_for_errors(findings)
    made, met = len(findings.expectations), sum(item.success for item in findings.expectations)
    return f"validated: {met} of {made} expectations met, {made - met} warnings"
