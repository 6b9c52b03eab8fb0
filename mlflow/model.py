"""The model as MLflow serves it (models from code): MLflow runs this file when it logs and when it loads it.

Input   a column `image`: encoded images, as base64 text (REST) or as bytes (Python)
Params  top_k (how many classes to name), explain (which dimensions were consulted, and their sentences)
Output  one row per image: class, probability, top_k, routing (with explain), error

An image that cannot be read gets a text in `error` and nothing else; the other images get their answers.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

MAX_IMAGES_PER_REQUEST = 256
MAX_BYTES_PER_IMAGE = 20 * 2**20
MAX_PIXELS_PER_REQUEST = 128_000_000  # decoded one at a time; two of the largest pictures that are taken
BATCH_IMAGES = 64


class ServedModel(mlflow.pyfunc.PythonModel):
    """A tuned classifier behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load the model from its artifacts; nothing else is read, unless a tag names the backbone."""
        from mdpr.artifacts import read_knowledge, read_model_config
        from mdpr.model.inference import Classifier

        files = {name: Path(path) for name, path in context.artifacts.items()}
        config = read_model_config(files["model"])
        shipped = {key: str(files[key]) for key in ("architecture", "weights") if key in files}
        backbone = config.backbone.model_copy(update={**shipped, "device": "auto"})
        self.classifier = Classifier.load(files["model"], files["features"], backbone)
        self.knowledge = read_knowledge(files["knowledge"] / "knowledge.json", config.class_names)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answers in the order of the rows; refuses a request that is malformed as a whole."""
        from mdpr.params import MAX_TOP_K

        options = params or {}
        top_k, explain = int(options.get("top_k", 5)), bool(options.get("explain", False))
        images = _image_column(model_input)
        if not 1 <= top_k <= MAX_TOP_K:
            raise MlflowException.invalid_parameter_value(f"top_k = {top_k} must lie between 1 and {MAX_TOP_K}")
        columns = ["class", "probability", "top_k", *(["routing"] if explain else []), "error"]
        answers: list[dict[str, Any]] = [dict.fromkeys(columns) for _ in images]
        for rows, batch in self._batches(images, answers):
            for row, prediction in zip(rows, self.classifier.predict(batch, top_k=top_k), strict=True):
                answers[row].update(self._answer(prediction, explain))
        return pd.DataFrame(answers, columns=columns, dtype=object)  # object: a missing number is null, not NaN

    def _batches(self, images: list[Any], answers: list[dict[str, Any]]) -> Iterator[tuple[list[int], list[Any]]]:
        """Transformed pictures with their rows, a bounded number at a time; faults are noted in `answers`.

        One decoded picture is held at a time. Whatever goes wrong with a picture is its own row's error.
        """
        from mdpr.errors import DataError

        rows: list[int] = []
        batch: list[Any] = []
        pixels_left = MAX_PIXELS_PER_REQUEST
        for row, value in enumerate(images):
            try:
                data = _encoded_bytes(value)
                pixels_left -= _pixels(data)
                if pixels_left < 0:
                    raise DataError(f"the request holds more than {MAX_PIXELS_PER_REQUEST:,} pixels: send it in parts")
                batch.append(self.classifier.preprocess(data))
            except DataError as error:
                answers[row]["error"] = str(error)
            except Exception as error:  # a MemoryError, say: whatever one picture causes, the other rows get answers
                answers[row]["error"] = f"the image cannot be read ({type(error).__name__}): send it in another format"
            else:
                rows.append(row)
            if len(batch) == BATCH_IMAGES:
                yield rows, batch
                rows, batch = [], []
        if batch:
            yield rows, batch

    def _answer(self, prediction: Any, explain: bool) -> dict[str, Any]:
        answer = {
            "class": prediction.class_name,
            "probability": prediction.probability,
            "top_k": [{"class": name, "probability": value} for name, value in prediction.top_k],
        }
        if explain and prediction.routing is not None:
            sentences = self.knowledge.classes[prediction.class_index].sentences
            answer["routing"] = {
                dimension: {"weight": weight, "sentence": sentences[dimension]}
                for dimension, weight in prediction.routing.items()
            }
        return answer


def _image_column(model_input: pd.DataFrame) -> list[Any]:
    if "image" not in model_input.columns:
        raise MlflowException.invalid_parameter_value("the input needs a column image: base64 text or bytes")
    if len(model_input) > MAX_IMAGES_PER_REQUEST:
        raise MlflowException.invalid_parameter_value(
            f"{len(model_input)} images in one request: send at most {MAX_IMAGES_PER_REQUEST}"
        )
    return model_input["image"].tolist()


def _pixels(data: bytes) -> int:
    """Width times height by the header; 0 if there is none to read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:  # Pillow's readers raise whatever their parsers run into; decoding names it
        return 0


def _encoded_bytes(value: Any) -> bytes:
    """The image file in one cell; raises `DataError` where there is none."""
    from mdpr.errors import DataError

    if not isinstance(value, str | bytes):
        raise DataError("the image must be base64 text or bytes")
    if len(value) > MAX_BYTES_PER_IMAGE * (4 / 3 if isinstance(value, str) else 1):
        raise DataError(f"the image has more than {MAX_BYTES_PER_IMAGE:,} bytes: scale it down")
    if isinstance(value, bytes):
        return value
    if value.startswith("data:"):  # data:image/png;base64,...
        value = value.partition(",")[2]
    try:
        return base64.b64decode("".join(value.split()), validate=True)  # base64 programs wrap their lines
    except (binascii.Error, ValueError):  # ValueError: letters outside ASCII
        raise DataError("the image is not base64 text: encode the bytes of the image file") from None


mlflow.models.set_model(ServedModel())
