"""Adapters on towers of every kind in float64: the stock tower at the start, and the same function once merged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from mdpr.artifacts import ModelConfig, read_classes, read_features, read_probe, write_json
from mdpr.errors import ArtifactError, BackboneError, ConfigError
from mdpr.model.backbone import Backbone, save_weights
from mdpr.model.classifier import MDPR
from mdpr.model.inference import Classifier
from mdpr.model.towers import image_features, prompted_image_features, run_block
from mdpr.model.tuners import TUNERS, Tuner, build_tuner
from mdpr.params import Params, TuneParams, parse_params
from mdpr.params.tuning import PUBLISHED

ADAPTERS = ("adaptformer", "lora", "ssf", "bitfit")
MERGED = ("lora", "ssf", "bitfit")
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}
TOWERS = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.5},
    "average_pool": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "attentional_pool": {"attentional_pool": True},
}


@pytest.fixture(autouse=True)
def _float64_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features leave the towers in float32 at least; identities are tested in float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


class Frozen:
    """As much of a backbone as a tuner of the image tower reads."""

    architecture = "small"

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        tower = _build_vision_tower(16, CLIPVisionCfg(**VISION, **TOWERS[name]), quick_gelu=name == "plain")
        with torch.no_grad():
            for parameter in tower.parameters():
                if parameter.dim() <= 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        self.visual: VisionTransformer = tower.double().eval().requires_grad_(False)
        self.clip = SimpleNamespace(visual=self.visual)


def adapted(name: str, prompting: str, **settings: Any) -> tuple[VisionTransformer, Tuner]:
    frozen: Any = Frozen(name)
    tuner = build_tuner(frozen, TuneParams(prompting=prompting, **settings), 40)  # type: ignore[arg-type]
    return frozen.visual, tuner.double()


def learn(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def images(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("prompting", ADAPTERS)
def test_adapters_start_as_the_stock_tower_and_learn(tower: str, prompting: str) -> None:
    visual, tuner = adapted(tower, prompting)
    stock = F.normalize(visual(images()), dim=-1)
    features = prompted_image_features(visual, images(), adapters=tuner().adapters)
    torch.testing.assert_close(features, stock, rtol=0, atol=1e-12)
    (features * torch.randn_like(features)).sum().backward()
    moved = [value.grad.abs().max() > 0 for value in tuner.parameters() if value.grad is not None]
    assert any(moved)
    learn(tuner)
    changed = prompted_image_features(visual, images(), adapters=tuner().adapters)
    assert (changed - stock).abs().max() > 1e-3


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("prompting", MERGED)
def test_a_merged_tower_computes_the_same_and_the_frozen_one_stays(tower: str, prompting: str) -> None:
    visual, tuner = adapted(tower, prompting)
    learn(tuner)
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    merged = tuner.merged(visual)
    assert merged is not None
    expected = prompted_image_features(visual, images(), adapters=tuner().adapters)
    torch.testing.assert_close(prompted_image_features(merged, images()), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    shared = {value.data_ptr() for value in visual.parameters()} & {value.data_ptr() for value in merged.parameters()}
    assert shared  # weights that do not change are held once


def test_adaptformer_cannot_be_merged_and_stays_beside_the_tower() -> None:
    visual, tuner = adapted("plain", "adaptformer")
    assert tuner.merged(visual) is None
    assert Tuner().merged(visual) is None


def test_formulas_of_a_block_written_out() -> None:
    """lora: W x + up down x on query and value; adaptformer: scale up relu(down norm x) beside the MLP."""
    visual, tuner = adapted("plain", "lora", adapter_width=3)
    learn(tuner)
    block, change = visual.transformer.resblocks[0], tuner().adapters[0].changes["in_proj"]
    weight = block.attn.in_proj_weight.clone()
    for index, third in enumerate((0, 2)):
        weight[32 * third : 32 * third + 32] += change.up_2wr[index] @ change.down_2rw[index]
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    normal = block.ln_1(x)
    q, k, v = (
        part.unflatten(-1, (4, 8)).transpose(1, 2)
        for part in F.linear(normal, weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    )
    attended = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x_after = x + block.attn.out_proj(attended)
    expected = x_after + block.mlp(block.ln_2(x_after))
    torch.testing.assert_close(run_block(block, x, adapter=tuner().adapters[0]), expected, rtol=0, atol=1e-12)

    _, narrow = adapted("plain", "adaptformer", adapter_width=3)
    learn(narrow)
    beside = narrow().adapters[0].parallel
    assert beside is not None
    shift = F.linear(F.layer_norm(x_after, (32,), beside.norm.weight, beside.norm.bias), beside.down.weight)
    added = beside.scale * F.linear((shift + beside.down.bias).relu(), beside.up.weight, beside.up.bias)
    torch.testing.assert_close(beside(x_after), added, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("classes", "layers", "width"), [(100, 12, 4), (1000, 12, 32), (365, 12, 8), (10, 12, 1), (8142, 12, 256)]
)
def test_the_width_follows_lifts_rule(classes: int, layers: int, width: int) -> None:
    frozen: Any = Frozen("plain")
    frozen.visual.transformer.resblocks = torch.nn.ModuleList([frozen.visual.transformer.resblocks[0]] * layers)
    tuner = build_tuner(frozen, TuneParams(prompting="lora"), classes)
    assert tuner().adapters[0].changes["in_proj"].down_2rw.shape[1] == min(width, 32)


@pytest.mark.parametrize("prompting", ["adaptformer", "lora"])
def test_a_width_beyond_the_tower_is_refused_with_both_numbers(prompting: str) -> None:
    with pytest.raises(BackboneError, match=r"tune\.adapter_width = 33: the image tower of small is 32 wide"):
        adapted("plain", prompting, adapter_width=33)


@pytest.mark.parametrize("prompting", ["adaptformer", "ssf", "bitfit", "vpt"])
def test_towers_of_other_blocks_and_kinds_say_so(prompting: str) -> None:
    clip = open_clip.create_model("RN50", force_custom_text=True)
    resnet = Backbone(clip, "RN50", open_clip.get_tokenizer("RN50"))
    with pytest.raises(BackboneError, match=r"RN50 has a ModifiedResNet image tower, which takes no .*adapters"):
        TUNERS[prompting](resnet, TuneParams(prompting=prompting), 10)  # type: ignore[arg-type]


def test_blocks_that_are_not_plain_say_so() -> None:
    frozen: Any = Frozen("plain")
    frozen.visual = _build_vision_tower(16, CLIPVisionCfg(**VISION, qk_norm=True), quick_gelu=False)
    with pytest.raises(BackboneError, match="small has an image tower of CustomResidualAttentionBlock, which takes no"):
        build_tuner(frozen, TuneParams(prompting="ssf"), 10)


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_lora_updates_the_linear_layers_of_other_towers(kind: str) -> None:
    """The stock tower at the start, the same function once merged, and the frozen tower stays as it is."""
    if kind == "timm":
        pytest.importorskip("timm")
        tower = _build_vision_tower(
            16, CLIPVisionCfg(image_size=224, timm_model_name="vit_tiny_patch16_224", timm_proj="linear"), False
        )
    else:
        tower = _build_vision_tower(
            16, CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=32, head_width=8), False
        )
    image_B3HW = images(224 if kind == "timm" else 32)
    tower = tower.double().eval().requires_grad_(False)
    frozen: Any = SimpleNamespace(architecture="other", clip=SimpleNamespace(visual=tower))
    tuner = build_tuner(frozen, TuneParams(prompting="lora", adapter_width=2), 10).double()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    stock = F.normalize(tower(image_B3HW), dim=-1)
    start = image_features(tower, image_B3HW, tuner().updates)
    torch.testing.assert_close(start, stock, rtol=0, atol=1e-12)
    (start * torch.randn_like(start)).sum().backward()
    assert all(value.grad is not None for value in tuner.parameters())
    learn(tuner)
    changed = image_features(tower, image_B3HW, tuner().updates)
    assert (changed - stock).abs().max() > 1e-3
    merged = tuner.merged(tower)
    assert merged is not None
    torch.testing.assert_close(image_features(merged, image_B3HW), changed, rtol=0, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    with pytest.raises(BackboneError, match=r"tune\.adapter_width = 5000: the image tower of other is \d+ wide"):
        build_tuner(frozen, TuneParams(prompting="lora", adapter_width=5000), 10)


def test_a_cosine_head_needs_no_tokens_so_a_resnet_takes_it() -> None:
    clip = open_clip.create_model("RN50", force_custom_text=True)
    backbone = Backbone(clip, "RN50", open_clip.get_tokenizer("RN50"))
    model = MDPR(backbone, ["boot", "bag"], TuneParams(prompting="none", head="cosine", routing=False))
    assert model(torch.randn(1, 3, 224, 224)).base_BC.shape == (1, 2)
    assert set(model.learned_state()) == {"head_Cd", "fusion.base_weight"}


@pytest.fixture(scope="module")
def build(backbone: Backbone, encoded: Mapping[str, Path], small_params: Params) -> Any:
    names = [item.name for item in read_classes(encoded["prepared"])]
    parts = {
        "features": read_features(encoded["features"], names),
        "probe": read_probe(encoded["probe"], names),
    }

    def build(without: str = "", saved: bool = False, **changes: Any) -> MDPR:
        given = {name: value for name, value in parts.items() if name != without}
        return MDPR(backbone, names, small_params.tune.model_copy(update=changes), saved=saved, **given)

    return build


def test_the_head_starts_from_what_head_init_names(
    build: Any, encoded: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    names = [item.name for item in read_classes(encoded["prepared"])]
    features, probe = read_features(encoded["features"], names), read_probe(encoded["probe"], names)
    common: dict[str, Any] = {"prompting": "none", "head": "cosine"}
    plain = build(prompting="none").constants().text_Cd
    torch.testing.assert_close(build(**common).constants().text_Cd, plain, rtol=0, atol=1e-6)
    mean_Cd = F.normalize(torch.as_tensor(features.sentences_CVd).mean(dim=1), dim=-1)
    found = build(**common, head_init="sentences").constants().text_Cd
    torch.testing.assert_close(found, mean_Cd, rtol=0, atol=1e-6)
    found = build(**common, head_init="class_mean").constants().text_Cd
    torch.testing.assert_close(found, torch.as_tensor(probe.image_Cd), rtol=0, atol=1e-6)
    scaled = build(**common, head_scale=25.0)
    image = torch.randn(2, 3, 32, 32)
    outputs = scaled.eval()(image)
    torch.testing.assert_close(outputs.base_BC, 25 * outputs.image_Bd @ plain.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("head_init", "without", "message"),
    [("sentences", "features", "needs the encoded knowledge base"), ("class_mean", "probe", "needs the probe")],
)
def test_a_start_without_its_source_is_refused(build: Any, head_init: str, without: str, message: str) -> None:
    settings = {"routing": False, "head": "cosine", "head_init": head_init}
    with pytest.raises(ArtifactError, match=f"tune.head_init = {head_init} {message}"):
        build(without=without, **settings)
    build(without=without, saved=True, **settings)  # the weights follow


@pytest.mark.parametrize("prompting", ADAPTERS)
def test_serving_computes_what_a_step_does(build: Any, prompting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged constants, as evaluation and a server hold them, against the adapters of a training step."""
    monkeypatch.undo()
    model = build(prompting=prompting, fusion="gla").eval()
    learn(model.tuner)
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        constants = model.constants()
        served = model(image, constants=constants)
    assert (constants.visual is not None) == (prompting in MERGED)
    step = model(image)
    for name in ("base_BC", "routed_BC", "fused_BC", "weights_BCV"):
        torch.testing.assert_close(getattr(served, name), getattr(step, name), rtol=1e-4, atol=1e-3)


