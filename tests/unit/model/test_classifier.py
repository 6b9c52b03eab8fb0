"""The options of the whole model: each computes the same function, or says why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdpr.artifacts import read_classes, read_features, read_probe
from mdpr.errors import ConfigError
from mdpr.model import classifier
from mdpr.model.backbone import Backbone
from mdpr.model.classifier import MDPR
from mdpr.model.routing import ROUTERS
from mdpr.params import Params, parse_params


@pytest.fixture
def build(backbone: Backbone, encoded: Mapping[str, Path], small_params: Params) -> Any:
    tune = small_params.tune
    names = [item.name for item in read_classes(encoded["prepared"])]
    features, probe = read_features(encoded["features"], names), read_probe(encoded["probe"], names)

    def build(**changes: Any) -> MDPR:
        torch.manual_seed(0)
        return MDPR(backbone, names, tune.model_copy(update={"router_dropout": 0.0, **changes}), features, probe)

    return build


def image(model: MDPR) -> Tensor:
    size = model.backbone.image_size_px
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def gradients(model: MDPR) -> list[Tensor]:
    outputs = model(image(model), torch.tensor([0, 1, 2]))
    loss = outputs.base_BC.square().mean() + outputs.routed_BC.square().mean() + outputs.true_Bd.sum()
    learned = [value for value in model.tuner.parameters() if value.requires_grad]
    return list(torch.autograd.grad(loss, learned))


def test_checkpointed_towers_give_the_same_gradients(build: Any) -> None:
    for plain, saved in zip(gradients(build().train()), gradients(build(checkpoint_blocks=True).train()), strict=True):
        torch.testing.assert_close(plain, saved, rtol=0, atol=1e-6)


def test_compiled_towers_give_the_same_gradients_and_keep_the_weights_names(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as one graph, forward and backward; the backend that writes C++ takes minutes and changes no numbers."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    plain, compiled = build(prompt_depth=2).train(), build(prompt_depth=2, compile=True).train()
    assert set(plain.learned_state()) == set(compiled.learned_state())
    for left, right in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_context_for_each_class_starts_as_the_shared_one_and_learns_apart(build: Any) -> None:
    """Same initial words at depth one: same features; the gradient of a class's loss is its own context's alone."""
    words = {"prompting": "coop", "prompt_depth": 1, "context_tokens": 4, "context_init": "a photo of a"}
    shared, own = build(**words), build(**words, context_scope="class")
    torch.testing.assert_close(shared.constants().text_Cd, own.constants().text_Cd, rtol=0, atol=1e-5)
    (context_Cnw,) = own.tuner.text()
    (gradient_Cnw,) = torch.autograd.grad(own.constants().text_Cd[1].sum(), context_Cnw)
    touched = gradient_Cnw.abs().amax(dim=(1, 2)) > 0
    assert touched.tolist() == [index == 1 for index in range(len(touched))]


@pytest.mark.parametrize("router", ROUTERS)
def test_serving_computes_what_validation_does(build: Any, router: str) -> None:
    """Constants made once and without gradients, as a server holds them, against those of a step."""
    model = build(router=router).eval()
    with torch.no_grad():
        for value in model.router.parameters():
            value.add_(0.1 * torch.randn_like(value))
        constants = model.constants()
        served = model(image(model), constants=constants)
    step = model(image(model))
    for name in ("base_BC", "routed_BC", "fused_BC", "weights_BCV"):
        torch.testing.assert_close(getattr(served, name), getattr(step, name), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prompting", ["none", "vpt", "maple"])
def test_a_context_for_each_class_needs_a_tuner_of_independent_text(prompting: str) -> None:
    with pytest.raises(ConfigError, match=f"context_scope = class needs prompting = coop or ivlp, not {prompting}"):
        parse_params({"tune": {"context_scope": "class", "prompting": prompting}})


def test_training_with_gla_runs_the_image_tower_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(fusion="gla")
    passes: list[int] = []
    visual = classifier.prompted_image_features
    monkeypatch.setattr(model, "_image_features", lambda *args: (passes.append(1), visual(*args))[1])
    monkeypatch.setattr(
        model.backbone, "encode_image", lambda x: (passes.append(2), visual(model.backbone.visual, x, ()))[1]
    )
    model.train()(image(model), torch.tensor([0, 1, 2]))
    assert passes == [1]
    model.eval()(image(model))
    assert passes == [1, 1, 2]
