"""tune: train the prompts and the router."""

from __future__ import annotations

from mdpr.params import BackboneParams, TrackingParams, TuneParams
from mdpr.stages.stage import Checkpoint, In, Out


def tune(
    prepared: In,
    probe: In,
    features: In,
    model: Out,
    checkpoint: Checkpoint,
    *,
    params: TuneParams,
    backbone: BackboneParams,
    tracking: TrackingParams,
) -> None:
    """Write the learned weights of the epoch that is best on validation, its configuration and the history."""
    from contextlib import nullcontext

    import pandas as pd

    from mdpr.artifacts import (
        ModelConfig,
        model_digests,
        read_classes,
        read_features,
        read_images,
        read_probe,
        write_json,
    )
    from mdpr.errors import Diverged
    from mdpr.images.loading import ImageTable, eval_transform, train_transform
    from mdpr.mlops.runs import flatten, lineage_tags, open_run, split_inputs
    from mdpr.model.backbone import Backbone, save_weights
    from mdpr.model.classifier import MDPR
    from mdpr.training.checkpoint import Checkpoints, check_fit, listen_for_sigterm, run_identity, seed_everything
    from mdpr.training.distributed import join
    from mdpr.training.loop import Surroundings, TrainingData, check_precision, fit
    from mdpr.training.losses import Objective

    with join(params, backbone) as ranks, listen_for_sigterm() as stop:
        classes = read_classes(prepared)
        names = [item.name for item in classes]
        encoded, zero_shot = read_features(features, names), read_probe(probe, names)
        frozen = Backbone.load(backbone)
        check_precision(params.precision, frozen.device)
        check_fit(frozen, {features: encoded.fingerprint, probe: zero_shot.fingerprint})

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
        made_from = [prepared / "card.json", prepared / "classes.json", probe, features]  # the card digests the images
        checkpoints = Checkpoints(checkpoint, run_identity(params, frozen, ranks.world, made_from))
        resume = checkpoints.read()

        settings = flatten({"tune": params.model_dump(), "backbone": backbone.model_dump()})
        digests = model_digests(prepared, knowledge=encoded.knowledge_digest, backbone=frozen.fingerprint)
        tags, run_id = digests | lineage_tags([prepared, probe, features]), checkpoints.notes.get("run_id")
        tracked = (
            open_run(tracking, "tune", settings, tags, datasets=split_inputs(prepared, ["train", "val"]), run_id=run_id)
            if ranks.leads
            else nullcontext()
        )
        with tracked as run:
            if run is None:
                fit(tuned, objective, data, Surroundings(ranks, resume=resume, stop=stop))
                return
            checkpoints.notes["run_id"] = run.run_id
            try:
                fitted = fit(
                    tuned, objective, data, Surroundings(ranks, run.log_epoch, checkpoints.write, resume, stop)
                )
            except Diverged:
                checkpoints.discard()  # its steps would end in the same way again
                raise
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
            write_json(model / "run.json", run.tracked.model_copy(update={"digests": digests}))
