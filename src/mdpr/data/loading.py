"""Prepared images as float tensors for torch: transforms, a data set, a loader.

N images of a split, B in a batch, 3 colour channels, H = W = the backbone's image size. What an image looks
like depends on (seed, epoch, index) alone: not on the order in which it is asked for, nor on the worker.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mdpr.data.images import decode_image

if TYPE_CHECKING:
    from PIL import Image

    from mdpr.artifacts import ImageFile

    Fixed = Callable[[Image.Image], torch.Tensor]

Augment = Literal["none", "flip", "crop_flip"]
Batch = tuple[torch.Tensor, torch.Tensor]  # float32 (B, 3, H, W), int64 (B,)

CACHE_MAX_BYTES = 256 * 2**20
CROP_AREA = (0.5, 1.0)  # share of the picture that a random crop keeps; less loses small objects


@dataclass(frozen=True)
class ImageTransform:
    """From a picture to a normalised float32 tensor (3, H, W).

    `fixed` gives uint8 and is the same every time, so its result may be kept; `random` draws from torch's CPU
    generator and is None where nothing is random.
    """

    fixed: Fixed
    random: v2.Transform | None
    mean_3: torch.Tensor
    std_3: torch.Tensor

    def normalise(self, images_3HW: torch.Tensor) -> torch.Tensor:
        """uint8 to float32, by the backbone's own mean and std; leading dimensions are batches."""
        return images_3HW.float().div_(255).sub_(self.mean_3[:, None, None]).div_(self.std_3[:, None, None])

    def __call__(self, image: Image.Image) -> torch.Tensor:
        fixed_3HW = self.fixed(image)
        return self.normalise(fixed_3HW if self.random is None else self.random(fixed_3HW))


def eval_transform(size_px: int, mean: Sequence[float], std: Sequence[float]) -> ImageTransform:
    """Short side to `size_px` (bicubic), centre crop, normalised with the backbone's own mean and std.

    The numbers are those of open_clip's own preprocessing.
    """
    return ImageTransform(partial(_resize_and_crop, size_px=size_px), None, torch.tensor(mean), torch.tensor(std))


def _resize_and_crop(image: Image.Image, size_px: int) -> torch.Tensor:
    image = F.resize(image, [size_px], interpolation=v2.InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(image, [size_px]))


def train_transform(size_px: int, mean: Sequence[float], std: Sequence[float], augment: Augment) -> ImageTransform:
    """none: as `eval_transform`; flip: mirrored with probability 1/2; crop_flip: random crop, then flip."""
    plain = eval_transform(size_px, mean, std)
    crop = v2.RandomResizedCrop(size_px, scale=CROP_AREA, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    steps: dict[Augment, tuple[Fixed, v2.Transform | None]] = {
        "none": (plain.fixed, None),
        "flip": (plain.fixed, v2.RandomHorizontalFlip()),
        "crop_flip": (F.pil_to_tensor, v2.Compose([crop, v2.RandomHorizontalFlip()])),
    }
    fixed, random = steps[augment]
    return ImageTransform(fixed, random, plain.mean_3, plain.std_3)


class ImageTable(Dataset[Any]):
    """The rows of `artifacts.read_images` as (float32 (3, H, W), label); `labels_N` holds all labels, int64.

    Decoding and resizing an image of 28 x 28 pixels takes several times as long as augmenting and normalising
    it, and every epoch repeats it: the results (uint8) are kept, up to `cache_max_bytes`, in the process that
    trains. Loader workers keep nothing, they live for one epoch.
    """

    def __init__(
        self,
        table: ImageFile,
        transform: ImageTransform,
        *,
        seed: int = 0,
        cache_max_bytes: int = CACHE_MAX_BYTES,
    ) -> None:
        self._images = table
        self.labels_N = table.labels_N
        self._transform = transform
        self._seed = seed
        self._cache: dict[int, torch.Tensor] = {}
        self._cache_left_bytes = cache_max_bytes
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is shown; `make_loader` calls it."""
        self._seeds_N = _stream(self._seed, epoch, len(self))

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform.normalise(self._augmented(index)), int(self.labels_N[index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch at once (torch's loader asks for it): B small ones are normalised at the price of one."""
        images_B3HW = torch.stack([self._augmented(index) for index in indices])
        return self._transform.normalise(images_B3HW), torch.from_numpy(self.labels_N[indices])

    def _augmented(self, index: int) -> torch.Tensor:
        fixed_3HW = self._fixed(index)
        if self._transform.random is None:
            return fixed_3HW
        with torch.random.fork_rng(devices=[]):  # the trainer's own generator is left as it was
            torch.default_generator.manual_seed(int(self._seeds_N[index]))
            return self._transform.random(fixed_3HW)

    def _fixed(self, index: int) -> torch.Tensor:
        if index in self._cache:
            return self._cache[index]
        record = self._images[index]
        image = decode_image(record.image, f"{self._images.path} row {index} ({record.path or 'image'})")
        fixed_3HW: torch.Tensor = self._transform.fixed(image)
        if fixed_3HW.nbytes <= self._cache_left_bytes and get_worker_info() is None:
            self._cache[index] = fixed_3HW
            self._cache_left_bytes -= fixed_3HW.nbytes
        return fixed_3HW


def _stream(seed: int, epoch: int, count: int) -> np.ndarray:
    """`count` seeds (uint64): the i-th depends on (seed, epoch, i) alone, and neighbours share nothing."""
    return np.random.SeedSequence((seed, epoch)).generate_state(count, np.uint64)


def make_loader(
    dataset: ImageTable,
    batches: int | Sequence[Sequence[int]],
    *,
    epoch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches (B, 3, H, W) float32 and (B,) int64 of one epoch; also moves `dataset` to that epoch.

    `batches` are the indices of each batch (see `mdpr.data.sampling`), or the size of batches in the table's order.
    Make a new loader each epoch. torch's global generator is not touched.
    """
    dataset.set_epoch(epoch)
    if isinstance(batches, int):
        count, size = len(dataset), batches
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return DataLoader(
        dataset,
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_leave_sigterm_to_the_trainer,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # torch draws a seed for its workers; nothing here uses it
    )


def _leave_sigterm_to_the_trainer(worker: int) -> None:
    """Whoever stops a node signals all its processes; the one that trains still needs its step's images to save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Batch:
    return batch
