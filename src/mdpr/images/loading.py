"""From prepared images to batches for torch: the order of an epoch, its split over processes, transforms, the loader.

Nothing depends on earlier calls: an order depends on (seed, epoch), and what an image looks like on (seed,
epoch, index), not on the worker that loads it. A batch is split over processes (ranks) and then into micro-batches,
both into runs of neighbours, so that any number of processes, with or without micro-batches, see the same images in
every step.

N images of a split, M indices of an epoch, B in a batch, 3 colour channels, H = W = the backbone's image size.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mdpr.images.decoding import decode_image

if TYPE_CHECKING:
    from PIL import Image

    from mdpr.artifacts import ImageFile

    Fixed = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """The images that go through the model at once.

    indices  of the images
    offset   place of the first one in the whole step's batch
    share    of the whole step's images, 0..1: the weight of this part's means in the step's means
    """

    indices: list[int]
    offset: int
    share: float


Step = tuple[MicroBatch, ...]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's order."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def instance_order(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Every image once, in random order; int64 (N,)."""
    return _permutation(len(label_N), epoch_generator(seed, epoch))


def class_balanced_order(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """N indices, int64, in which every class that has images comes equally often (give or take one).

    A class's images take turns, so none comes a second time before all of them came once. (Class-balanced sampling:
    Kang et al., Decoupling Representation and Classifier, ICLR 2020; there each draw is independent.)
    """
    generator = epoch_generator(seed, epoch)
    classes = np.unique(label_N)
    quota_C = np.full(len(classes), len(label_N) // len(classes))
    quota_C[_permutation(len(classes), generator)[: len(label_N) % len(classes)]] += 1
    drawn: list[np.ndarray] = []
    for label, quota in zip(classes, quota_C, strict=True):
        own = np.flatnonzero(label_N == label)
        turns = -(-int(quota) // len(own))
        drawn.append(np.concatenate([own[_permutation(len(own), generator)] for _ in range(turns)])[:quota])
    return np.concatenate(drawn)[_permutation(len(label_N), generator)]


ORDERS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "instance": instance_order,
    "class_balanced": class_balanced_order,
}


def plan_epoch(
    order_M: np.ndarray, batch_size: int, micro_batch_size: int | None = None, rank: int = 0, world: int = 1
) -> list[Step]:
    """The part of each step of an epoch that process `rank` of `world` computes.

    A step's images are split over the processes as evenly as can be. Every process takes part in every step: one
    that is left without an image in a short last step computes the batch's last image with share 0.
    """
    batches = [order_M[start : start + batch_size].tolist() for start in range(0, len(order_M), batch_size)]
    return [_split_batch(batch, micro_batch_size or batch_size, rank, world) for batch in batches]


def _split_batch(batch: Sequence[int], micro_batch_size: int, rank: int, world: int) -> Step:
    start, stop = shard(len(batch), rank, world)
    if start == stop:
        return (MicroBatch([batch[-1]], len(batch) - 1, 0.0),)
    parts = [(first, min(first + micro_batch_size, stop)) for first in range(start, stop, micro_batch_size)]
    return tuple(MicroBatch(list(batch[a:b]), a, (b - a) / len(batch)) for a, b in parts)


def shard(count: int, rank: int, world: int) -> tuple[int, int]:
    """The run [start, stop) of `count` things that process `rank` of `world` takes; sizes differ by one at most."""
    return count * rank // world, count * (rank + 1) // world


def _permutation(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randperm(count, generator=generator).numpy()


Batch = tuple[torch.Tensor, torch.Tensor]  # float32 (B, 3, H, W), int64 (B,)

CACHE_MAX_BYTES = 256 * 2**20
THIN = 16  # long over short side from which only the centre of a picture is resized
CROP_AREA = (0.5, 1.0)  # share of the picture that a random crop keeps; less loses small objects
WIDE_CROP_AREA = (0.08, 1.0)  # as for ImageNet, and published
PAD_PX = 4
SCORES_MAX = 2**20  # images x classes of a batch that is only scored: several such tensors are held at once


@dataclass(frozen=True)
class ImageTransform:
    """From a picture to a normalised float32 tensor (3, H, W).

    `fixed` gives uint8 and is the same every time, so its result may be kept; `random` draws from torch's CPU
    generator and is None if nothing is random.
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
    if max(image.size) > THIN * min(image.size):
        return F.pil_to_tensor(_middle_of_thin(image, size_px))
    image = F.resize(image, [size_px], interpolation=v2.InterpolationMode.BICUBIC)
    return F.pil_to_tensor(F.center_crop(image, [size_px]))


def _middle_of_thin(image: Image.Image, size_px: int) -> Image.Image:
    """The pixels that resizing the short side and cropping the centre give, computed for the centre only.

    20,000 x 1 pixels resized to a height of 224 would be 4,480,000 wide.
    """
    long_px, short_px = max(image.size), min(image.size)
    resized_px = int(size_px * long_px / short_px)  # as torchvision rounds
    start_px = round((resized_px - size_px) / 2)
    scale = long_px / resized_px
    first, last = start_px * scale, (start_px + size_px) * scale
    support_px = math.ceil(2 * max(scale, 1)) + 1  # how far the bicubic filter reads beyond the centre
    low, high = max(0, math.floor(first) - support_px), min(long_px, math.ceil(last) + support_px)
    if image.width >= image.height:
        part, box = image.crop((low, 0, high, short_px)), (first - low, 0.0, last - low, float(short_px))
    else:
        part, box = image.crop((0, low, short_px, high)), (0.0, first - low, float(short_px), last - low)
    return part.resize((size_px, size_px), PIL.Image.Resampling.BICUBIC, box=box)


def train_transform(size_px: int, mean: Sequence[float], std: Sequence[float], augment: str) -> ImageTransform:
    """The transform that `tune.augment` names; all but `none` mirror with probability 1/2."""
    plain, flip = eval_transform(size_px, mean, std), v2.RandomHorizontalFlip()

    def crop(area: tuple[float, float]) -> v2.Transform:
        bicubic = v2.InterpolationMode.BICUBIC
        return v2.RandomResizedCrop(size_px, scale=area, interpolation=bicubic, antialias=True)

    steps: dict[str, tuple[Fixed, v2.Transform | None]] = {
        "none": (plain.fixed, None),
        "flip": (plain.fixed, flip),
        "crop_flip": (F.pil_to_tensor, v2.Compose([crop(CROP_AREA), flip])),
        "wide_crop_flip": (F.pil_to_tensor, v2.Compose([crop(WIDE_CROP_AREA), flip])),
        "pad_crop_flip": (plain.fixed, v2.Compose([v2.RandomCrop(size_px, padding=PAD_PX), flip])),
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
        self._block_N3HW: torch.Tensor | None = None
        self._in_block_N = np.zeros(len(table.labels_N), dtype=bool)
        self._cache_left_bytes = cache_max_bytes
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is shown; `make_loader` calls it."""
        # the i-th depends on (seed, epoch, i) only, and neighbours share nothing
        self._seeds_N = np.random.SeedSequence((self._seed, epoch)).generate_state(len(self), np.uint64)

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
        if self._block_N3HW is not None and self._in_block_N[index]:
            return self._block_N3HW[index]
        if index in self._cache:
            return self._cache[index]
        record = self._images[index]
        image = decode_image(record.image, f"{self._images.path} row {index} ({record.path or 'image'})")
        fixed_3HW: torch.Tensor = self._transform.fixed(image)
        if get_worker_info() is None:
            self._keep(index, fixed_3HW)
        return fixed_3HW

    def _keep(self, index: int, fixed_3HW: torch.Tensor) -> None:
        """In one block if all pictures fit, else one by one: each would hold back the memory around it."""
        needed = len(self) * fixed_3HW.nbytes
        if self._block_N3HW is None and not self._cache and needed <= self._cache_left_bytes:
            self._block_N3HW = fixed_3HW.new_empty((len(self), *fixed_3HW.shape))
            self._cache_left_bytes -= needed
        if self._block_N3HW is not None and self._block_N3HW.shape[1:] == fixed_3HW.shape:
            self._block_N3HW[index] = fixed_3HW
            self._in_block_N[index] = True
        elif fixed_3HW.nbytes <= self._cache_left_bytes:
            self._cache[index] = fixed_3HW
            self._cache_left_bytes -= fixed_3HW.nbytes


def make_loader(
    dataset: ImageTable,
    batches: int | Sequence[Sequence[int]],
    *,
    epoch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Batches (B, 3, H, W) float32 and (B,) int64 of one epoch; also moves `dataset` to that epoch.

    `batches` are the indices of each batch (see `plan_epoch`), or the size of batches in the table's order.
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


def scoring_batch_size(most: int, classes: int) -> int:
    """Images that are scored at once: at most `most`, and only so many that a (B, C) tensor stays small."""
    return max(1, min(most, SCORES_MAX // classes))


def _leave_sigterm_to_the_trainer(worker: int) -> None:
    """A node that is stopped signals all its processes; the trainer still needs the images of its step to save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Batch:
    return batch
