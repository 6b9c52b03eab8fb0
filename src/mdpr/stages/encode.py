"""encode: sentences to features."""

from __future__ import annotations

from mdpr.params import BackboneParams, EncodeParams
from mdpr.stages.stage import In, Out


def encode(knowledge: In, features: Out, *, params: EncodeParams, backbone: BackboneParams) -> str:
    """Write P (C, V, d), m (C, d) and M (C, V), computed by the frozen text encoder, and audit.json: the sentences that
    lie nearer to another class than to their own."""
    from dataclasses import asdict

    from mdpr.artifacts import read_knowledge, sha256, write_features, write_json
    from mdpr.knowledge.audit import not_discriminating, sentence_margins
    from mdpr.model.backbone import Backbone, encode_knowledge

    path = knowledge / "knowledge.json"
    content = read_knowledge(path)
    frozen = Backbone.load(backbone)
    encoded = encode_knowledge(
        frozen, content, digest=sha256(path)[:16], normalize=params.normalize, batch_size=params.batch_size
    )
    names = [item.name for item in content.classes]
    names_Cd = frozen.encode_text(names, params.batch_size).cpu().numpy()
    margin_CV, nearest_CV = sentence_margins(encoded.sentences_CVd, names_Cd, names)
    findings = [asdict(finding) for finding in not_discriminating(content, margin_CV, nearest_CV)]

    features.mkdir()
    write_features(features, encoded, names)
    write_json(features / "audit.json", {"findings": findings, "margin_CV": margin_CV.astype(float).round(4).tolist()})
    classes, dimensions, width = encoded.sentences_CVd.shape
    near = f"{len(findings):,} sentences nearer to another class"
    return f"encoded: {classes:,} classes x {dimensions} sentences as vectors of {width}, {near}"
