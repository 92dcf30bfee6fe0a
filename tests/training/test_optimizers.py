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


def rates(at, *, steps, learning_rate, **values):
    options = OptimizerOptions(learning_rate=learning_rate, **values)
    return [learning_rate * learning_rate_factor(step, options=options, steps=steps) for step in at]


def test_steps_are_those_of_deep_marc():
    """Warm-up from .0067 to .12 over 500 steps, a tenth after 15,000 and again after 20,000 of 22,500."""
    values = {"warmup_steps": 500, "warmup_start_factor": 0.0067 / 0.12, "step_boundaries": [15000, 20000]}
    at = [0, 250, 500, 15000, 15001, 20000, 20001, 22500]
    expected = [0.0067, 0.06335, 0.12, 0.12, 0.012, 0.012, 0.0012, 0.0012]
    assert rates(at, steps=22500, learning_rate=0.12, schedule="step", **values) == pytest.approx(expected)


def test_the_polynomial_is_that_of_max_deeplab():
    """From 0 to 1e-3 over 5000 steps, then (1 - step / 100,000) ** 0.9, with a small drop where they meet."""
    values = {"warmup_steps": 5000, "warmup_start_factor": 0.0, "polynomial_power": 0.9}
    at = [0, 1, 2500, 4999, 5000, 50_000, 99_999, 100_000, 100_001]
    expected = [0, 2e-7, 5e-4, 9.998e-4, 9.548854e-4, 5.358867e-4, 1e-3 * 10**-4.5, 0, 0]
    assert rates(at, steps=100_000, learning_rate=1e-3, schedule="polynomial", **values) == pytest.approx(expected)


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
