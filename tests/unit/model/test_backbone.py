"""The frozen model: what it can do, and one clear line where it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import open_clip
import pytest
import torch

from mdpr.artifacts import read_classes, read_features
from mdpr.errors import ArtifactError, BackboneError, ConfigError, MdprError
from mdpr.model.backbone import Backbone, choose_device
from mdpr.model.classifier import MDPR
from mdpr.params import BackboneParams, Params, TuneParams

NAMES = ["boot", "bag"]


def test_features_are_those_of_open_clip(backbone: Backbone, params: BackboneParams) -> None:
    stock = open_clip.create_model(
        "mdpr-tiny", pretrained=params.weights, force_custom_text=True, require_pretrained=True
    ).eval()
    image = torch.randn(2, 3, 32, 32)
    tokens = open_clip.get_tokenizer("mdpr-tiny")(NAMES)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(image), stock.encode_image(image, normalize=True))
        torch.testing.assert_close(backbone.encode_text(NAMES), stock.encode_text(tokens, normalize=True))
    assert backbone.logit_scale.item() == pytest.approx(min(100.0, stock.logit_scale.exp().item()))


def test_nothing_in_it_trains(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.train()
    assert not any(module.training for module in backbone.modules())


def test_the_fingerprint_follows_the_weights(backbone: Backbone, params: BackboneParams) -> None:
    assert Backbone.load(params).fingerprint == backbone.fingerprint
    clip = open_clip.create_model("mdpr-tiny", force_custom_text=True)
    assert Backbone(clip, "mdpr-tiny", backbone.tokenizer).fingerprint != backbone.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "ViT-Z-99"}, "backbone.architecture = 'ViT-Z-99' is not known to open_clip"),
        ({"architecture": "nothing.json"}, r"backbone.architecture: nothing\.json does not exist"),
        ({"weights": "nothing.safetensors"}, r"backbone.weights: nothing\.safetensors does not exist"),
        ({"weights": "opanai"}, "backbone.weights = 'opanai': mdpr-tiny has the tags none"),
    ],
)
def test_models_that_are_not_there(params: BackboneParams, change: dict[str, str], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        Backbone.load(params.model_copy(update=change))


def test_weights_that_are_damaged_or_of_another_model(params: BackboneParams, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(BackboneError, match="could not be loaded into mdpr-tiny"):
        Backbone.load(params.model_copy(update={"weights": str(broken)}))
    other = tmp_path / "mdpr-wide.json"
    other.write_text(Path(params.architecture).read_text().replace('"width": 128', '"width": 256'))
    with pytest.raises(BackboneError, match="could not be loaded into mdpr-wide"):
        Backbone.load(params.model_copy(update={"architecture": str(other)}))
    shutil.copy(params.architecture, tmp_path / "not-a-model.json")
    (tmp_path / "not-a-model.json").write_text("{}")
    with pytest.raises(BackboneError, match="is not an open_clip model configuration"):
        Backbone.load(params.model_copy(update={"architecture": str(tmp_path / "not-a-model.json")}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there() -> None:
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(BackboneError, match=r"backbone\.device = cuda: no CUDA GPU is visible"):
        choose_device("cuda")


def test_a_text_longer_than_the_tower_is_refused_not_cut(backbone: Backbone) -> None:
    assert backbone.tokenize(["word " * 75]).shape == (1, 77)
    with pytest.raises(BackboneError, match="longer than the 77 tokens of mdpr-tiny"):
        backbone.tokenize(["word " * 76])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompt_depth": 5}, BackboneError, r"tune\.prompt_depth = 5: the image tower of mdpr-tiny has 4 layers"),
        ({"prompting": "coop", "prompt_depth": 5}, BackboneError, "the text tower of mdpr-tiny has 4 layers"),
        ({"context_tokens": 75, "context_init": ""}, BackboneError, "has 77 places, 74 of them free"),
        ({"context_tokens": 74, "context_init": ""}, BackboneError, "context_tokens = 74 leaves no room in 77"),
        ({"context_tokens": 2}, ConfigError, "context_init = 'a photo of a' has 4 tokens, tune.context_tokens is 2"),
        (
            {"router": "attention", "router_heads": 7},
            ConfigError,
            "router_heads = 7 does not divide the joint embedding width 128",
        ),
    ],
)
def test_prompts_a_tower_cannot_take(
    backbone: Backbone,
    encoded: Mapping[str, Path],
    small_params: Params,
    change: dict[str, object],
    error: type[MdprError],
    message: str,
) -> None:
    tune = small_params.tune
    names = [item.name for item in read_classes(encoded["prepared"])]
    features = read_features(encoded["features"], names)
    with pytest.raises(error, match=message):
        MDPR(backbone, [*names[:-1], "old ankle boot"], tune.model_copy(update=change), features)


def test_a_resnet_takes_text_context_and_refuses_visual_tokens() -> None:
    clip = open_clip.create_model("RN50", force_custom_text=True)
    backbone = Backbone(clip, "RN50", open_clip.get_tokenizer("RN50"))
    base = {"routing": False, "prompt_depth": 2}
    model = MDPR(backbone, NAMES, TuneParams(prompting="coop", **base))
    assert model(torch.randn(1, 3, 224, 224)).base_BC.shape == (1, 2)
    with pytest.raises(BackboneError, match="RN50 has a ModifiedResNet image tower, which takes no visual tokens"):
        MDPR(backbone, NAMES, TuneParams(prompting="maple", **base))


def test_inputs_of_another_backbone_are_named_with_both_fingerprints(backbone: Backbone) -> None:
    backbone.check_fingerprint(Path("features"), backbone.fingerprint)
    with pytest.raises(ArtifactError) as caught:
        backbone.check_fingerprint(Path("data/probe"), "ViT-B-16:00ff")
    message = str(caught.value)
    assert message.startswith(f"data/probe was made with ViT-B-16:00ff, the backbone is {backbone.fingerprint}: rerun")


def test_features_of_another_backbone_are_refused(
    encoded: Mapping[str, Path], small_params: Params, backbone: Backbone
) -> None:
    tune = small_params.tune
    names = [item.name for item in read_classes(encoded["prepared"])]
    features = read_features(encoded["features"], names)
    clip = open_clip.create_model("mdpr-tiny", force_custom_text=True)
    other = Backbone(clip, "mdpr-tiny", backbone.tokenizer)
    with pytest.raises(ArtifactError, match=f"features was made with {backbone.fingerprint}, the backbone is"):
        MDPR(other, names, tune, features)
    with pytest.raises(ArtifactError, match="needs the encoded knowledge base"):
        MDPR(backbone, names, tune)
