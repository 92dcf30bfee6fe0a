"""Two processes on a CPU give the gradients that one gives on the joint batch, where norms do not see the batch.

Norms are frozen, and both processes divide by the same number of boxes: batch statistics and the detector's normaliser
are each process's own in training, as in the originals.
"""

import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from maskwright.models.deep_mac import DeepMAC

folder, rank = sys.argv[1], int(os.environ["RANK"])

def target(image, count):
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 30.0]])[:count] + image
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    for row, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
        masks[row, top : (top + bottom) // 2, left:right] = row == 0
    return {"boxes": boxes, "labels": torch.arange(count), "masks": masks, "has_mask": torch.arange(count) == 0,
            "iscrowd": torch.zeros(count, dtype=torch.bool), "ids": torch.arange(count), "image_id": image}

CASES = {  # boxes per image, the first half of the images on the first process
    "given": ([2, 0, 0, 0], {}),
    "detector": ([2, 0, 1, 1], {"detector": "centernet", "box_consistency_weight": 0.7}),
}

def gradients(case, images, distributed):
    counts, options = CASES[case]
    torch.manual_seed(0)
    model = DeepMAC(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], image_size=64, width=0.25,
                    backbone="hourglass10", mask_head="hourglass10", mask_head_width=8, embedding_width=16, **options)
    for module in model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    called = DistributedDataParallel(model) if distributed else model
    losses = called([pictures[i] for i in images], [target(i, counts[i]) for i in images])
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}

torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
found = {case: gradients(case, range(2 * rank, 2 * rank + 2), True) for case in CASES}
torch.distributed.destroy_process_group()
joint = {case: gradients(case, range(4), False) for case in CASES} if rank == 0 else None
torch.save({"found": found, "joint": joint}, f"{folder}/rank{rank}.pt")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_averaged_gradients_of_two_processes_are_those_of_one_on_the_joint_batch(tmp_path):
    script = tmp_path / "gradients.py"
    script.write_text(SCRIPT)
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], env={**os.environ, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in started:
            process.kill()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for case, joint in first["joint"].items():
        assert any(gradient.any() for gradient in joint.values())
        for name, expected in joint.items():
            allowed = 1e-5 * float(expected.abs().max())
            for rank in (first, second):
                torch.testing.assert_close(
                    rank["found"][case][name], expected, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
                )
