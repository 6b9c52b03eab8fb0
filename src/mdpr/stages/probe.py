"""probe: the frozen model's own bias, read from the training images."""

from __future__ import annotations

from mdpr.params import BackboneParams, ProbeParams
from mdpr.stages.stage import In, Out


def probe(prepared: In, probe: Out, *, params: ProbeParams, backbone: BackboneParams) -> str:
    """Write the zero-shot confusion, each class's rival and accuracy, and the estimated hidden prior.

    Beside them, a logistic regression on the same features: what a tuned model must beat.
    """
    import torch

    from mdpr.artifacts import Probe, read_classes, read_split, write_logistic, write_probe
    from mdpr.images.loading import ImageTable, eval_transform, make_loader
    from mdpr.model.backbone import Backbone
    from mdpr.probe.frozen import (
        choose_shrinkage,
        class_features,
        confusion_matrix,
        estimate_log_prior,
        few_per_class,
        fit_logistic,
        is_affordable,
        rivals,
    )
    from mdpr.progress import track

    names = [item.name for item in read_classes(prepared)]
    frozen = Backbone.load(backbone)
    text_Cd = class_features(frozen, names, params.templates)

    transform = eval_transform(frozen.image_size_px, frozen.image_mean, frozen.image_std)
    dataset = ImageTable(read_split(prepared, "train"), transform)
    images, predictions = [], []
    image_Cd = torch.zeros_like(text_Cd, dtype=torch.float64)
    for image_B3HW, label_B in track(make_loader(dataset, params.batch_size), "probe"):
        image_Bd = frozen.encode_image(image_B3HW.to(frozen.device))
        image_Cd.index_add_(0, label_B.to(frozen.device), image_Bd.double())
        images.append(frozen.logit_scale * image_Bd)
        predictions.append((images[-1] @ text_Cd.T).argmax(dim=1))
    scaled_Nd, label_N = torch.cat(images).cpu(), torch.from_numpy(dataset.labels_N)
    shrinkage = params.prior_shrinkage
    if shrinkage is None:
        shrinkage = choose_shrinkage(scaled_Nd, text_Cd.cpu(), label_N)
    log_prior_C = estimate_log_prior(scaled_Nd, text_Cd.cpu(), label_N, shrinkage).float().numpy()

    confusion_CC = confusion_matrix(dataset.labels_N, torch.cat(predictions).numpy(), len(names))
    text = text_Cd.cpu().numpy()
    content = Probe(
        rival_C=rivals(confusion_CC, text),
        zero_shot_C=confusion_CC.diagonal(),
        log_prior_C=log_prior_C,
        text_Cd=text,
        train_images_C=torch.bincount(label_N, minlength=len(names)).numpy(),
        image_Cd=torch.nn.functional.normalize(image_Cd, dim=-1).float().cpu().numpy(),
        logit_scale=frozen.logit_scale.item(),
        fingerprint=frozen.fingerprint,
    )
    rows_n = few_per_class(dataset.labels_N)
    head = None
    if is_affordable(len(rows_n), *text.shape):
        val = ImageTable(read_split(prepared, "val"), transform)
        loader = track(make_loader(val, params.batch_size), "probe, validation")
        val_features = [frozen.encode_image(image_B3HW.to(frozen.device)).cpu() for image_B3HW, _ in loader]
        val_Md = torch.cat(val_features).numpy() if val_features else text[:0]
        train_nd = scaled_Nd.numpy()[rows_n] / frozen.logit_scale.item()
        head = fit_logistic(train_nd, dataset.labels_N[rows_n], val_Md, val.labels_N)
    probe.mkdir()
    write_probe(probe, content, confusion_CC, names)
    if head:
        write_logistic(probe, head)
    return f"probed: {len(names):,} classes, {content.zero_shot_C.mean():.1%} of their training images right by name"
