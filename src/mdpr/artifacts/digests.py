"""What a result comes from, by digest: the same names as tags of MLflow and as metadata of Kubeflow."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mdpr.artifacts.prepared import read_card


def data_digests(prepared: Path) -> dict[str, str]:
    """Of a prepared data set: one digest of its splits, and where its source lies in DVC, if it came from there."""
    card = read_card(prepared)
    splits = "".join(f"{name}\0{digest}\n" for name, digest in sorted(card.sha256.items()))
    origin = card.origin.model_dump() if card.origin else {}
    return {
        "mdpr.data_digest": hashlib.sha256(splits.encode()).hexdigest(),
        **{f"mdpr.data_{key}": str(value) for key, value in origin.items() if value},
    }


def model_digests(prepared: Path, *, knowledge: str, backbone: str) -> dict[str, str]:
    """Of a model: its data, the digest of its knowledge base, the fingerprint of its backbone, mdpr's version."""
    from mdpr import __version__

    return {
        "mdpr.version": __version__,
        **data_digests(prepared),
        "mdpr.knowledge_digest": knowledge,
        "mdpr.backbone": backbone,
    }
