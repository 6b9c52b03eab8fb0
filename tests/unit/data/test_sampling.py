"""The order of an epoch and how its batches are split: properties over sizes, processes and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdpr.images.loading import ORDERS, Sampling, class_balanced_order, instance_order, plan_epoch

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
def test_an_order_draws_from_no_generator_but_its_own(sampling: Sampling) -> None:
    import torch

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
