"""MaX-DeepLab in two processes: an image without a segment on one of them holds nobody up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[3])
from small_max_deeplab import SIZE, scene, small_model, target

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
model = small_model()
network = DistributedDataParallel(model.train())
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
void, everything = target(torch.full((SIZE, SIZE), -1), []), target(torch.zeros(SIZE, SIZE), [1])
for step, pair in enumerate([(scene(), void), (void, everything), (void, void)]):
    torch.manual_seed(10 * step + rank)
    losses = network([torch.rand(3, SIZE, SIZE)], [pair[rank]])
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
torch.save(dict(model.named_parameters()), f"{folder}/rank{rank}.pt")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over files")
def test_two_processes_keep_the_same_weights(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    shared = str(Path(__file__).parents[1])
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), shared], stderr=subprocess.PIPE) for rank in range(2)
    ]
    for rank in ranks:
        _, error = rank.communicate(timeout=600)
        assert rank.returncode == 0, error.decode()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name, weight in first.items():
        assert torch.isfinite(weight).all(), name
        assert torch.equal(weight, second[name]), name
