"""The zero-shot classifier: what the frozen model knows before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mdpr.model.backbone import Backbone


def class_features(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit-length class features (C, d): the mean over templates of each class's unit-length text features.

    A template holds `{}` where the name goes (Radford et al., ICML 2021, section 3.1.4: ensembling in feature space).
    """
    parts = [backbone.encode_text([template.replace("{}", name) for name in class_names]) for template in templates]
    return F.normalize(torch.stack(parts).mean(dim=0), dim=-1)
