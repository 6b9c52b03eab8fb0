"""How far stated probabilities are from frequencies: reliability, ECE, and the same for every class.

Bins are of equal width, (a, b], the first one closed. Shapes: N images, B images in a batch, C classes, K bins.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

CALIBRATION_BINS = 15


def bin_of(probability: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """The bin of each probability, 0 to bins - 1."""
    return np.clip(np.digitize(probability, np.linspace(0, 1, bins + 1), right=True) - 1, 0, bins - 1)


def expected_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """ECE of the best class (Guo et al., ICML 2017, equation 3)."""
    gap_N = correct_N - confidence_N.astype(np.float64)
    gap_K = np.bincount(bin_of(confidence_N, bins), weights=gap_N, minlength=bins)
    return float(np.abs(gap_K).sum() / len(confidence_N))


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = CALIBRATION_BINS) -> pd.DataFrame:
    """One row a bin that has an image: low, high, images, mean confidence, accuracy."""
    bin_N = bin_of(confidence_N, bins)
    image_K = np.bincount(bin_N, minlength=bins)
    used = np.flatnonzero(image_K)
    mean_K = {
        "confidence": np.bincount(bin_N, weights=confidence_N.astype(np.float64), minlength=bins),
        "accuracy": np.bincount(bin_N, weights=correct_N.astype(np.float64), minlength=bins),
    }
    return pd.DataFrame(
        {"low": used / bins, "high": (used + 1) / bins, "images": image_K[used]}
        | {name: sum_K[used] / image_K[used] for name, sum_K in mean_K.items()}
    )


class ClasswiseCalibration:
    """Classwise ECE, batch by batch: the mean over classes of the ECE of "is it class c", each with all images.

    It needs every class's probability of every image, which no table keeps; sums a class and bin are enough.
    Source: Kull et al., NeurIPS 2019, equation 3 (also: static calibration error, Nixon et al., 2019).
    """

    def __init__(self, bins: int = CALIBRATION_BINS) -> None:
        self.bins = bins
        self.images = 0
        self._gap_CK: Tensor | None = None

    def add(self, label_B: Tensor, log_probability_BC: Tensor) -> None:
        probability_BC = log_probability_BC.detach().cpu().double().exp()
        if self._gap_CK is None:
            self._gap_CK = probability_BC.new_zeros(probability_BC.shape[1], self.bins)
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        bin_BC = (torch.bucketize(probability_BC, edges) - 1).clamp(0, self.bins - 1)
        gap_BC = -probability_BC
        gap_BC[torch.arange(len(label_B)), label_B.cpu()] += 1
        self._gap_CK.scatter_add_(1, bin_BC.T, gap_BC.T)
        self.images += len(label_B)

    def error(self) -> float:
        """The classwise ECE of everything added."""
        assert self._gap_CK is not None, "no batch was added"
        return float(self._gap_CK.abs().sum() / (self.images * len(self._gap_CK)))
