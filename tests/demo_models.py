"""Models without weights for each tab of the demo page, and a server with them; its tests share these."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import uvicorn
from painter import Painter
from torch import Tensor, nn

from maskwright.apps.demo_page.limits import Limits
from maskwright.apps.demo_page.server import create_demo
from maskwright.apps.named_models import NamedModel
from maskwright.apps.page.local_server import listen
from maskwright.predictor import Predictor
from maskwright.structures import Category, InstancePrediction

HOSTILE = "<img src=x onerror=document.title='broken'>"
LIMITS = Limits(upload_bytes=5_000_000, pixels=2_000_000, boxes=500, waiting=8)


class Finder(nn.Module):
    """Finds the middle of each picture to be an ellipse with a score of 0.6, of a class with a hostile name."""

    task, needs_boxes, categories = "instance", False, (Category(id=7, name=HOSTILE),)

    def __init__(self, box_prompted: nn.Module) -> None:
        super().__init__()
        self.box_prompted = box_prompted

    def forward(self, images: list[Tensor], *, score_threshold: float, max_detections: int) -> list[InstancePrediction]:
        height, width = images[0].shape[1:]
        boxes = torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])[: int(score_threshold <= 0.6)]
        (found,) = self.box_prompted.masks_from_boxes(self.box_prompted.encode(images), [boxes])
        labels, scores = torch.zeros(len(boxes), dtype=torch.int64), torch.full((len(boxes),), 0.8)
        return [replace(found, labels=labels, scores=scores, categories=self.categories)]


def named_models(box_prompted: nn.Module) -> dict[str, NamedModel]:
    """A model for each tab."""
    categories = [Category(id=4, name="dog", isthing=True), Category(id=9, name="sky", isthing=False)]
    models = {"boxes": box_prompted, "objects": Finder(box_prompted), "panoptic": Painter(categories)}
    return {
        tab: NamedModel(f"{tab} model", "123", Predictor(model, "cpu", in_place=True)) for tab, model in models.items()
    }


@contextmanager
def running_demo(models: dict[str, NamedModel], limits: Limits = LIMITS) -> Iterator[str]:
    """The address of a server in this process."""
    with listen(0) as listening:
        server = uvicorn.Server(uvicorn.Config(create_demo(models, limits), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
