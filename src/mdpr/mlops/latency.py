"""How long models take for one image: in turn, in one process, so that what else the machine does hits all alike.

Shapes: R requests, M models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

WARM_UP, REQUESTS = 5, 100
IMAGE_SIDE_PX = 224


def time_versions(addresses: Sequence[str]) -> np.ndarray:
    """Milliseconds for one image, (R, M), of the models at these addresses of the registry.

    Raises `MdprError` if one of them cannot be loaded.
    """
    from PIL import Image

    from mdpr.model.inference import Classifier

    image = Image.new("RGB", (IMAGE_SIDE_PX, IMAGE_SIDE_PX), "gray")
    models = [Classifier.load(address) for address in addresses]
    return time_in_turn([lambda model=model: model.predict(image) for model in models])  # type: ignore[misc]


def time_in_turn(
    requests: Sequence[Callable[[], object]], count: int = REQUESTS, clock_s: Callable[[], float] = time.perf_counter
) -> np.ndarray:
    """Milliseconds of `count` calls of each of `requests`, (R, M), after a few that do not count.

    A row holds calls that followed each other; every other row is made in the opposite order.
    """
    import numpy as np

    ms_RM = np.empty((WARM_UP + count, len(requests)))
    for row, ms_M in enumerate(ms_RM):
        for column in range(len(requests))[:: 1 if row % 2 else -1]:
            started_s = clock_s()
            requests[column]()
            ms_M[column] = 1000 * (clock_s() - started_s)
    return ms_RM[WARM_UP:]


def median_bound(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """The median and its one-sided lower confidence bound: the order statistic that the binomial law names."""
    import numpy as np
    from scipy.stats import binom

    below = int(binom.ppf(1 - confidence, len(values_R), 0.5))
    return float(np.median(values_R)), float(np.sort(values_R)[max(0, below - 1)])
