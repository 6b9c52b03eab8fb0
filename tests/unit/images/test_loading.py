"""What torch sees: the same numbers as open_clip's preprocessing, and chance that hangs on nothing else."""

import io
import resource
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdpr.artifacts import ImageFile, read_images, write_images
from mdpr.errors import DataError
from mdpr.images.decoding import decode_image
from mdpr.images.loading import (
    ORDERS,
    ImageTable,
    _resize_and_crop,
    class_balanced_order,
    eval_transform,
    instance_order,
    make_loader,
    plan_epoch,
    scoring_batch_size,
    train_transform,
)

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
COUNT = 40


def png(seed: int) -> bytes:
    """A picture that no other seed gives."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> ImageFile:
    file = tmp_path / "train.parquet"
    write_images(file, [png(row) for row in range(COUNT)], [f"{row}.png" for row in range(COUNT)], [*range(COUNT)])
    return read_images(file)


def dataset(table: ImageFile, augment: str = "flip", **options: int) -> ImageTable:
    return ImageTable(table, train_transform(32, MEAN, STD, augment), **options)


@pytest.mark.parametrize("size", [(28, 28), (40, 90), (300, 200), (33, 31)])
def test_eval_transform_is_that_of_open_clip(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    stock = open_clip.image_transform(32, is_train=False, mean=MEAN, std=STD)
    assert torch.equal(eval_transform(32, MEAN, STD)(image), stock(image))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3000, 20), (7, 900), (100_001, 500), (512, 31)])
def test_the_middle_of_a_thin_picture_is_that_of_the_whole_of_it(size: tuple[int, int]) -> None:
    """Compared where the whole of it still fits: torchvision would make 640,000 x 32 of 20,000 x 1."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    stock = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    shown, whole = eval_transform(32, (0, 0, 0), (1, 1, 1))(image), stock(image)
    assert (255 * (shown - whole)).abs().max() <= 1
    assert ((shown - whole).abs() > 1e-6).float().mean() < 0.01


def test_a_thin_picture_needs_no_memory_for_what_is_cropped_away() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _resize_and_crop(Image.new("RGB", (65_000, 1), (9, 8, 7)), 224)[:, 0, 0].tolist() == [9, 8, 7]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the whole would take 13 GB


def test_training_without_augmentation_is_evaluation(table: ImageFile) -> None:
    image, label = dataset(table, "none")[3]
    assert torch.equal(image, eval_transform(32, MEAN, STD)(decode_image(png(3), "")))
    assert label == 3


def test_flip_mirrors_about_half_of_the_images(table: ImageFile) -> None:
    plain, flipped = dataset(table, "none"), dataset(table, "flip")
    mirrored = 0
    for index in range(COUNT):
        shown, original = flipped[index][0], plain[index][0]
        assert torch.equal(shown, original) or torch.equal(shown, original.flip(-1))
        mirrored += not torch.equal(shown, original)
    assert 10 < mirrored < 30


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "wide_crop_flip", "pad_crop_flip"])
def test_augmentation_hangs_on_seed_epoch_and_index_alone(table: ImageFile, augment: str) -> None:
    first = everything(dataset(table, augment, seed=7), epoch=2)
    torch.manual_seed(123)
    torch.rand(17)
    reordered = everything(dataset(table, augment, seed=7), epoch=2, order_seed=9)
    uncached = everything(dataset(table, augment, seed=7, cache_max_bytes=0), epoch=2)
    in_workers = everything(dataset(table, augment, seed=7), epoch=2, workers=2)
    assert torch.equal(first, reordered)
    assert torch.equal(first, uncached)
    assert torch.equal(first, in_workers)
    assert not torch.equal(first, everything(dataset(table, augment, seed=7), epoch=3))
    assert not torch.equal(first, everything(dataset(table, augment, seed=8), epoch=2))


def test_one_image_and_a_batch_are_the_same(table: ImageFile) -> None:
    images = dataset(table, "crop_flip", seed=1)
    batch, batch_labels = next(iter(make_loader(images, COUNT, epoch=4)))
    assert torch.equal(batch, torch.stack([images[index][0] for index in range(COUNT)]))
    assert batch_labels.tolist() == [images[index][1] for index in range(COUNT)]
    assert (batch.shape, batch.dtype, batch_labels.dtype) == ((COUNT, 3, 32, 32), torch.float32, torch.int64)


def test_order_is_the_table_s_without_a_seed(table: ImageFile) -> None:
    assert order(dataset(table)) == list(range(COUNT))


def test_order_hangs_on_seed_and_epoch_alone(table: ImageFile) -> None:
    shuffled = order(dataset(table), seed=1, epoch=1)
    torch.manual_seed(99)
    assert order(dataset(table, seed=5), seed=1, epoch=1, batch_size=3, workers=1) == shuffled
    assert sorted(shuffled) == list(range(COUNT))
    others = [order(dataset(table), seed=seed, epoch=epoch) for seed, epoch in ((1, 2), (2, 1), (1, 0))]
    assert shuffled not in others
    assert shuffled != list(range(COUNT))


