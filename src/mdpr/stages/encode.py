"""encode: sentences to features."""

from __future__ import annotations

from mdpr.config import BackboneParams, EncodeParams
from mdpr.stages.definition import In, Out


def encode(knowledge: In, features: Out, *, params: EncodeParams, backbone: BackboneParams) -> None:
    """Write P (C, V, d), m (C, d) and M (C, V), computed by the frozen text encoder."""
    from mdpr.artifacts import read_knowledge, sha256, write_features
    from mdpr.model.backbone import Backbone
    from mdpr.model.sentences import encode_knowledge

    path = knowledge / "knowledge.json"
    content = read_knowledge(path)
    frozen = Backbone.load(backbone)
    encoded = encode_knowledge(
        frozen, content, digest=sha256(path)[:16], normalize=params.normalize, batch_size=params.batch_size
    )
    features.mkdir()
    write_features(features, encoded, [item.name for item in content.classes])
