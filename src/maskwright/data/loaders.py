"""Data loaders whose order is a function of (seed, step, rank), so that training resumes exactly."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from maskwright.data.dataset import SegmentationDataset
from maskwright.errors import UserError
from maskwright.signals import end_late, signals_held
from maskwright.structures import PanopticTarget, Target

Batch = tuple[list[Tensor], list[Any]]
"""Images and their `Target`s, or their `PanopticTarget`s."""


class EndlessSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, sample seed) for one rank, without end, from step `start_step` on.

    All ranks together walk along one sequence of draws: step s of rank r has the draws
    (s * world_size + r) * batch_size and the following ones. Without weights the sequence is one seeded permutation of
    the data set after another, so that every image comes once per epoch; with weights each draw is independent, with
    replacement. A draw's index and sample seed depend on `seed` and its place in the sequence alone.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        """Prepare the sequence.

        Args:
            size: number of images.
            batch_size: images per batch and rank.
            seed: fixes the order and the sample seeds.
            rank: which of the processes this is.
            world_size: number of processes.
            start_step: the step (batch of this rank) to begin with.
            weights: [size], how often each image is drawn relative to the others.

        Raises:
            ValueError: a number is out of its range.
        """
        if size < 1 or batch_size < 1 or start_step < 0 or not 0 <= rank < world_size:
            raise ValueError(
                "expected size >= 1, batch_size >= 1, start_step >= 0 and 0 <= rank < world_size, but got "
                f"size {size}, batch_size {batch_size}, start_step {start_step}, rank {rank}, world_size {world_size}"
            )
        if weights is not None and (
            weights.shape != (size,) or (weights < 0).any() or not 0 < weights.sum() < torch.inf
        ):
            raise ValueError(f"weights must be {size} numbers of at least 0, not all 0, but got {weights}")
        self._size = size
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._start_step = start_step
        self._bounds = None if weights is None else np.cumsum(weights.double().numpy())
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in count(self._start_step):
            first = (step * self._world_size + self._rank) * self._batch_size
            yield [self._draw(place) for place in range(first, first + self._batch_size)]

    def _draw(self, place: int) -> tuple[int, int]:
        sample_seed = _hash(self._seed, "sample", place)
        if self._bounds is None:
            epoch, position = divmod(place, self._size)
            return int(self._permutation(epoch)[position]), sample_seed
        point = _hash(self._seed, "draw", place) / 2**63 * self._bounds[-1]
        # `right` never picks an image of weight 0; the minimum guards the rounding of the product.
        index = np.searchsorted(self._bounds, min(point, np.nextafter(self._bounds[-1], 0)), side="right")
        return int(index), sample_seed

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_hash(self._seed, "epoch", epoch))
            self._order = (epoch, torch.randperm(self._size, generator=generator).numpy())
        return self._order[1]


def _hash(seed: int, purpose: str, number: int) -> int:
    """An integer in 0 .. 2^63 - 1 that looks random and is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def collate(samples: Sequence[tuple[Tensor, Target | PanopticTarget]]) -> Batch:
    """A list of images and a list of targets; nothing is stacked, since images differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]


class BatchLoader(DataLoader[Any]):
    """A `DataLoader` that raises a worker's `UserError` again without the worker's traceback in its text."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            with signals_held():  # workers are forked here
                batches = super().__iter__()
            yield from batches
        except UserError as error:
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def training_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
) -> BatchLoader:
    """Endless batches of `batch_size` augmented samples per rank, from step `start_step` on.

    Batch k of a loader started at step s is, to the bit, batch s + k of the loader started at 0, with any number
    of workers. Images are drawn by `dataset.sampling_weights` where it has them. There is no `len()`.
    """
    sampler = EndlessSampler(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        weights=dataset.sampling_weights,
    )
    return _loader(dataset, sampler, num_workers)


def evaluation_loader(
    dataset: SegmentationDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> BatchLoader:
    """The images rank, rank + world_size, ... once each, in order; over all ranks every image comes exactly once.

    Nothing is padded: ranks may differ by one image, and one may have none.
    """
    indices = range(rank, len(dataset), world_size)
    index_lists = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return _loader(dataset, index_lists, num_workers)


def _loader(dataset: SegmentationDataset, batch_sampler: Any, num_workers: int) -> BatchLoader:
    return BatchLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        batch_sampler=batch_sampler,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=end_late,
        # Forked workers share the annotation index; its arrays would be copied to spawned ones.
        multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
        # The loader draws a seed for its workers, which must not come out of the model's random state.
        generator=torch.Generator().manual_seed(0),
    )
