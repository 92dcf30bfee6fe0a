"""What is claimed of GPUs: `pytest -m gpu -n 0`. Without one, with `MASKWRIGHT_GPU_TESTS=cpu` before it, a dry run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_deep_mac
import small_deep_marc
import small_max_deeplab
import torch

from maskwright.predictor import Predictor

pytestmark = pytest.mark.gpu

SEGMENTATION = torch.cat([torch.zeros(30, 65), torch.ones(35, 65)])


def deep_mac() -> tuple[Any, torch.Tensor, dict[str, Any]]:
    categories = [{"id": 1, "name": "cat"}]
    model = small_deep_mac.build(detector="centernet", categories=categories, mask_quality=True)
    return model, torch.rand(3, 64, 64), small_deep_mac.make_target([[4, 6, 40, 50], [20, 10, 60, 60]])


def deep_marc() -> tuple[Any, torch.Tensor, dict[str, Any]]:
    return small_deep_marc.build(), torch.rand(3, 128, 128), small_deep_marc.target(small_deep_marc.BOXES)


def max_deeplab() -> tuple[Any, torch.Tensor, dict[str, Any]]:
    target = small_max_deeplab.target(SEGMENTATION, [0, 1])
    return small_max_deeplab.small_model(), torch.rand(3, 65, 65), dict(target)


families = pytest.mark.parametrize("build", [deep_mac, deep_marc, max_deeplab])


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """The GPU, or what `MASKWRIGHT_GPU_TESTS` says for a dry run; convolutions in whole float32, as on a CPU."""
    kind = os.environ.get("MASKWRIGHT_GPU_TESTS", "cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device(kind)


def close(found: torch.Tensor, expected: torch.Tensor, within: float) -> None:
    torch.testing.assert_close(found.float().cpu(), expected.float(), rtol=0, atol=within)


@pytest.mark.parametrize("build", [deep_mac, deep_marc])
@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-3), ("bfloat16", 0.15)])
def test_masks_of_boxes_are_those_of_the_cpu(device: torch.device, build: Callable[[], Any], precision, within):
    torch.manual_seed(0)
    model, image, target = build()
    boxes = target["boxes"]
    expected = Predictor(model.eval(), "cpu", "float32").predict(image, boxes)
    found = Predictor(model, str(device), precision).predict(image, boxes)
    close(found.boxes, expected.boxes, 1e-3)
    close(found.mask_probabilities, expected.mask_probabilities, within)
    assert (found.masks.cpu() != expected.masks).float().mean() < 0.15


def test_panoptic_logits_are_those_of_the_cpu(device: torch.device):
    torch.manual_seed(0)
    model, image, _ = max_deeplab()
    batch = image[None]
    with torch.inference_mode():
        expected = model.eval().network.masks(batch)
        found = model.to(device).network.masks(batch.to(device))
        for own, other in zip(found, expected, strict=True):
            close(own, other, 1e-3 * float(other.abs().max()))
        assert model([image.to(device)])[0].segmentation.shape == (65, 65)


@families
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_training_step_of_each_family(device: torch.device, build: Callable[[], Any], precision: Any):
    torch.manual_seed(0)
    model, image, target = build()
    model.to(device).train()
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in target.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
        losses = model([image.to(device)] * 2, [moved] * 2)
    total = torch.stack([loss.float() for loss in losses.values()]).sum()
    total.backward()
    assert total.isfinite()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert len(gradients) > 0.8 * len(before)
    assert all(gradient.isfinite().all() for gradient in gradients)
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


TWO_PROCESSES = """
import sys, torch, torch.distributed
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[3])
import small_deep_mac
rank, folder, kind = int(sys.argv[1]), sys.argv[2], sys.argv[4]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
device = torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
model = small_deep_mac.build()
if kind == "cuda":
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
network = DistributedDataParallel(model.to(device).train(), broadcast_buffers=False)
target = small_deep_mac.make_target([[4, 6, 40, 50]])
image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(rank))
torch.manual_seed(rank)
losses = network([image.to(device)], [{k: v.to(device) if torch.is_tensor(v) else v for k, v in target.items()}])
torch.stack(list(losses.values())).sum().backward()
torch.optim.SGD(model.parameters(), lr=0.01).step()
torch.save({k: v.cpu() for k, v in model.state_dict().items()}, f"{folder}/rank{rank}.pt")
"""


def test_two_processes_share_the_statistics_of_norms(device: torch.device, tmp_path: Path):
    """On one GPU or two (over gloo, which lets two processes have one). A CPU has no norms that do so."""
    shared = str(Path(__file__).parents[1] / "models")
    command = [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), shared, device.type], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, error = rank.communicate(timeout=600)
        assert rank.returncode == 0, error.decode()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    statistics = [name for name in first if name.endswith("running_mean")]
    assert statistics
    for name in first.keys() - (set() if device.type == "cuda" else {n for n in first if "running_" in n}):
        torch.testing.assert_close(first[name], second[name])
