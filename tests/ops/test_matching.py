"""The assignment of slots to masks: hand-computed cases, brute force, padding and broken values."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskwright.ops.matching import match_masks


def all_valid(similarity):
    return torch.ones(similarity.shape[:2], dtype=torch.bool)


def test_the_sum_counts_not_the_best_of_each_row():
    """Row 0 likes slot 0 best, but then row 1 would be left with nothing: 0.8 + 0.9 > 0.9 + 0.1."""
    similarity = torch.tensor([[[0.9, 0.8], [0.9, 0.1]]])
    assert match_masks(similarity, all_valid(similarity)).tolist() == [[1, 0]]


def test_images_of_a_batch_are_matched_alone_and_padding_takes_no_slot():
    similarity = torch.tensor([[[0.1, 0.9, 0.2], [0.9, 0.9, 0.9]], [[0.3, 0.2, 0.1], [0.4, 0.1, 0.0]]])
    valid = torch.tensor([[True, False], [True, True]])
    assert match_masks(similarity, valid).tolist() == [[1, -1], [1, 0]]


def test_the_least_similar_masks_go_without_where_slots_are_few():
    similarity = torch.tensor([[[0.5], [0.7], [0.6]]])
    assert match_masks(similarity, all_valid(similarity)).tolist() == [[-1, 0, -1]]


def test_similarities_far_below_float32_steps_of_the_original_s_padding_decide():
    similarity = torch.tensor([[[1e-7, 2e-7], [1e-7, 3e-7]]])
    assert match_masks(similarity, all_valid(similarity)).tolist() == [[0, 1]]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_values_count_as_nothing(broken):
    similarity = torch.tensor([[[broken, 0.1], [0.2, 0.1]]])
    assert match_masks(similarity, all_valid(similarity)).tolist() == [[1, 0]]


def test_nothing_valid_is_nothing_matched_and_no_gradient_passes():
    similarity = torch.rand(2, 3, 4, requires_grad=True)
    matching = match_masks(similarity, torch.zeros(2, 3, dtype=torch.bool))
    assert (matching == -1).all()
    assert not matching.requires_grad


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_no_assignment_is_better(seed, masks, slots):
    similarity = torch.rand(1, masks, slots, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    (matching,) = match_masks(similarity, all_valid(similarity))
    rows = (matching >= 0).nonzero().flatten()
    assert len(rows) == min(masks, slots) == len(set(matching[rows].tolist()))
    total = similarity[0, rows, matching[rows]].double().sum().item()
    values = (similarity[0] if masks <= slots else similarity[0].T).double()
    best = max(
        sum(values[row, column].item() for row, column in enumerate(columns))
        for columns in permutations(range(values.shape[1]), values.shape[0])
    )
    assert total == pytest.approx(best, abs=1e-9)
