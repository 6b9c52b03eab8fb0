"""Every file format between two stages, as a pair of functions: write_X makes it, read_X checks and opens it.

    prepared/    train.parquet val.parquet test.parquet   Hugging Face image layout: image{bytes, path}, label
                 classes.json card.json pictures.parquet; of drawn pictures truth.parquet truth.json
                 (`mdpr.artifacts.truth`)
    probe/       probe.safetensors logistic.safetensors zero_shot.csv
    knowledge/   knowledge.json audit.json index.html
    features/    knowledge.safetensors audit.json
    model/       model.safetensors config.json history.csv seen.safetensors run.json
    evaluation/  metrics.json intervals.json biases.json predictions.parquet report.html figures/
                 per_class.csv confusion.csv reliability.csv routing.csv variants.csv seen.safetensors
                 reference.parquet lineage.json run.json
    registration.json promotion.json

Shapes: C classes, V dimensions, d joint embedding width. Arrays are NumPy here, float32 unless said otherwise;
pandas, pyarrow and safetensors load only if a function needs them.
"""

from mdpr.artifacts.evaluated import (
    TEST_DIGEST,
    Bias,
    Biases,
    Intervals,
    PictureSizes,
    RoutingCheck,
    read_biases,
    read_class_names,
    read_intervals,
    read_lineage,
    read_metrics,
    read_picture_sizes,
    read_predictions,
    read_routing_check,
    read_shots,
    read_table,
    write_predictions,
)
from mdpr.artifacts.formats import (
    Format,
    class_digest,
    escape_cell,
    read_json,
    sha256,
    unescape_cell,
    write_csv,
    write_json,
)
from mdpr.artifacts.image_tables import (
    ImageFile,
    ImageRecord,
    image_batches,
    image_digest,
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
    NO_HASH,
    PICTURES_FILE,
    SHOT_GROUPS,
    SPLITS,
    Alike,
    ClassInfo,
    ClassName,
    DataCard,
    Origin,
    Pictures,
    ShotGroup,
    Since,
    Split,
    StoreOrigin,
    Tally,
    Validation,
    data_digests,
    display_names,
    model_digests,
    read_card,
    read_classes,
    read_pictures,
    read_split,
    write_classes,
    write_pictures,
)
from mdpr.artifacts.tensors import (
    Features,
    LinearHead,
    Probe,
    check_digest,
    check_finite,
    read_baselines,
    read_features,
    read_logistic,
    read_probe,
    read_tensors,
    write_features,
    write_logistic,
    write_probe,
    write_tensors,
)
from mdpr.artifacts.tuned_model import (
    SEEN_FILE,
    Check,
    ModelConfig,
    Promotion,
    Registration,
    TrackedRun,
    read_history,
    read_model_config,
    read_run,
    read_seen,
    tuned_digest,
    write_model,
    write_seen,
)