def test_a_saved_model_is_served_from_its_weights_only(
    build: Any, encoded: Mapping[str, Path], small_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters, head and scale come back from the file; neither the probe nor the text tower is needed to load them."""
    monkeypatch.undo()
    settings = {"prompting": "lora", "head": "cosine", "head_init": "class_mean", "logit_scale": "trained"}
    model = build(**settings, fusion="gla", base_loss="ce").eval()
    learn(model)
    save_weights(tmp_path / "model.safetensors", model.learned_state())
    features = read_features(encoded["features"], model.class_names)
    config = ModelConfig(
        backbone=small_params.backbone,
        fingerprint=model.backbone.fingerprint,
        tune=model.params,
        class_names=model.class_names,
        train_images=(10,) * len(model.class_names),
        knowledge_digest=features.knowledge_digest,
        background="white",
        selected_epoch=0,
        tau=0.0,
        val_accuracy={"fused": 0.5},
    )
    write_json(tmp_path / "config.json", config)
    monkeypatch.setattr(Backbone, "embed_width", model.backbone.embed_width)
    monkeypatch.setattr(Backbone, "encode_text", lambda *_: pytest.fail("the text tower ran"))
    served = Classifier.load(tmp_path, encoded["features"])
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
    assert served.constants.visual is not None
    for name in ("base_BC", "routed_BC", "fused_BC"):
        torch.testing.assert_close(getattr(served(image), name), getattr(expected, name), rtol=1e-4, atol=1e-3)


def test_published_initial_weights(build: Any) -> None:
    """Tokens of std 0.02 at the first layer and 0.01 below it, without words; maps N(0, 0.02) without bias."""
    published = {name: value for name, value in PUBLISHED.items() if name != "loss"}
    model = build(prompting="maple", context_tokens=64, prompt_depth=4, **published)
    stds = [layer.std().item() for layer in model.tuner.text.layers]
    assert stds == pytest.approx([0.02, 0.01, 0.01, 0.01], rel=0.1)
    for layer in (*model.tuner.maps, model.align):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias.abs().max() == 0
    assert model.logit_scale.item() == pytest.approx(model.backbone.logit_scale.item())


@pytest.mark.parametrize("value", [4.0, 20.0])
def test_a_trained_scale_stays_at_most_100(build: Any, value: float) -> None:
    model = build(logit_scale="trained").train()
    with torch.no_grad():
        model.log_scale.fill_(value)
    assert model.logit_scale.item() == pytest.approx(min(math.exp(value), 100.0))
    assert torch.autograd.grad(model.logit_scale, model.log_scale)[0] > 0


def test_a_preset_fills_what_is_not_given_and_refuses_what_contradicts() -> None:
    tune = parse_params({"tune": {"preset": "published", "epochs": 5}}).tune
    assert {key: getattr(tune, key) for key in PUBLISHED if key != "loss"} == {
        key: value for key, value in PUBLISHED.items() if key != "loss"
    }
    assert (tune.epochs, tune.loss.semantic, tune.loss.ramp) == (5, 0.1, True)
    for given in ({"router": "paired_gate"}, {"loss": {"tau": 0.5}}, {"init": "default"}):
        (key,) = given
        with pytest.raises(ConfigError, match=f"preset = published sets {key} = .*, here it is ") as caught:
            parse_params({"tune": {"preset": "published"} | given})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"head": "cosine", "prompting": "coop"}, "prompting = coop learns words, head = cosine reads none"),
        ({"head_init": "sentences"}, "head_init = sentences needs head = cosine, it is text"),
        ({"head_scale": 25}, r"head_scale = 25.* needs head = cosine, it is text"),
        ({"prompting": "adapter"}, "prompting = 'adapter': must be one of"),
        ({"adapter_width": 0}, "adapter_width = 0: must be greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_are_one_line(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_params({"tune": tune})
    assert "\n" not in str(caught.value)
