import pytest
import torch
from lightning.pytorch import LightningModule
from torch.optim.swa_utils import AveragedModel

from maskwright.training.callbacks import ExponentialAverage


class OneWeight(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.0]))
        self.register_buffer("statistic", torch.tensor([0.0]))


def averages(decay, values):
    module = OneWeight()
    callback = ExponentialAverage(decay)
    average = AveragedModel(module, multi_avg_fn=callback._average, use_buffers=True)
    seen = []
    for value in values:
        module.weight.data.fill_(value)
        module.statistic.fill_(-value)
        average.update_parameters(module)
        seen.append((average.module.weight.item(), average.module.statistic.item()))
    return seen


def test_decay_warms_up_so_that_the_first_weights_are_forgotten():
    # The first update copies; then the decays are 2/11 and 3/12.
    second = 8 + (4 - 8) * 2 / 11
    third = 12 + (second - 12) * 3 / 12
    assert averages(0.999, [4.0, 8.0, 12.0]) == [pytest.approx((value, -value)) for value in (4.0, second, third)]


def test_decay_is_never_above_the_wanted_one():
    assert averages(0.1, [0.0, 10.0, 10.0])[1:] == [pytest.approx((9.0, -9.0)), pytest.approx((9.9, -9.9))]