def test_the_trainer_s_generator_is_not_touched(table: ImageFile) -> None:
    before = torch.get_rng_state()
    order(dataset(table, "crop_flip"), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_cache_stays_within_its_bound(table: ImageFile) -> None:
    images = dataset(table, cache_max_bytes=10 * 3 * 32 * 32 + 5)
    order(images)
    assert len(images._cache) == 10


def test_a_picture_that_was_kept_is_the_one_that_was_read(table: ImageFile) -> None:
    pixels = COUNT * 3 * 32 * 32
    tables = [dataset(table, cache_max_bytes=most) for most in (0, pixels // 2, pixels)]
    for images in tables * 2:
        assert all(torch.equal(images[index][0], tables[0][index][0]) for index in range(COUNT))


def test_batches_are_of_the_size_or_of_the_indices_asked_for(table: ImageFile) -> None:
    assert [len(batch[1]) for batch in make_loader(dataset(table), 15)] == [15, 15, 10]
    chosen = [[3, 1], [4], [1, 5, 9]]
    assert [batch[1].tolist() for batch in make_loader(dataset(table), chosen)] == chosen


def test_fewer_images_are_scored_at_once_over_many_classes() -> None:
    assert [scoring_batch_size(256, classes) for classes in (10, 4096, 8142, 2**21)] == [256, 256, 128, 1]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "x.parquet", [png(0), png(1)[:200]], ["a.png", "b.png"], [0, 1])
    with pytest.raises(DataError, match=r"x\.parquet row 1 \(b\.png\) cannot be decoded"):
        dataset(read_images(tmp_path / "x.parquet"))[1]


def test_pictures_of_any_shape_are_cropped_to_one_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (50, 20)).save(stream, "JPEG")
    write_images(tmp_path / "x.parquet", [stream.getvalue()], ["a.jpg"], [0])
    table = read_images(tmp_path / "x.parquet")
    augments: tuple[str, ...] = ("none", "flip", "crop_flip")
    assert {tuple(dataset(table, augment)[0][0].shape) for augment in augments} == {(3, 32, 32)}


def everything(images: ImageTable, epoch: int, order_seed: int | None = None, workers: int = 0) -> torch.Tensor:
    """All images of an epoch in the table's order, whatever the order they were asked for in."""
    batches = list(make_loader(images, _batches(images, 7, order_seed, epoch), epoch=epoch, workers=workers))
    rows = torch.cat([batch[1] for batch in batches])
    return torch.cat([batch[0] for batch in batches])[rows.argsort()]


def order(
    images: ImageTable, seed: int | None = None, epoch: int = 0, batch_size: int = 8, workers: int = 0
) -> list[int]:
    loader = make_loader(images, _batches(images, batch_size, seed, epoch), epoch=epoch, workers=workers)
    return torch.cat([batch[1] for batch in loader]).tolist()


def _batches(images: ImageTable, batch_size: int, seed: int | None, epoch: int) -> int | list[list[int]]:
    if seed is None:
        return batch_size
    return [part.indices for (part,) in plan_epoch(instance_order(images.labels_N, seed, epoch), batch_size)]


LABELS = np.repeat([0, 1, 3], [60, 12, 5])  # class 2 has no image


def test_instance_order_is_every_image_once_by_seed_and_epoch() -> None:
    order = instance_order(LABELS, seed=1, epoch=2)
    assert sorted(order) == list(range(77))
    assert (order == instance_order(LABELS, 1, 2)).all()
    assert any((order != instance_order(LABELS, *other)).any() for other in ((1, 3), (2, 2)))


def test_class_balanced_order_shows_every_class_and_every_image_of_it_equally_often() -> None:
    order = class_balanced_order(LABELS, seed=0, epoch=0)
    assert len(order) == len(LABELS)
    shown_C = np.bincount(LABELS[order], minlength=4)
    assert sorted(shown_C) == [0, 25, 26, 26]
    times_N = np.bincount(order, minlength=77)
    for label in (0, 1, 3):
        assert np.ptp(times_N[np.equal(LABELS, label)]) <= 1
    assert not (order == class_balanced_order(LABELS, 0, 1)).all()


def test_the_class_that_gets_one_more_changes_with_the_epoch() -> None:
    fewest = {
        int(np.bincount(LABELS[class_balanced_order(LABELS, 0, epoch)], minlength=4)[[0, 1, 3]].argmin())
        for epoch in range(20)
    }
    assert fewest == {0, 1, 2}


@pytest.mark.parametrize("sampling", list(ORDERS))
def test_an_order_draws_from_no_generator_but_its_own(sampling: str) -> None:
    before = torch.get_rng_state()
    ORDERS[sampling](LABELS, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@given(
    images=st.integers(1, 60), batch=st.integers(1, 20), micro=st.none() | st.integers(1, 20), world=st.integers(1, 5)
)
def test_any_split_sees_each_step_s_images_once(images: int, batch: int, micro: int | None, world: int) -> None:
    order = np.random.default_rng(0).permutation(images)
    plans = [plan_epoch(order, batch, micro, rank, world) for rank in range(world)]
    steps = [order[start : start + batch].tolist() for start in range(0, images, batch)]
    assert {len(plan) for plan in plans} == {len(steps)}
    for number, whole in enumerate(steps):
        parts = [part for plan in plans for part in plan[number]]
        assert all(plan[number] for plan in plans), "every process takes part in every step"
        counted = [part for part in parts if part.share]
        assert [index for part in counted for index in part.indices] == whole
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert all(whole[part.offset] == part.indices[0] for part in parts)
        assert all(len(part.indices) <= (micro or batch) for part in parts)


def test_one_process_without_micro_batches_computes_whole_batches() -> None:
    plan = plan_epoch(np.arange(7), batch_size=3)
    assert [[(part.indices, part.offset, part.share) for part in step] for step in plan] == [
        [([0, 1, 2], 0, 1.0)],
        [([3, 4, 5], 0, 1.0)],
        [([6], 0, 1.0)],
    ]
