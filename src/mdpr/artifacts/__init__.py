"""Every file format between two stages, as a pair of functions: write_X makes it, read_X checks and opens it.

    prepared/    train.parquet val.parquet test.parquet   Hugging Face image layout: image{bytes, path}, label
                 classes.json card.json; of drawn pictures truth.parquet truth.json (`mdpr.artifacts.truth`)
    probe/       probe.safetensors zero_shot.csv
    knowledge/   knowledge.json audit.json index.html
    features/    knowledge.safetensors audit.json
    model/       model.safetensors config.json history.csv seen.safetensors run.json
    evaluation/  metrics.json intervals.json biases.json predictions.parquet report.html figures/
                 per_class.csv confusion.csv reliability.csv routing.csv variants.csv seen.safetensors
                 reference.parquet lineage.json run.json
    registration.json promotion.json

Shapes: C classes, V dimensions, d joint embedding width. Arrays are NumPy here, float32 unless said otherwise;
pandas, pyarrow and safetensors load only where a function needs them.
"""

from mdpr.artifacts.evaluated import (
    TEST_DIGEST,
    Bias,
    Biases,
    Intervals,
    read_biases,
    read_class_names,
    read_intervals,
    read_lineage,
    read_metrics,
    read_predictions,
    read_shots,
    read_table,
    write_predictions,
)
from mdpr.artifacts.formats import Format, class_digest, read_json, sha256, write_csv, write_json
from mdpr.artifacts.image_tables import (
    ImageFile,
    ImageRecord,
    image_batches,
    image_digests,
    open_images,
    read_images,
    write_image_records,
    write_images,
)
from mdpr.artifacts.knowledge_base import (
    ClassKnowledge,
    Knowledge,
    parse_knowledge,
    read_knowledge,
    read_unfinished,
    who_wrote,
)
from mdpr.artifacts.prepared import (
    SHOT_GROUPS,
    SPLITS,
    ClassInfo,
    DataCard,
    Origin,
    ShotGroup,
    Split,
    Tally,
    Validation,
    data_digests,
    display_names,
    model_digests,
    read_card,
    read_classes,
    read_split,
    write_classes,
)
from mdpr.artifacts.released import (
    Check,
    Promotion,
    Registration,
    TrackedRun,
    read_promotion,
    read_registration,
    read_run,
)
from mdpr.artifacts.tensors import (
    Features,
    Probe,
    check_digest,
    check_finite,
    read_features,
    read_probe,
    read_tensors,
    write_features,
    write_probe,
    write_tensors,
)
from mdpr.artifacts.tuned_model import (
    SEEN_FILE,
    ModelConfig,
    read_history,
    read_model_config,
    read_seen,
    tuned_digest,
    write_model,
    write_seen,
)

__all__ = [
    "SEEN_FILE",
    "SHOT_GROUPS",
    "SPLITS",
    "TEST_DIGEST",
    "Bias",
    "Biases",
    "Check",
    "ClassInfo",
    "ClassKnowledge",
    "DataCard",
    "Features",
    "Format",
    "ImageFile",
    "ImageRecord",
    "Intervals",
    "Knowledge",
    "ModelConfig",
    "Origin",
    "Probe",
    "Promotion",
    "Registration",
    "ShotGroup",
    "Split",
    "Tally",
    "TrackedRun",
    "Validation",
    "check_digest",
    "check_finite",
    "class_digest",
    "data_digests",
    "display_names",
    "image_batches",
    "image_digests",
    "model_digests",
    "open_images",
    "parse_knowledge",
    "read_biases",
    "read_card",
    "read_class_names",
    "read_classes",
    "read_features",
    "read_history",
    "read_images",
    "read_intervals",
    "read_json",
    "read_knowledge",
    "read_lineage",
    "read_metrics",
    "read_model_config",
    "read_predictions",
    "read_probe",
    "read_promotion",
    "read_registration",
    "read_run",
    "read_seen",
    "read_shots",
    "read_split",
    "read_table",
    "read_tensors",
    "read_unfinished",
    "sha256",
    "tuned_digest",
    "who_wrote",
    "write_classes",
    "write_csv",
    "write_features",
    "write_image_records",
    "write_images",
    "write_json",
    "write_model",
    "write_predictions",
    "write_probe",
    "write_seen",
    "write_tensors",
]
