"""tune: train the prompts and the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdpr.params import BackboneParams, TrackingParams, TuneParams
from mdpr.stages.stage import Checkpoint, In, Out

if TYPE_CHECKING:
    from mdpr.artifacts import Features, ModelConfig
    from mdpr.model.classifier import MDPR
    from mdpr.training.loop import FitResult, TrainingData


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
) -> str:
    """Write the learned weights of the epoch that is best on validation, its configuration and the history."""
    from mdpr import artifacts
    from mdpr.errors import Diverged
    from mdpr.mlops.runs import open_tuning_run
    from mdpr.model.backbone import Backbone, save_weights
    from mdpr.model.classifier import MDPR
    from mdpr.training.checkpoint import Checkpoints, listen_for_sigterm, run_identity, seed_everything
    from mdpr.training.distributed import join
    from mdpr.training.loop import TrainContext, TrainingData, fit
    from mdpr.training.losses import Objective

    with join(params, backbone) as distributed, listen_for_sigterm() as stop:
        names = [item.name for item in artifacts.read_classes(prepared)]
        encoded = artifacts.read_features(features, names)
        frozen = Backbone.load(backbone)
        data = TrainingData.read(prepared, frozen, params)
        seed_everything(params.seed)
        tuned = MDPR(frozen, names, params, encoded, artifacts.read_probe(probe, names))
        objective = Objective(tuned, data.counts, encoded)
        inputs = [prepared / "card.json", prepared / "classes.json", probe, features]  # the card digests the images
        checkpoints = Checkpoints(checkpoint, run_identity(params, frozen, distributed.world, inputs))
        resume, notes = checkpoints.read(), checkpoints.notes
        if not distributed.is_main:
            fit(tuned, objective, data, TrainContext(distributed, resume=resume, stop=stop))
            return ""

        digests = artifacts.model_digests(prepared, knowledge=encoded.knowledge_digest, backbone=frozen.fingerprint)
        folders, earlier = [prepared, probe, features], notes.get("run_id")
        with open_tuning_run(tracking, params, backbone, folders, digests, run_id=earlier) as run:
            notes["run_id"] = run.run_id
            context = TrainContext(distributed, run.log_epoch, checkpoints.write, resume, stop)
            try:
                result = fit(tuned, objective, data, context)
            except Diverged:
                checkpoints.discard()  # to resume it would end in the same way again
                raise
            background = artifacts.read_card(prepared).background
            config = _configure(tuned, data, encoded, backbone, result, background)
            run.log_selected(result.epoch, config.val_accuracy)
            model.mkdir()
            save_weights(model / "model.safetensors", result.state)
            artifacts.write_model(model, config, result.history)
            seen = [artifacts.image_digests(artifacts.read_split(prepared, split)) for split in ("train", "val")]
            artifacts.write_seen(model, train_N=seen[0], val_N=seen[1])
            artifacts.write_json(model / "run.json", run.tracked.model_copy(update={"digests": digests}))
    right = ", ".join(f"{branch} {accuracy:.1%}" for branch, accuracy in config.val_accuracy.items())
    return f"tuned: epoch {result.epoch + 1} of {params.epochs} is the best on validation: {right}"


def _configure(
    tuned: MDPR,
    data: TrainingData,
    encoded: Features,
    backbone: BackboneParams,
    result: FitResult,
    background: str,
) -> ModelConfig:
    """The configuration of the trained model; tau of `tune.post_hoc` is chosen here, on the validation images."""
    import torch

    from mdpr import artifacts
    from mdpr.images.loading import make_loader, scoring_batch_size
    from mdpr.model.fusion import TAUS, RecallCounter, adjust, log_shares

    config = artifacts.ModelConfig(
        backbone=backbone,
        fingerprint=tuned.backbone.fingerprint,
        tune=tuned.params,
        class_names=tuned.class_names,
        train_images=tuple(data.counts),
        knowledge_digest=encoded.knowledge_digest,
        background=background,
        selected_epoch=result.epoch,
        tau=0.0,
        val_accuracy=result.val_accuracy,
    )
    if tuned.params.post_hoc == "none":
        return config
    tuned.load_learned_state(result.state)
    tuned.eval()
    device, counter = tuned.backbone.device, RecallCounter(len(TAUS), len(data.counts))
    log_share_C = log_shares(data.counts).to(device)
    with torch.no_grad():
        constants = tuned.constants()
        size = scoring_batch_size(tuned.params.batch_size, len(data.counts))
        for image_B3HW, label_B in make_loader(data.val, size):
            answer_BC = tuned(image_B3HW.to(device), constants=constants).fused_BC
            counter.add(label_B, (adjust(answer_BC, tau, log_share_C) for tau in TAUS))
    tau, accuracy = counter.best(TAUS, least=0.0)
    return config.model_copy(update={"tau": tau, "val_accuracy": result.val_accuracy | {"fused": accuracy}})
