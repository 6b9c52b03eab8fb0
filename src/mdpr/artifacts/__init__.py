"""Every file format between two stages, as a pair of functions: write_X makes it, read_X checks and opens it.

    prepared/    train.parquet val.parquet test.parquet   Hugging Face image layout: image{bytes, path}, label
                 classes.json card.json
    probe/       probe.safetensors zero_shot.csv
    knowledge/   knowledge.json audit.json
    features/    knowledge.safetensors
    model/       model.safetensors config.json history.csv run.json
    evaluation/  metrics.json intervals.json per_class.csv confusion.csv predictions.parquet report.html
                 run.json
    registration.json promotion.json

Shapes: C classes, V dimensions, d joint embedding width. Arrays are NumPy here, float32 unless said otherwise;
pandas, pyarrow and safetensors load only where a function needs them.
"""

from mdpr.artifacts.evaluation import (
    Intervals,
    read_intervals,
    read_metrics,
    read_predictions,
    read_shots,
    write_predictions,
)
from mdpr.artifacts.formats import Format, class_digest, read_json, sha256, write_json
from mdpr.artifacts.knowledge import ClassKnowledge, Features, Knowledge, read_features, read_knowledge, write_features
from mdpr.artifacts.model import ModelConfig, TrackedRun, read_history, read_model_config, read_run
from mdpr.artifacts.prepared import (
    ROW_GROUP_IMAGES,
    SHOT_GROUPS,
    SPLITS,
    ClassInfo,
    DataCard,
    ImageRecord,
    ShotGroup,
    Split,
    Validation,
    open_images,
    read_card,
    read_classes,
    read_images,
    write_classes,
    write_image_records,
    write_images,
)
from mdpr.artifacts.probe import Probe, read_probe, write_probe
from mdpr.artifacts.release import Check, Promotion, Registration, read_promotion, read_registration

__all__ = [
    "ROW_GROUP_IMAGES",
    "SHOT_GROUPS",
    "SPLITS",
    "Check",
    "ClassInfo",
    "ClassKnowledge",
    "DataCard",
    "Features",
    "Format",
    "ImageRecord",
    "Intervals",
    "Knowledge",
    "ModelConfig",
    "Probe",
    "Promotion",
    "Registration",
    "ShotGroup",
    "Split",
    "TrackedRun",
    "Validation",
    "class_digest",
    "open_images",
    "read_card",
    "read_classes",
    "read_features",
    "read_history",
    "read_images",
    "read_intervals",
    "read_json",
    "read_knowledge",
    "read_metrics",
    "read_model_config",
    "read_predictions",
    "read_probe",
    "read_promotion",
    "read_registration",
    "read_run",
    "read_shots",
    "sha256",
    "write_classes",
    "write_features",
    "write_image_records",
    "write_images",
    "write_json",
    "write_predictions",
    "write_probe",
]
