"""Prompted towers against the stock open_clip models, on towers of every kind, in float64."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
from benchmarks.published import image_features
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor

from mdpr.model import towers
from mdpr.model.towers import PromptedText, class_tokens, prompted_image_features

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
NAMES = ["boot", "ankle boot", "t-shirt with long sleeves", "bag"]

# name -> (vision settings, text settings, quick GELU, how the text tower is expected to be computed)
TOWERS = {
    "plain": ({}, {}, False, "prefix"),
    "quick_gelu": ({}, {}, True, "prefix"),
    "layer_scale": ({"ls_init_value": 0.5}, {"ls_init_value": 0.5}, False, "prefix"),
    "average_pool": (
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {},
        False,
        "prefix",
    ),
    "eos_pool": ({}, {"pool_type": "eos", "eos_id": 49407}, False, "prefix"),
    "projection_bias": ({}, {"proj_bias": True}, False, "prefix"),
    "no_projection": ({}, {"proj_type": "none"}, False, "prefix"),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}, False, "crop"),
    "coca": ({"attentional_pool": True}, {"embed_cls": True, "pad_id": 0}, False, "full"),
    "bidirectional": ({}, {"no_causal_mask": True, "pool_type": "last"}, False, "full"),
}


def build(name: str) -> CustomTextCLIP:
    vision, text, quick_gelu, _ = TOWERS[name]
    torch.manual_seed(0)
    model = CustomTextCLIP(32, CLIPVisionCfg(**VISION, **vision), CLIPTextCfg(**TEXT, **text), quick_gelu)
    with torch.no_grad():  # fresh towers have zero biases and small weights: larger ones test every term
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval().requires_grad_(False)


def tokenize(texts: list[str]) -> Tensor:
    return open_clip.SimpleTokenizer(context_length=TEXT["context_length"])(texts)


@pytest.fixture(autouse=True)
def _float64_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features leave the towers in float32 at least; identities are tested in float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.parametrize("name", TOWERS)
def test_without_prompts_the_towers_are_the_stock_ones(name: str) -> None:
    model = build(name)
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    stock = F.normalize(model.encode_image(image), dim=-1)
    torch.testing.assert_close(prompted_image_features(model.visual, image, ()), stock, rtol=0, atol=1e-12)
    tokens = tokenize([f"X X {item}." for item in NAMES])
    ours = PromptedText(model.text, tokens, context_tokens=2)(())
    torch.testing.assert_close(ours, F.normalize(model.encode_text(tokens), dim=-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shared_context_equals_the_full_tower_forward_and_backward(name: str, depth: int) -> None:
    model = build(name)
    tokens = class_tokens(tokenize, NAMES, 3, TEXT["context_length"])
    prompted = PromptedText(model.text, tokens, context_tokens=3)
    context = [torch.randn(3, 32, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
    assert prompted.path_for(context) == TOWERS[name][3]

    full = PromptedText(model.text, tokens, context_tokens=3)
    full.crops = full.shares_prefix = False
    full.tokens_CT = tokens
    assert full.path_for(context) == "full"

    ours, reference = prompted(context), full(context)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    mix = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * mix).sum(), context)
    for our_gradient, gradient in zip(
        our_gradients, torch.autograd.grad((reference * mix).sum(), context), strict=True
    ):
        torch.testing.assert_close(our_gradient, gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("name", ["plain", "qk_norm", "coca"])
@pytest.mark.parametrize("scope", ["shared", "class"])
def test_blocks_of_classes_change_neither_features_nor_gradients(
    name: str, scope: str, checkpoint_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompted = PromptedText(build(name).text, class_tokens(tokenize, NAMES, 3, TEXT["context_length"]), 3)
    shape = (3, 32) if scope == "shared" else (len(NAMES), 3, 32)
    context = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    whole = prompted(context)
    mix = torch.randn_like(whole)
    gradients = torch.autograd.grad((whole * mix).sum(), context)
    monkeypatch.setattr(towers, "WHOLE_CLASSES", 3)
    monkeypatch.setattr(towers, "BLOCK_CLASSES", 3)
    blocks = prompted(context, checkpoint_blocks)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)
    for ours, gradient in zip(torch.autograd.grad((blocks * mix).sum(), context), gradients, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_visual_prompts_equal_every_token_through_every_block_forward_and_backward(name: str, depth: int) -> None:
    visual = build(name).visual
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    prompts = [torch.randn(2, 32, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
    ours, plain = prompted_image_features(visual, image, prompts), image_features(visual, image, prompts)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    mix = torch.randn_like(ours)
    for our_gradient, gradient in zip(
        torch.autograd.grad((ours * mix).sum(), prompts), torch.autograd.grad((plain * mix).sum(), prompts), strict=True
    ):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(our_gradient, gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["plain", "qk_norm", "coca"])
def test_context_equal_to_word_embeddings_gives_the_words_features(name: str) -> None:
    """The full path itself: tokens whose learned context is the embedding of real words are those words."""
    model = build(name)
    words = "a photo of"
    ids = tokenize([words])[0, 1:4]
    tokens = class_tokens(tokenize, NAMES, 3, TEXT["context_length"])
    context = [model.text.token_embedding(ids)]
    stock = F.normalize(model.encode_text(tokenize([f"{words} {item}." for item in NAMES])), dim=-1)
    torch.testing.assert_close(PromptedText(model.text, tokens, 3)(context), stock, rtol=0, atol=1e-12)


def test_a_context_for_each_class_equals_classes_run_one_by_one() -> None:
    model = build("plain")
    tokens = class_tokens(tokenize, NAMES, 3, TEXT["context_length"])
    context_Cnw = torch.randn(len(NAMES), 3, 32, dtype=torch.float64)
    prompted = PromptedText(model.text, tokens, 3)
    assert prompted.path_for([context_Cnw]) == "crop"
    alone = [PromptedText(model.text, tokens[i : i + 1], 3)([context_Cnw[i]]) for i in range(len(NAMES))]
    torch.testing.assert_close(prompted([context_Cnw]), torch.cat(alone), rtol=0, atol=1e-12)


def test_checkpointed_blocks_change_neither_features_nor_gradients() -> None:
    model = build("plain")
    prompted = PromptedText(model.text, class_tokens(tokenize, NAMES, 2, TEXT["context_length"]), 2)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for run in (
        lambda context, save: prompted(context, checkpoint_blocks=save),
        lambda context, save: prompted_image_features(model.visual, image, context, checkpoint_blocks=save),
    ):
        context = [torch.randn(2, 32, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        plain, saved = run(context, False), run(context, True)
        torch.testing.assert_close(plain, saved, rtol=0, atol=0)
        for left, right in zip(
            torch.autograd.grad(plain.sum(), context), torch.autograd.grad(saved.sum(), context), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-13)


def test_visual_prompts_change_features() -> None:
    visual = build("plain").visual
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = prompted_image_features(visual, image, [torch.randn(2, 32, dtype=torch.float64)])
    assert (features - prompted_image_features(visual, image, ())).abs().max() > 1e-3


def test_names_run_without_padding_and_only_what_is_pooled_leaves_the_last_blocks() -> None:
    """What the MLPs are given, by block: the savings themselves, which equal features do not show."""
    model = build("plain")
    tokens = class_tokens(tokenize, NAMES, 3, TEXT["context_length"])
    seen: dict[str, list[tuple[int, ...]]] = {"text": [], "visual": []}
    for name, tower in (("text", model.text), ("visual", model.visual)):
        for block in tower.transformer.resblocks:
            block.mlp.register_forward_hook(lambda _, given, __, name=name: seen[name].append(tuple(given[0].shape)))
    prompts = [torch.randn(3, 32, dtype=torch.float64) for _ in range(2)]
    PromptedText(model.text, tokens, context_tokens=3)(prompts)
    names = sum(len(open_clip.SimpleTokenizer().encode(f"{name}.")) + 1 for name in NAMES)
    assert seen["text"] == [(4, 32)] * 2 + [(names, 32)] * 2 + [(len(NAMES), 32)]
    prompted_image_features(model.visual, torch.randn(2, 3, 32, 32, dtype=torch.float64), prompts)
    assert seen["visual"] == [(2, 17, 32), (2, 17 + 3, 32), (2, 1, 32)]
