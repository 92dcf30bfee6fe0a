import math

import pytest
import torch

from maskwright.errors import UserError
from maskwright.training.optimizers import create_optimizer, create_schedule, learning_rate_factor
from maskwright.training.options import OptimizerOptions


def factors(steps, **values):
    options = OptimizerOptions(**values)
    return [learning_rate_factor(step, options=options, steps=steps) for step in range(steps + 1)]


def test_warmup_is_linear_and_cosine_ends_at_zero_after_the_last_step():
    assert factors(7, warmup_steps=3, schedule="cosine") == pytest.approx(
        [0.25, 0.5, 0.75, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    )


def test_constant_stays_after_warmup():
    assert factors(4, warmup_steps=1, schedule="constant") == [0.5, 1, 1, 1, 1]


def test_warmup_starts_at_its_first_factor():
    expected = [0.25, 0.4375, 0.625, 0.8125, 1, 1]
    assert factors(5, warmup_steps=4, warmup_start_factor=0.25, schedule="constant") == pytest.approx(expected)


def test_warmup_as_long_as_the_run_is_allowed():
    assert factors(2, warmup_steps=5, schedule="cosine") == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_parameter_groups_scale_learning_rate_and_decay(name, kind):
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    groups = [
        {"name": "backbone", "params": [first], "weight_decay_factor": 1.0},
        {"name": "norms", "params": [second], "weight_decay_factor": 0.0},
    ]
    options = OptimizerOptions(
        name=name,
        learning_rate=0.5,
        learning_rate_factors={"backbone": 0.1},
        weight_decay=0.2,
        warmup_steps=1,
        schedule="constant",
    )
    optimizer = create_optimizer(groups, options)
    schedule = create_schedule(optimizer, options, steps=10)

    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.25]
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_options_reach_the_optimizer():
    groups = [
        {
            "name": "all",
            "params": [torch.nn.Parameter(torch.ones(1))],
            "learning_rate_factor": 1.0,
            "weight_decay_factor": 1.0,
        }
    ]
    adam = create_optimizer(groups, OptimizerOptions(betas=(0.8, 0.9), epsilon=1e-5))
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.9), 1e-5)
    sgd = create_optimizer(groups, OptimizerOptions(name="sgd", momentum=0.7))
    assert sgd.defaults["momentum"] == 0.7


def test_a_factor_of_no_group_is_refused():
    groups = [{"name": "heads", "params": [torch.nn.Parameter(torch.ones(1))], "weight_decay_factor": 1.0}]
    with pytest.raises(UserError, match=r"learning_rate_factors.*'bakbone'.*heads"):
        create_optimizer(groups, OptimizerOptions(learning_rate_factors={"bakbone": 0.1}))
