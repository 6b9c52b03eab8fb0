"""probe: the frozen model's own bias, read from the training images."""

from __future__ import annotations

from mdpr.params import BackboneParams, ProbeParams
from mdpr.stages.stage import In, Out


def probe(prepared: In, probe: Out, *, params: ProbeParams, backbone: BackboneParams) -> None:
    """Write the zero-shot confusion, each class's rival and accuracy, and the estimated hidden prior."""
    import torch

    from mdpr.artifacts import Probe, read_classes, read_split, write_probe
    from mdpr.images.loading import ImageTable, eval_transform, make_loader
    from mdpr.model.backbone import Backbone
    from mdpr.probe.bias import choose_shrinkage, class_features, confusion_matrix, estimate_log_prior, rivals
    from mdpr.progress import track

    names = [item.name for item in read_classes(prepared)]
    frozen = Backbone.load(backbone)
    text_Cd = class_features(frozen, names, params.templates)

    transform = eval_transform(frozen.image_size_px, frozen.image_mean, frozen.image_std)
    dataset = ImageTable(read_split(prepared, "train"), transform)
    label_N = torch.from_numpy(dataset.labels_N)
    logits_NC = torch.empty(len(dataset), len(names))
    image_Cd = torch.zeros_like(text_Cd, dtype=torch.float64)
    parts = iter(logits_NC.split(params.batch_size))
    for image_B3HW, label_B in track(make_loader(dataset, params.batch_size), "probe"):
        image_Bd = frozen.encode_image(image_B3HW.to(frozen.device))
        next(parts).copy_(frozen.logit_scale * image_Bd @ text_Cd.T)
        image_Cd.index_add_(0, label_B.to(frozen.device), image_Bd.double())
    shrinkage = params.prior_shrinkage
    if shrinkage is None:
        shrinkage = choose_shrinkage(logits_NC, label_N)
    log_prior_C = estimate_log_prior(logits_NC, label_N, shrinkage).float().numpy()
    predicted_N = logits_NC.argmax(dim=1).numpy()
    del logits_NC, parts  # N * C numbers

    confusion_CC = confusion_matrix(dataset.labels_N, predicted_N, len(names))
    text = text_Cd.cpu().numpy()
    content = Probe(
        confusion_CC=confusion_CC,
        rival_C=rivals(confusion_CC, text),
        zero_shot_C=confusion_CC.diagonal(),
        log_prior_C=log_prior_C,
        text_Cd=text,
        train_images_C=torch.bincount(label_N, minlength=len(names)).numpy(),
        image_Cd=torch.nn.functional.normalize(image_Cd, dim=-1).float().cpu().numpy(),
        logit_scale=frozen.logit_scale.item(),
        fingerprint=frozen.fingerprint,
    )
    probe.mkdir()
    write_probe(probe, content, names)
