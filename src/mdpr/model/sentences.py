"""The knowledge base in the backbone's joint space."""

from __future__ import annotations

import torch.nn.functional as F

from mdpr.artifacts import Features, Knowledge
from mdpr.model.backbone import Backbone


def encode_knowledge(
    backbone: Backbone, knowledge: Knowledge, *, digest: str, normalize: bool, batch_size: int
) -> Features:
    """P (C, V, d), m (C, d) and M (C, V) of a complete knowledge base.

    `normalize` gives P unit-length rows before m is taken as their mean; the published code takes both as they leave
    the encoder. M is a cosine either way. Raises `BackboneError` for a sentence longer than the text tower.
    Source: Jia et al., Findings of EMNLP 2025, section 3.
    """
    sentences_CV = knowledge.sentences_CV()
    flat = [sentence for sentences in sentences_CV for sentence in sentences]
    sentences_CVd = backbone.encode_text(flat, batch_size, normalize).unflatten(0, (len(sentences_CV), -1))
    names_Cd = backbone.encode_text([item.name for item in knowledge.classes], batch_size)
    prior_CV = (F.normalize(sentences_CVd, dim=-1) @ names_Cd[:, :, None]).squeeze(-1)
    return Features(
        sentences_CVd=sentences_CVd.cpu().numpy(),
        summary_Cd=sentences_CVd.mean(dim=1).cpu().numpy(),
        prior_CV=prior_CV.cpu().numpy(),
        fingerprint=backbone.fingerprint,
        knowledge_digest=digest,
    )
