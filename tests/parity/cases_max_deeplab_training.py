"""One and three training steps of the reduced MaX-DeepLab: losses, all gradients, learning rates, weights.

The reference's random weights make the network so badly conditioned that its own float32 gradients lie a quarter (in
the median) away from the same gradients in float64. So each gradient is held to what rounding does to it: ours in
float64 with a relative disturbance of 6e-8 behind every convolution and linear layer, and ours in float32. Layers and
losses alone are held to the usual tolerances in their own cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from cases_max_deeplab_losses import TERMS, mask_targets, near, recorded_matching
from cases_max_deeplab_network import create_training, normalised
from parity_data import ParityData
from torch import Tensor, nn

from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.max_deeplab import MAX_DEEPLAB
from maskwright.convert.tables import module_table
from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.losses import MaXDeepLabLoss
from maskwright.models.max_deeplab.model import backbone_parameters
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork, MaXDeepLabOutputs
from maskwright.ops.matching import match_masks
from maskwright.training.optimizers import learning_rate_factor
from maskwright.training.options import OptimizerOptions

STEP = "model/train_step.npz"
STRIDE = 4
ROUNDING = 6e-8
# The reference's noise in training mode, relative: of the losses, and of the gradients as a multiple of our own.
LOSS, DICE_LOSS, NOISE = 5e-3, 0.1, 3.0
NO_GRADIENT = 1e-3  # largest norm of gradients that are zero but for rounding (others reach 1e4)
COCO = {"thing_class_ids": range(1, 81), "stuff_class_ids": range(81, 134), "ignore_label": 0}


def config(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {**COCO, "max_thing_id": arrays["gt/thing_id_class_gt"].shape[1]}


def step_losses(network: MaXDeepLabNetwork, arrays: Mapping[str, np.ndarray], image: Tensor) -> dict[str, Tensor]:
    """Of every image, with the recorded assignment."""
    targets = mask_targets(arrays, config(arrays), STRIDE)
    outputs = MaXDeepLabOutputs(*(value.float() for value in network(image)))
    loss = MaXDeepLabLoss(MaXDeepLabConfig(categories=coco_panoptic_categories()))
    return loss.per_image(outputs, targets, recorded_matching(arrays, config(arrays), targets, STRIDE))


def create(data: ParityData, arrays: Mapping[str, np.ndarray]) -> tuple[MaXDeepLabNetwork, Tensor]:
    image = arrays["gt/image"]
    return create_training(data, (image.shape[1], image.shape[2])), normalised(image)


def check_training_losses(data: ParityData, file: str) -> None:
    """Every term, from the image; and on the recorded costs ours is no worse than the recorded assignment."""
    arrays = data.arrays(file)
    network, image = create(data, arrays)
    with torch.no_grad():
        losses = step_losses(network.double(), arrays, image.double())
    for theirs, ours in TERMS.items():
        near(losses[ours], arrays[f"loss/{theirs}"], ours, DICE_LOSS if ours == "mask_dice" else LOSS)
    near(torch.stack(list(losses.values())).sum(dim=0), arrays["loss/total_loss"], "total", LOSS)
    similarity = torch.from_numpy(-arrays["mid/hungarian_cost"]).double()
    valid = similarity.abs().amax(dim=2) < 2  # the padding's are 999
    matching = match_masks(similarity, valid)
    chosen = similarity.gather(2, matching.clamp(min=0)[:, :, None])[..., 0]
    recorded = (similarity * torch.from_numpy(arrays["mid/permutation"])).sum(dim=2)
    assert ((chosen - recorded) * valid).sum() >= 0


def gradients(data: ParityData, dtype: torch.dtype, noise: float = 0.0) -> dict[str, Tensor]:
    """Of the mean objective, by our parameters' names."""
    arrays = data.arrays(STEP)
    network, image = create(data, arrays)
    generator = torch.Generator().manual_seed(0)

    def disturb(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * (1 + noise * torch.randn(output.shape, generator=generator, dtype=output.dtype))

    for module in network.modules() if noise else ():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(disturb)
    losses = step_losses(network.to(dtype), arrays, image.to(dtype))
    torch.stack(list(losses.values())).sum(dim=0).mean().backward()
    return {name: _gradient(parameter) for name, parameter in network.named_parameters()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.double()


def check_gradients(data: ParityData, file: str) -> None:
    """Every variable's gradient is as far from ours in float64 as rounding explains."""
    arrays = data.arrays(file)
    exact = gradients(data, torch.float64)
    rounded = [gradients(data, torch.float32), gradients(data, torch.float64, ROUNDING)]
    table = module_table(create(data, data.arrays(STEP))[0], MAX_DEEPLAB)
    used, ratios = set(), []
    for name, ours in exact.items():
        row = table[name]
        used.add(row.path)
        theirs = torch.from_numpy(np.array(row.fit(arrays[row.path], tuple(ours.shape))))
        error = (theirs - ours).norm().item()
        if ours.norm() < 1e-6:
            assert error < NO_GRADIENT, f"{row.path}: {error}, should be nothing"
            continue
        noise = max((other[name] - ours).norm().item() for other in rounded)
        assert error <= NOISE * noise + 1e-3 * ours.norm().item(), f"{row.path}: off by {error}, rounding by {noise}"
        ratios.append(error / max(noise, 1e-12))
    assert used == set(arrays)
    assert np.median(ratios) < 1


def check_three_steps(data: ParityData, file: str) -> None:
    """Learning rates, the two groups, the objective of each step, and weights whose gradients rounding leaves alone.

    Adam's epsilon stands outside of the bias correction in torch and inside in the original.
    """
    arrays, values = data.arrays(file), data.files[file]["config"]
    step_arrays = data.arrays(STEP)
    network, image = create(data, step_arrays)
    table = module_table(network, MAX_DEEPLAB)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    backbone = backbone_parameters(network.encoder)
    pretrained = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in pretrained]
    options = OptimizerOptions(
        name="adam",
        learning_rate=values["base_lr"],
        schedule="polynomial",
        polynomial_power=values["power"],
        warmup_steps=values["warmup"],
        warmup_start_factor=0.0,
    )
    optimizer = torch.optim.Adam([{"params": rest}, {"params": backbone}], eps=values["adam"]["eps"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for step, (loss, rate, backbone_rate, count, backbone_count) in enumerate(
        arrays["log_loss_lr_blr_nother_nbackbone"]
    ):
        factor = learning_rate_factor(step, options=options, steps=values["steps_total"])
        rates = [options.learning_rate * factor, options.learning_rate * factor * values["backbone_mult"]]
        np.testing.assert_allclose(rates, [rate, backbone_rate], rtol=1e-5)
        groups = [{table[names[id(parameter)]].path for parameter in group} for group in (rest, backbone)]
        assert [len(group) for group in groups] == [count, backbone_count]
        for group, value in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = value
        total = torch.stack(list(step_losses(network, step_arrays, image).values())).sum(dim=0).mean()
        near(total, loss, f"objective of step {step}", LOSS)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    _check_moves(network, before, arrays, table)


def _check_moves(
    network: MaXDeepLabNetwork, before: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray], table: Any
) -> None:
    """Where the semantic head's weights went, and how far the others: Adam's steps are nearly of one length."""
    checked = set()
    for name, value in network.named_parameters():
        path = f"final/{table[name].path}"
        if path not in arrays:
            continue
        theirs = torch.from_numpy(np.array(table[name].fit(arrays[path], tuple(value.shape)))) - before[name]
        ours = value.detach() - before[name]
        assert 0.8 < ours.norm() / theirs.norm() < 1.25, path
        if "semantic_last_layer" in path:
            assert (ours - theirs).norm() < 0.05 * theirs.norm(), path
        checked.add(path)
    assert len(checked) >= 7


CHECKS = {
    "training-mode forward + DeepLabFamilyLoss + gradients": [check_training_losses],
    "full gradients of model/train_step.npz": [check_gradients],
    "three Adam steps (trainer.py recipe)": [check_three_steps],
}
