"""Ablations against the published attention, choices on validation, views, and the two biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from scipy.stats import rankdata
from tests.unit.evaluation.conftest import PICTURES
from torch import Tensor, nn

from mdpr.artifacts import Features, ModelConfig, read_classes, read_features, read_probe
from mdpr.errors import ArtifactError, ConfigError
from mdpr.evaluation.ablations import (
    ABLATION_NAMES,
    KEPT,
    VIEWS,
    WEIGHTS,
    BatchOutputs,
    PostHoc,
    RoutingAblations,
    five_crop_transform,
    mean_logits,
    mean_probability,
    prior_only,
    shuffled,
    uniform,
)
from mdpr.evaluation.predictions import Predictions
from mdpr.evaluation.score_table import LEAST, MOST, NAMES_ONLY, SHUFFLED
from mdpr.evaluation.scoring import ablation_names, evaluate_splits
from mdpr.evaluation.tables import Results, check_label_set
from mdpr.evaluation.uncertainty import biases, correlations, slopes
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.model.fusion import RecallCounter, weigh
from mdpr.model.inference import Classifier, assumed_prior
from mdpr.model.routing import ROUTERS, AttentionRouter
from mdpr.params import DIMENSIONS, EvaluateParams, Params

C, V, D = 6, len(DIMENSIONS), 16
INPUTS = [*KEPT, *WEIGHTS, SHUFFLED]  # what the router reads of its own table


@pytest.fixture(scope="module", params=ROUTERS)
def classifier(request: pytest.FixtureRequest, encoded: Mapping[str, Path], small_params: Params) -> Classifier:
    """A real, untrained model on the embedded backbone, one with each router."""
    tune, backbone = small_params.tune.model_copy(update={"router": request.param}), small_params.backbone
    classes = read_classes(encoded["prepared"])
    names = [item.name for item in classes]
    features: Features = read_features(encoded["features"], names)
    torch.manual_seed(0)
    frozen = Backbone.load(backbone)  # type: ignore[arg-type]
    model = MDPR(frozen, names, tune, features)
    config = ModelConfig(
        backbone=backbone,  # type: ignore[arg-type]
        fingerprint=frozen.fingerprint,
        tune=tune,
        class_names=tuple(names),
        train_images=tuple(item.train_images for item in classes),
        knowledge_digest=features.knowledge_digest,
        background="white",
        selected_epoch=0,
        tau=0.0,
        val_accuracy={},
    )
    return Classifier(model, config)


@pytest.fixture(scope="module")
def prior_CV(encoded: Mapping[str, Path], classifier: Classifier) -> np.ndarray:
    return read_features(encoded["features"], list(classifier.class_names)).prior_CV


def names_of(classifier: Classifier) -> np.ndarray:
    """A unit-length feature per class name."""
    width = classifier.model.sentences_CVd.shape[-1]
    name_Cd = np.random.default_rng(3).normal(size=(len(classifier.class_names), width))
    return name_Cd / np.linalg.norm(name_Cd, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def seen(classifier: Classifier) -> BatchOutputs:
    size = classifier.image_size_px
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    return BatchOutputs(images, classifier(images), None)


def routed_similarity(classifier: Classifier, image_Bd: Tensor, weight_CV: Tensor) -> Tensor:
    """Of fixed weights. Attention, by the plain module: values mixed, projected, normalised. Gate: weighted cosines."""
    router = classifier.model.router
    if not isinstance(router, AttentionRouter):  # untrained: the image is not mapped yet, the scale is 1
        return torch.einsum("bd,cvd,cv->bc", image_Bd, classifier.model.sentences_CVd, weight_CV)
    attention: nn.MultiheadAttention = router.attention
    _, _, value_weight = attention.in_proj_weight.chunk(3)
    _, _, value_bias = attention.in_proj_bias.chunk(3)
    value_CVd = classifier.model.sentences_CVd @ value_weight.T + value_bias
    z_Cd = attention.out_proj((weight_CV[:, :, None] * value_CVd).sum(dim=1))
    return image_Bd @ nn.functional.normalize(z_Cd, dim=-1).T


@torch.no_grad()
def test_image_independent_ablations_are_fixed_routing_weights(
    classifier: Classifier, prior_CV: np.ndarray, seen: BatchOutputs
) -> None:
    found = RoutingAblations(
        classifier, prior_CV, names_of(classifier), ["uniform_routing", "prior_only"]
    ).log_probabilities(seen)
    prior = torch.as_tensor(prior_CV).clamp_min(0)
    weights = {"uniform_routing": torch.full_like(prior, 1 / V), "prior_only": prior / prior.sum(1, keepdim=True)}
    for name, weight_CV in weights.items():
        routed_BC = classifier.backbone.logit_scale * routed_similarity(classifier, seen.outputs.image_Bd, weight_CV)
        expected = classifier.model.fusion(seen.outputs.base_BC, routed_BC)
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_a_dimension_its_sentences_do_not_matter(
    classifier: Classifier, prior_CV: np.ndarray, seen: BatchOutputs
) -> None:
    found = RoutingAblations(classifier, prior_CV, names_of(classifier), INPUTS).log_probabilities(seen)
    assert list(found) == INPUTS
    for log_probability_BC in found.values():
        torch.testing.assert_close(log_probability_BC.exp().sum(dim=1), torch.ones(4))
    before = classifier.model.sentences_CVd.clone()
    try:
        classifier.model.sentences_CVd[:, 0] = torch.randn_like(before[:, 0])
        changed = Classifier(classifier.model, classifier.config)
        given = BatchOutputs(seen.image_B3HW, changed(seen.image_B3HW), None)
        again = RoutingAblations(changed, prior_CV, names_of(changed), INPUTS).log_probabilities(given)
    finally:
        classifier.model.sentences_CVd.copy_(before)
    same = {name for name in INPUTS if torch.allclose(found[name], again[name], atol=1e-6)}
    assert same == {f"without_{DIMENSIONS[0]}"}


@torch.no_grad()
def test_the_deletion_test_leaves_out_what_counted_most_and_least(
    classifier: Classifier, prior_CV: np.ndarray, seen: BatchOutputs
) -> None:
    made = RoutingAblations(classifier, prior_CV, names_of(classifier), list(ABLATION_NAMES)).log_probabilities(seen)
    assert list(made) == list(ABLATION_NAMES)
    weights_BV = Classifier.consult(seen.outputs, seen.outputs.fused_BC.argmax(dim=1))
    for row in range(len(weights_BV)):
        for name, place in ((MOST, weights_BV[row].argmax()), (LEAST, weights_BV[row].argmin())):
            torch.testing.assert_close(made[name][row], made[f"without_{DIMENSIONS[int(place)]}"][row])
    alone = RoutingAblations(classifier, prior_CV, names_of(classifier), [MOST]).log_probabilities(seen)
    assert list(alone) == [MOST]
    torch.testing.assert_close(alone[MOST], made[MOST])


@torch.no_grad()
def test_shuffled_sentences_are_the_routers_answer_to_them(
    classifier: Classifier, prior_CV: np.ndarray, seen: BatchOutputs
) -> None:
    model, router = classifier.model, classifier.model.router
    assert router is not None
    names = ["shuffled_sentences", NAMES_ONLY]
    found = RoutingAblations(classifier, prior_CV, names_of(classifier), names).log_probabilities(seen)
    name_Cd = torch.as_tensor(names_of(classifier), dtype=torch.float32)
    sentences = {
        "shuffled_sentences": model.sentences_CVd[shuffled(len(prior_CV))],
        NAMES_ONLY: name_Cd[:, None].expand_as(model.sentences_CVd),
    }
    for name, sentences_CVd in sentences.items():
        routed_BC = router(seen.outputs.image_Bd, router.table(sentences_CVd)).similarity_BC
        expected = model.fusion(seen.outputs.base_BC, classifier.backbone.logit_scale * routed_BC)
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=1e-4)


def test_shuffling_leaves_no_class_its_own_sentences() -> None:
    source_C = shuffled(C)
    assert sorted(source_C.tolist()) == list(range(C))
    assert not (source_C == torch.arange(C)).any()
    even_CV = torch.full((C, V), 1 / V)
    torch.testing.assert_close(uniform(torch.ones(C, V)), even_CV)
    torch.testing.assert_close(prior_only(torch.ones(C, V)), even_CV)
    torch.testing.assert_close(prior_only(-torch.ones(C, V)), even_CV)


def test_every_setting_of_ablations_is_one_there_is() -> None:
    everything = EvaluateParams(ablations=ABLATION_NAMES)
    assert ablation_names(everything, routed=True) == ABLATION_NAMES
    assert ablation_names(EvaluateParams(), routed=True) == list(ABLATION_NAMES)
    assert ablation_names(EvaluateParams(), routed=False) == []
    assert ablation_names(EvaluateParams(ablations=False), routed=True) == []
    with pytest.raises(ConfigError, match="has no router: set it to false"):
        ablation_names(everything, routed=False)


def test_what_is_equally_good_changes_the_model_least() -> None:
    label_N = np.array([0, 1])
    right, wrong = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    values = np.array([0.0, 0.5, 1.0])

    def counted(*answers: Tensor) -> RecallCounter:
        counter = RecallCounter(len(answers), 2)
        for rows in ([0], [1]):
            counter.add(torch.tensor(label_N[rows]), (scores_BC[rows] for scores_BC in answers))
        return counter

    assert counted(right, wrong).balanced_accuracy().tolist() == [1, 0.5]
    assert counted(right, right, right).best(values, least=0.5) == (0.5, 1)
    assert counted(right, wrong, right).best(values, least=0.5) == (0, 1)
    assert counted(wrong, wrong, right).best(values, least=0.0) == (1, 1)
    assert counted(wrong, wrong, wrong).best(values, least=0.0) == (0, 0.5)
    base, routed = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(weigh(base, routed, 0.5), ((base + routed) / 2).log_softmax(-1))
    views = torch.randn(5, 3, 4).log_softmax(-1)
    torch.testing.assert_close(mean_probability(views).exp(), views.exp().mean(0))


def test_an_adjusted_model_answers_so_in_every_branch_that_is_its_answer(classifier: Classifier) -> None:
    """tau log(share) is taken off the fused answer and that of every ablation; the row beside it has it back."""
    changed = classifier.config.model_copy(
        update={"tau": 0.7, "tune": classifier.config.tune.model_copy(update={"post_hoc": "validated"})}
    )
    adjusted = Classifier(copy.copy(classifier.model), changed)
    image = torch.randn(4, 3, classifier.image_size_px, classifier.image_size_px)
    count_C = torch.tensor(changed.train_images) + 1
    log_share_C = (count_C / count_C.sum()).log()
    before, after = classifier(image), adjusted(image)
    expected = (before.fused_BC - 0.7 * log_share_C).log_softmax(dim=-1)
    torch.testing.assert_close(after.fused_BC, expected)
    torch.testing.assert_close(after.base_BC, before.base_BC)
    assert not torch.equal(after.fused_BC, before.fused_BC)
    served = adjusted.predict(list(image), top_k=1)
    assert [item.class_index for item in served] == expected.argmax(dim=-1).tolist()
    assert [item.probability for item in served] == pytest.approx(expected.exp().max(dim=-1).values.tolist())

    rows = PostHoc(adjusted, [(image, torch.arange(4))]).log_probabilities(BatchOutputs(image, after, None))
    name, weighed = rows
    assert name == "without_logit_adjustment"
    torch.testing.assert_close(rows[name], before.fused_BC)
    weight = float(weighed.removesuffix(")").rpartition(" ")[2])
    assert before.routed_BC is not None
    by_weight = weigh(before.base_BC, before.routed_BC, weight) - 0.7 * log_share_C
    torch.testing.assert_close(rows[weighed], by_weight.log_softmax(dim=-1))
    assert assumed_prior(changed)[0] < assumed_prior(classifier.config)[0]


def test_five_crops_are_corners_and_centre(classifier: Classifier) -> None:
    size = classifier.image_size_px
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2 * size, 2 * size, 3), dtype=np.uint8))
    crops = five_crop_transform(classifier, VIEWS["five_crop"]).fixed(picture)
    both = five_crop_transform(classifier, VIEWS["five_crop_flip"]).fixed(picture)
    assert crops.shape == (5, 3, size, size)
    assert torch.equal(both[:5], crops)
    assert torch.equal(both[5:], crops.flip(-1))
    assert len({crop.numpy().tobytes() for crop in crops}) == 5


def test_lifts_ensemble_averages_logits_of_crops_at_248_to_224(classifier: Classifier) -> None:
    size = classifier.image_size_px
    ramp = np.linspace(0, 255, 7 * size).astype(np.uint8)[None].repeat(7 * size, axis=0)
    crops = five_crop_transform(classifier, VIEWS["lift"]).fixed(Image.fromarray(ramp).convert("RGB"))
    assert crops.shape == (5, 3, size, size)
    left, right = crops[0].float(), crops[1].float()  # the corners lie 24 / 224 of a crop apart
    step = 255 / (round(size * 248 / 224) - 1)
    assert (right - left).mean().item() == pytest.approx(step * (round(size * 248 / 224) - size), rel=0.1)
    logits_WBC = torch.randn(5, 2, 3)
    averaged = mean_logits(logits_WBC.log_softmax(dim=-1))
    torch.testing.assert_close(averaged, logits_WBC.mean(dim=0).log_softmax(dim=-1))


@pytest.mark.parametrize("views", ["flip", "five_crop", "lift"])
def test_variants_never_touch_the_main_rows(
    classifier: Classifier, prior_CV: np.ndarray, encoded: Mapping[str, Path], views: str, tmp_path: Path
) -> None:
    from mdpr.artifacts import read_card, read_images, write_images, write_json

    card = read_card(encoded["prepared"]).model_dump(mode="json")
    for split in ("val", "test"):  # a cut of the real splits
        images = read_images(encoded["prepared"] / f"{split}.parquet")
        rows = [images[row] for row in range(0, len(images), max(1, len(images) // 40))][:40]
        write_images(
            tmp_path / f"{split}.parquet", *([getattr(r, key) for r in rows] for key in ("image", "path", "label"))
        )
        card["images_per_class"][split] = np.bincount([row.label for row in rows], minlength=10).tolist()
    write_json(tmp_path / "card.json", card)
    probe = read_probe(encoded["probe"], list(classifier.class_names))
    plain = EvaluateParams(ablations=False, post_hoc=False)
    alone = evaluate_splits(classifier, probe, prior_CV, tmp_path, plain)
    full = evaluate_splits(classifier, probe, prior_CV, tmp_path, EvaluateParams(test_time=views))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(alone.predictions, full.predictions)
    assert list(alone.variants) == ["index", "label"]
    kinds = list(full.kinds.values())
    assert kinds == ["ablation"] * len(ABLATION_NAMES) + ["robust"] * 3
    classes = read_classes(encoded["prepared"])
    variants = Results.of(full, classes, probe.rival_C, probe.log_prior_C, PICTURES, resamplings=100).variants
    assert list(variants["variant"]) == list(full.kinds)
    assert (variants["gain_low"] <= variants["gain"] + 1e-12).all()
    assert (variants["gain"] <= variants["gain_high"] + 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_slopes_and_correlations_agree_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, (3, 12)) / 4, rng.integers(0, 5, (3, 12)) / 4
    for row in range(3):
        if np.ptp(x[row]) and np.ptp(y[row]):
            assert slopes(x, y)[row] == pytest.approx(stats.linregress(x[row], y[row]).slope, abs=1e-9)
            expected = stats.spearmanr(x[row], y[row]).statistic
            assert correlations(rankdata(x, axis=1), rankdata(y, axis=1))[row] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(slopes(np.ones((1, 12)), y)).all()


def test_biases_hold_their_estimate_and_are_none_where_there_is_none(
    predictions: Callable[..., pd.DataFrame],
) -> None:
    table = predictions(8, 60)
    counts = [1000, 500, 200, 100, 50, 20, 10, 5]
    found = biases(table, counts, np.log(np.arange(1, 9) / 36), resamplings=300).branches
    assert set(found["fused"]) == {"by_count", "by_prior", "by_zero_shot"}
    assert "by_zero_shot" not in found["zero_shot"]
    bias = found["fused"]["by_count"]
    assert bias.slope is not None
    assert bias.slope_interval is not None
    assert bias.slope > 0  # the synthetic answers are better on early classes
    assert bias.slope_interval[0] < bias.slope < bias.slope_interval[1]
    balanced = biases(table, [10] * 8, np.zeros(8), resamplings=50).branches["base"]["by_count"]
    assert balanced.slope is balanced.slope_interval is balanced.correlation is None


def test_predictions_for_another_label_set_are_refused(
    predictions: Callable[..., pd.DataFrame], answers: Callable[..., Predictions], classes: Callable[..., object]
) -> None:
    with pytest.raises(ArtifactError, match="label set: label has class 5, there are 3 classes"):
        Results.of(answers(predictions(6, 2)), classes(3), np.zeros(3, dtype=int), np.zeros(3), PICTURES)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="has no image"):
        check_label_set(predictions(3, 2).head(0), 3)
