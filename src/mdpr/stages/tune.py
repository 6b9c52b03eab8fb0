"""tune: train the prompts and the router."""

from __future__ import annotations

from mdpr.config import BackboneParams, TrackingParams, TuneParams
from mdpr.stages.definition import In, Out


def tune(
    prepared: In,
    probe: In,
    features: In,
    model: Out,
    *,
    params: TuneParams,
    backbone: BackboneParams,
    tracking: TrackingParams,
) -> None:
    """Write the learned weights of the epoch that is best on validation, its configuration and the history."""
    import pandas as pd

    from mdpr.artifacts import (
        ModelConfig,
        read_classes,
        read_features,
        read_images,
        read_probe,
        write_json,
    )
    from mdpr.data.loading import ImageTable, eval_transform, train_transform
    from mdpr.errors import ArtifactError
    from mdpr.model.backbone import Backbone
    from mdpr.model.classifier import MDPR
    from mdpr.model.weights import save_weights
    from mdpr.tracking.runs import flatten, lineage_tags, open_run
    from mdpr.training.loop import TrainingData, fit
    from mdpr.training.objective import Objective
    from mdpr.training.reproducibility import seed_everything

    classes = read_classes(prepared)
    names = [item.name for item in classes]
    encoded = read_features(features, names)
    frozen = Backbone.load(backbone)
    zero_shot = read_probe(probe, names)
    if zero_shot.fingerprint != frozen.fingerprint:
        raise ArtifactError(f"{probe} was made with another backbone than {frozen.fingerprint}: rerun probe")

    look = (frozen.image_size_px, frozen.image_mean, frozen.image_std)
    data = TrainingData(
        train=ImageTable(
            read_images(prepared / "train.parquet"), train_transform(*look, params.augment), seed=params.seed
        ),
        val=ImageTable(read_images(prepared / "val.parquet"), eval_transform(*look)),
        counts=[item.train_images for item in classes],
        shots=[item.shot for item in classes],
    )
    seed_everything(params.seed)
    tuned = MDPR(frozen, names, params, encoded, zero_shot)
    objective = Objective(tuned, data.counts, encoded)

    settings = flatten({"tune": params.model_dump(), "backbone": backbone.model_dump()})
    with open_run(tracking, "tune", settings, lineage_tags([prepared, probe, features])) as run:
        fitted = fit(tuned, objective, data, on_epoch=run.log_epoch)
        model.mkdir()
        save_weights(model / "model.safetensors", fitted.state)
        write_json(
            model / "config.json",
            ModelConfig(
                backbone=backbone,
                fingerprint=frozen.fingerprint,
                tune=params,
                class_names=tuple(names),
                train_images=tuple(data.counts),
                knowledge_digest=encoded.knowledge_digest,
                selected_epoch=fitted.epoch,
                val_accuracy=fitted.val_accuracy,
            ),
        )
        pd.DataFrame(fitted.history).astype({"epoch": int}).to_csv(model / "history.csv", index=False)
        write_json(model / "run.json", run.tracked)
