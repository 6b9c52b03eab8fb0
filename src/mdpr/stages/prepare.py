"""prepare: from a source to three splits in one form."""

from __future__ import annotations

from mdpr.params import PrepareParams
from mdpr.stages.stage import Out


def prepare(prepared: Out, *, params: PrepareParams) -> str:
    """Write train, val and test as Parquet, classes.json and card.json. A test split of the source is never cut."""
    import logging

    from mdpr.artifacts import SPLITS, read_classes
    from mdpr.data.dvc_origin import located
    from mdpr.data.preparation import splits_taken, write_prepared
    from mdpr.data.sources import Place, open_source
    from mdpr.data.stable_splits import Previous

    logger = logging.getLogger(__name__)
    previous = Previous.read(params.previous) if params.previous else None
    with located(params) as (root, origin):
        place = Place.of(params, root)
        try:
            source = open_source(params.source, place)
            for line in splits_taken(source, params):
                logger.info("%s", line)
            prepared.mkdir()
            card = write_prepared(prepared, source, params, place.log, origin, previous)
        finally:  # if it fails, what was passed over may be the reason
            for line in place.log.report():
                logger.warning("%s", line)
    classes, counts = read_classes(prepared), " / ".join(f"{card.images[split]:,}" for split in SPLITS)
    few = sum(item.shot == "few" for item in classes)
    return f"prepared: {len(classes):,} classes, {counts} images, {few:,} few-shot"
