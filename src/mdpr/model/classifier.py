"""MDPR: a tuner and a head on a frozen CLIP, with the routing branch on or off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdpr.artifacts import Features, Probe
from mdpr.errors import ArtifactError
from mdpr.model.backbone import LOGIT_SCALE_MAX, Backbone
from mdpr.model.fusion import GeneralizedLogitAdjustment, adjust, build_fusion, log_shares
from mdpr.model.routing import ROUTERS, Router, RouterTable
from mdpr.model.towers import PromptedText, class_tokens, image_features, prompted_image_features
from mdpr.model.tuners import Prompts, build_tuner, linear_map
from mdpr.params import TuneParams

ALIGNMENT_WIDTH = 128  # of g, the map in which knowledge alignment compares (published code)


@dataclass(frozen=True)
class Constants:
    """Everything that no image changes: computed once per step while training, once for all batches in evaluation.

    text_Cd   unit-length class features of the base branch
    table     of the router, if there is one
    visual    the image tower with what it learned in its weights, if that can be merged; never while training
    """

    text_Cd: Tensor
    table: RouterTable | None
    visual: nn.Module | None = None


@dataclass(frozen=True)
class Outputs:
    """One batch. Logits are scaled by s; routed parts are None if routing is off.

    image_Bd     unit-length image features
    base_BC      logits of the tuner
    fused_BC     log-probabilities, the model's answer
    routed_BC    logits of the routing branch
    weights_BCV  routing weights: how much each sentence counted
    true_Bd      routed text of the true class (if labels were given)
    expert_BC    logits of the debiased zero-shot expert (gla, not while training)
    """

    image_Bd: Tensor
    base_BC: Tensor
    fused_BC: Tensor
    routed_BC: Tensor | None = None
    weights_BCV: Tensor | None = None
    true_Bd: Tensor | None = None
    expert_BC: Tensor | None = None


class MDPR(nn.Module):
    """Base branch (any tuner, any head) and routing branch over the same image features.

    Arguments: the frozen backbone; class names in order of index; the parameters of `tune`; the encoded knowledge
    base (needed if routing is on, and to start from sentences); the probe (needed to train with tune.fusion = gla, and
    to start from class means); `saved`: the learned weights will be loaded, so nothing is computed to start from.
    Raises `ArtifactError` if features or probe are missing or belong to another backbone.
    Source: Jia et al., Findings of EMNLP 2025, section 3.
    """

    sentences_CVd: Tensor
    plain_Cd: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        params: TuneParams,
        features: Features | None = None,
        probe: Probe | None = None,
        *,
        saved: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_names = tuple(class_names)
        self.params = params
        self.tuner = build_tuner(backbone, params, len(class_names))
        self.prompted_text: PromptedText | None = None
        self.head_Cd: nn.Parameter | None = None
        if params.head == "cosine":
            start_Cd = torch.zeros(len(class_names), backbone.embed_width)
            self.head_Cd = nn.Parameter(start_Cd if saved else self._head_start(features, probe))
        elif self.tuner.text is not None:
            tokens_CT = class_tokens(
                backbone.tokenize, class_names, params.context_tokens, backbone.text.context_length
            )
            self.prompted_text = PromptedText(backbone.text, tokens_CT, params.context_tokens)
        else:  # no learned context: class features are constants
            self.register_buffer("plain_Cd", self._plain_text(), persistent=False)
        self.router: Router | None = None
        self.align: nn.Linear | None = None
        if params.routing:
            if features is None:
                raise ArtifactError("tune.routing = true needs the encoded knowledge base: run describe and encode")
            backbone.check_fingerprint("features", features.fingerprint)
            sentences_CVd = torch.as_tensor(features.sentences_CVd, dtype=torch.float32)
            self.register_buffer("sentences_CVd", sentences_CVd, persistent=False)
            dimensions, width = sentences_CVd.shape[1:]
            self.router = ROUTERS[params.router](params, width, dimensions)
            self.align = linear_map(width, ALIGNMENT_WIDTH, params.init)
        self.log_scale: nn.Parameter | None = None
        if params.logit_scale == "trained":
            self.log_scale = nn.Parameter(backbone.logit_scale.detach().log())
        self.fusion = build_fusion(params.fusion, probe, len(class_names), backbone, params.base_loss)
        self._tau, self._log_share_C = 0.0, torch.zeros(len(class_names))
        # Held as plain functions, compiled or not, so the learned weights keep their names.
        self._image_features, self._text_features = prompted_image_features, PromptedText.forward
        if params.compile:
            self._image_features = torch.compile(prompted_image_features)
            self._text_features = torch.compile(PromptedText.forward)
        self.to(backbone.device)

    def learned_state(self) -> dict[str, Tensor]:
        """The learned parameters and the fusion's buffers, by name, without the backbone's weights."""
        learned = {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}
        return learned | {f"fusion.{name}": value for name, value in self.fusion.named_buffers()}

    def load_learned_state(self, state: dict[str, Tensor], source: object = "the checkpoint") -> None:
        """Copy learned parameters in; raises `ArtifactError` that names the first one of `source` that does not fit."""
        own = self.learned_state()
        for name in sorted(own.keys() | state.keys()):
            if _kind(own, name) != _kind(state, name):
                raise ArtifactError(
                    f"{source}: {name} is {_kind(state, name)}, expected {_kind(own, name)}: run tune again"
                )
            own[name].copy_(state[name])

    def constants(self, prompts: Prompts | None = None) -> Constants:
        """Class features and the router's table for the present weights."""
        prompts = prompts or self.tuner()
        if self.head_Cd is not None:
            text_Cd = F.normalize(self.head_Cd, dim=-1)
        elif self.prompted_text is None:
            text_Cd = self.plain_Cd
        else:
            text_Cd = self._text_features(self.prompted_text, prompts.text, self._checkpoints())
        table = self.router.table(self.sentences_CVd) if self.router is not None else None
        return Constants(
            text_Cd, table, None if torch.is_grad_enabled() else self.tuner.merged(self.backbone.clip.visual)
        )

    def forward(self, image_B3HW: Tensor, label_B: Tensor | None = None, constants: Constants | None = None) -> Outputs:
        """Both branches of a batch. `label_B` adds what the losses need; `constants` are computed if not given."""
        prompts = self.tuner()
        constants = constants or self.constants(prompts)
        if constants.visual is not None:
            image_Bd = image_features(constants.visual, image_B3HW)
        elif prompts.updates:
            image_Bd = image_features(self.backbone.clip.visual, image_B3HW, prompts.updates)
        elif prompts.change_images:
            image_Bd = self._image_features(
                self.backbone.visual, image_B3HW, prompts.visual, self._checkpoints(), prompts.adapters
            )
        else:
            image_Bd = self.backbone.encode_image(image_B3HW)
        scale = self.logit_scale
        with torch.autocast(image_Bd.device.type, enabled=False):  # s is up to 100, half precision would round logits
            base_BC = self.base_scale * image_Bd @ constants.text_Cd.T
        expert_BC = None
        if isinstance(self.fusion, GeneralizedLogitAdjustment) and not self.training:
            frozen_Bd = self.backbone.encode_image(image_B3HW) if prompts.change_images else image_Bd
            expert_BC = self.fusion.expert(frozen_Bd, self.backbone.logit_scale)
        if self.router is None:
            return Outputs(image_Bd, base_BC, self.answer(base_BC, None, expert_BC), expert_BC=expert_BC)
        assert constants.table is not None
        routed = self.router(image_Bd, constants.table, label_B)
        routed_BC = scale * routed.similarity_BC
        # Detached: the fused answer trains only its own weight, never the branches.
        fused_BC = self.answer(base_BC.detach(), routed_BC.detach(), expert_BC)
        return Outputs(image_Bd, base_BC, fused_BC, routed_BC, routed.weights_BCV, routed.true_Bd, expert_BC)

    def adjust_by(self, tau: float, train_images: Sequence[int]) -> None:
        """From now on, adjust every answer by tau log(share of the training images) (`tune.post_hoc`)."""
        self._tau, self._log_share_C = tau, log_shares(train_images).to(self.backbone.device)

    def adjusted(self, log_probability_BC: Tensor) -> Tensor:
        """Log-probabilities with the adjustment of `adjust_by`; as they are without one."""
        return adjust(log_probability_BC, self._tau, self._log_share_C) if self._tau else log_probability_BC

    def answer(self, base_BC: Tensor, routed_BC: Tensor | None, expert_BC: Tensor | None = None) -> Tensor:
        """The model's answer to a batch from its branches: fused, then adjusted, as log-probabilities (B, C)."""
        return self.adjusted(self.fusion(base_BC, routed_BC, expert_BC))

    @property
    def answers_as_base(self) -> bool:
        """Whether the answer is base's own: nothing is fused with it and nothing adjusted."""
        return self.router is None and not self._tau and not isinstance(self.fusion, GeneralizedLogitAdjustment)

    @property
    def logit_scale(self) -> Tensor:
        """s of both branches: CLIP's own, or the trained one, at most 100."""
        if self.log_scale is None:
            return self.backbone.logit_scale
        if self.training:  # after a step that went beyond, back to the bound: at it, gradients still lead down
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(LOGIT_SCALE_MAX))
        return self.log_scale.exp()

    @property
    def base_scale(self) -> Tensor:
        """The factor of the base branch's cosines: `logit_scale`, or `tune.head_scale`."""
        own = self.logit_scale
        return own if self.params.head_scale is None else torch.full_like(own, self.params.head_scale)

    def _head_start(self, features: Features | None, probe: Probe | None) -> Tensor:
        """Unit-length rows (C, d) that `tune.head_init` names."""
        start = self.params.head_init
        if start == "names":
            return self._plain_text()
        source = features if start == "sentences" else probe
        if source is None:
            missing = "the encoded knowledge base: run describe and encode" if start == "sentences" else "the probe"
            raise ArtifactError(f"tune.head_init = {start} needs {missing}")
        self.backbone.check_fingerprint("features" if source is features else "probe", source.fingerprint)
        rows_Cd = source.summary_Cd if isinstance(source, Features) else source.image_Cd
        return F.normalize(torch.as_tensor(rows_Cd, dtype=torch.float32, device=self.backbone.device), dim=-1)

    def _plain_text(self) -> Tensor:
        """Unit-length features (C, d) of the class names in a template."""
        template = self.params.context_init or "a photo of a"
        return self.backbone.encode_text([f"{template} {name}." for name in self.class_names])

    def _checkpoints(self) -> bool:
        """Whether the towers recompute their blocks in the backward pass of this call."""
        return self.params.checkpoint_blocks and torch.is_grad_enabled()


def _kind(state: dict[str, Tensor], name: str) -> str:
    """Shape and dtype of a tensor, as text."""
    return f"{str(state[name].dtype).removeprefix('torch.')} {tuple(state[name].shape)}" if name in state else "missing"
