"""Training steps of the reduced MaX-DeepLab: outputs, losses, gradients, statistics, learning rates and moves.

The reference's random weights make the network so badly conditioned that its float32 gradients lie a quarter (in the
median) away from the same gradients in float64. So all is held to what rounding does to the network; layers and losses
alone are held to the usual tolerances in their own cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from cases_max_deeplab_layers import GRADIENTS, TRAINING, fitted
from cases_max_deeplab_losses import TERMS, mask_targets, recorded_matching
from cases_max_deeplab_network import create_loaded, named_outputs, normalised
from norm_statistics import NormStatistics
from parity_data import ParityData, below
from rounding import Results, Rounding
from torch import Tensor

from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.max_deeplab import MAX_DEEPLAB
from maskwright.convert.tables import module_table
from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.blocks import AxialBlock
from maskwright.models.max_deeplab.losses import MaXDeepLabLoss
from maskwright.models.max_deeplab.model import backbone_parameters
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork
from maskwright.ops.matching import match_masks
from maskwright.training.optimizers import learning_rate_factor
from maskwright.training.options import OptimizerOptions

STEP = "model/train_step.npz"
STRIDE = 4
COCO = {"thing_class_ids": range(1, 81), "stuff_class_ids": range(81, 134), "ignore_label": 0}


def create_training(data: ParityData) -> MaXDeepLabNetwork:
    """In training mode, without the dropout that the reference run was without."""
    image = data.arrays(STEP)["gt/image"]
    network = create_loaded(data, (image.shape[1], image.shape[2])).train()
    assert network.semantic_decoder is not None
    network.semantic_decoder.aspp.dropout.p = 0.0
    return network


@cache
def training_step(data: ParityData) -> Rounding:
    """Outputs, losses, their mean over the images, gradients and statistics, with the recorded assignment."""
    arrays = data.arrays(STEP)
    config = {**COCO, "max_thing_id": arrays["gt/thing_id_class_gt"].shape[1]}
    targets = mask_targets(arrays, config, STRIDE)
    matching = recorded_matching(arrays, config, targets, STRIDE)

    loss = MaXDeepLabLoss(MaXDeepLabConfig(categories=coco_panoptic_categories()))

    def step(network: MaXDeepLabNetwork) -> Results:
        statistics = NormStatistics(network)
        outputs = network(normalised(arrays["gt/image"]).double())
        losses = loss.per_image(outputs, targets, matching)
        total = torch.stack(list(losses.values())).sum(dim=0)
        total.mean().backward()
        results = named_outputs(outputs, below(arrays, "out/"))
        results |= {f"loss/{theirs}": losses[ours].detach() for theirs, ours in TERMS.items()}
        results |= {"loss/total_loss": total.detach(), "objective/first": total.detach().mean()}
        results |= {f"gradient/{name}": _gradient(parameter) for name, parameter in network.named_parameters()}
        return results | {f"after/{name}": value for name, value in _statistics(statistics, network).items()}

    return Rounding(lambda: create_training(data), step)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _statistics(statistics: NormStatistics, network: MaXDeepLabNetwork) -> Results:
    """The reference counts those of axial blocks twice: it computes these blocks again in the backward pass."""
    found = statistics.after(biased=lambda _norm: True)
    axial = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, AxialBlock))
    for name in [name for name in found if name.startswith(axial)]:
        kept = 1 - statistics.norms[name.rpartition(".")[0]].momentum
        found[name] = kept * found[name] + (found[name] - kept * statistics.before[name])
    return found


def check_training_step(data: ParityData, file: str) -> None:
    """Outputs, every loss, and the statistics afterwards."""
    arrays, step = data.arrays(file), training_step(data)
    after, table = below(step.exact, "after/"), module_table(create_training(data), MAX_DEEPLAB)
    step.check("out", below(arrays, "out/"), TRAINING)
    step.check("loss", below(arrays, "loss/"), TRAINING)
    step.check("after", fitted(after, table, below(arrays, "bn_after/")), TRAINING)


def check_assignment(data: ParityData, file: str) -> None:
    """On the recorded costs ours is no worse than the recorded one."""
    arrays = data.arrays(file)
    similarity = torch.from_numpy(-arrays["mid/hungarian_cost"]).double()
    valid = similarity.abs().amax(dim=2) < 2  # the padding's are 999
    matching = match_masks(similarity, valid)
    chosen = similarity.gather(2, matching.clamp(min=0)[:, :, None])[..., 0]
    recorded = (similarity * torch.from_numpy(arrays["mid/permutation"])).sum(dim=2)
    assert ((chosen - recorded) * valid).sum() >= 0


def check_gradients(data: ParityData, file: str) -> None:
    """Every variable's gradient; half of them nearer than twice what rounding does."""
    step, table = training_step(data), module_table(create_training(data), MAX_DEEPLAB)
    recorded = fitted(below(step.exact, "gradient/"), table, data.arrays(file))
    multiples = step.check("gradient", recorded, GRADIENTS)
    assert np.median(multiples or [0]) < 2


def check_three_steps(data: ParityData, file: str) -> None:
    """Learning rates, the two groups, the objective before any weight moves, and how far Adam moves the weights.

    The first step's rate is 0, so that the first two steps see the same weights, and the second and third move them.
    What the third sees is chaotic: whatever its gradients, Adam moves a weight by at most both rates together, and
    where the gradients agree by nearly as much.
    """
    arrays, values = data.arrays(file), data.files[file]["config"]
    network = create_training(data)
    options = OptimizerOptions(
        name="adam",
        learning_rate=values["base_lr"],
        schedule="polynomial",
        polynomial_power=values["power"],
        warmup_steps=values["warmup"],
        warmup_start_factor=0.0,
    )
    backbone = {id(parameter) for parameter in backbone_parameters(network.encoder)}
    table = module_table(network, MAX_DEEPLAB)
    groups: dict[bool, list[str]] = {False: [], True: []}
    for name, parameter in network.named_parameters():
        groups[id(parameter) in backbone].append(name)
    log = arrays["log_loss_lr_blr_nother_nbackbone"]
    for (is_backbone, names), rates, count in zip(groups.items(), log[:, 1:3].T, log[0, 3:], strict=True):
        share = values["backbone_mult"] if is_backbone else 1.0
        factors = [learning_rate_factor(step, options=options, steps=values["steps_total"]) for step in range(len(log))]
        np.testing.assert_allclose(rates, np.multiply(factors, options.learning_rate * share), rtol=1e-5)
        assert len({table[name].path for name in names}) == count
        moves = [_moves(network, name, table[name], arrays) for name in names if f"final/{table[name].path}" in arrays]
        assert len(moves) >= 3
        assert 0.9 < max(moves) / sum(rates) < 1.01
    objective = training_step(data)
    for loss in log[:2, 0]:
        objective.check("objective", {"first": loss}, TRAINING)


def _moves(network: MaXDeepLabNetwork, name: str, row: Any, arrays: Mapping[str, np.ndarray]) -> float:
    """The farthest that the reference's three steps moved a weight of ours."""
    before = network.get_parameter(name).detach()
    return float(np.abs(row.fit(arrays[f"final/{row.path}"], tuple(before.shape)) - before.numpy()).max())


CHECKS = {
    "training-mode forward + DeepLabFamilyLoss + gradients": [check_training_step, check_assignment],
    "full gradients of model/train_step.npz": [check_gradients],
    "three Adam steps (trainer.py recipe)": [check_three_steps],
}
