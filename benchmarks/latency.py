"""Where the time of a prediction goes, stage by stage, beside the machine's own convolution rate.

    python benchmarks/latency.py MODEL [--threads 2] [--image-size 480 640] [--boxes 100] [--batch-size 1]
        [--precision float32 bfloat16] [--compile] [--prompt] [--device cuda] [--image FILE] [--json OUT]

MODEL is a recipe (with random weights, whose masks mean nothing), a weights folder, or a bundled model. The rate is
that of one channels-last 3 x 3 convolution 256 -> 256 at 128 x 128 in the same precision, measured before and after
each prediction; every number is the median of `--repeats`. Beside seconds on the clock stand those of the processor,
which other programs on the machine disturb less. With two precisions their predictions alternate. The peak memory of
the process (on a GPU: of its tensors) includes loading; each precision has a model of its own:

    python benchmarks/latency.py deep_mac/512_voc_only --prompt --boxes 10000 --repeats 1 --warm-up 0
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from precision import mask_ious
from stopwatch import Stopwatch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskwright.data.images import read_image
from maskwright.errors import UserError
from maskwright.evaluation.report import format_table
from maskwright.files import write_json
from maskwright.models.hub import family_class, from_pretrained
from maskwright.predictor import PRECISIONS, Predictor, choose_device, compile_network
from maskwright.structures import InstancePrediction
from maskwright.training.recipes import recipe_names, resolve_recipe

CONVOLUTION_FLOP = 2 * 256 * 256 * 3 * 3 * 128 * 128
FEW = 100  # boxes are enough for the statistics of norms
CONVOLUTIONS = 3  # before and after each prediction
BOX_CELLS = 72.0  # side of the boxes that an untrained detector finds: also those centred in the padding meet the image

# Time belongs to the innermost stage that is running; paths that a model does not have are left out.
_PROMPTED = {"network.backbone": "backbone", "network.mask_logits": "crop", "network.mask_head": "mask head"}
STAGES = {
    "deep_mac": {**_PROMPTED, "network.maps": "heads", "network.maps_and_detection": "heads"},
    "deep_marc": {
        **_PROMPTED,
        "network.maps": "backbone",
        "network.proposals": "proposals",
        "network.roi_heads": "box head",
    },
    "max_deeplab": {
        "network.masks": "heads",
        "network.encoder": "memory features",
        "network.encoder.stem": "stem",
        **{f"network.encoder.stages.{number}": f"stage {number}" for number in range(1, 6)},
        "network.encoder.stage5_extra": "stage 5 again",
        "network.encoder.decoder": "decoder",
        "post_processing": "merging",
    },
}
# What is compiled is one stage, for there are no calls within it.
COMPILED_STAGES = {
    "network.maps": "network",
    "network.maps_and_detection": "network",
    "network.masks": "network",
    "network.proposals": "proposals",
    "network.roi_heads": "box head",
    "network.mask_logits": "crop and mask head",
    "post_processing": "merging",
}
PREPARATION = {"image_batch": "pre-processing"}
REST = "decoding"
PASTING = "pasting"


@dataclass(frozen=True)
class Work:
    """What one prediction is asked for: images, and boxes of each or how many to find."""

    images: list[Tensor]
    boxes: list[Tensor] | None
    count: int

    def predict(self, predictor: Predictor, stopwatch: Stopwatch) -> list[Any]:
        """One prediction, its masks pasted and encoded as they are written to files."""
        with stopwatch.stage(REST), predictor.inference():
            predictions = self.run(predictor.model)
        with stopwatch.stage(PASTING):
            for prediction in predictions:
                prediction.to_coco(0, *([] if isinstance(prediction, InstancePrediction) else ["image.jpg"]))
        return predictions

    def run(self, model: Any) -> list[Any]:
        """The model's part of a prediction."""
        device = next(model.parameters()).device
        images = [image.to(device) for image in self.images]
        if self.boxes is None:
            return model(images, score_threshold=0.0, max_detections=self.count)
        return model.masks_from_boxes(model.encode(images), self.boxes)


def create_model(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, Work]:
    """The model of a recipe with random weights, or one with its own, in eval mode; and what to ask of it."""
    if name not in recipe_names() and Path(name).suffix not in (".yaml", ".yml"):
        model = from_pretrained(name)
        return model, create_work(model, arguments)
    recipe = resolve_recipe(name)
    values = dict(recipe.model)
    if not values.get("categories"):
        values["categories"] = [{"id": index + 1, "name": str(index + 1), "isthing": True} for index in range(80)]
    if "pretrained_backbone" in values:
        values["pretrained_backbone"] = False
    if "min_box_score" in values:
        values["min_box_score"] = 0.0  # random weights are sure of nothing, and `--boxes` many are to be found
    torch.manual_seed(0)
    model = family_class(recipe.family)(**values).eval()
    work = create_work(model, arguments)
    settle(model, work)
    return model, work


@torch.no_grad()
def settle(model: nn.Module, work: Work) -> None:
    """Let random weights give numbers of a common size, and boxes with an extent, as trained ones do.

    Otherwise the values of a deep network grow from layer to layer, and centre maps have no peaks.
    """
    few = None if work.boxes is None else [boxes[:FEW] for boxes in work.boxes]
    for heads in getattr(getattr(model, "network", None), "detector", None) or []:
        nn.init.zeros_(heads.size[-1].weight)
        nn.init.zeros_(heads.offset[-1].weight)
        nn.init.constant_(heads.size[-1].bias, BOX_CELLS)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    Work(work.images, few, min(work.count, FEW)).run(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def create_work(model: Any, arguments: argparse.Namespace) -> Work:
    """The picture, or noise, as often as asked for; boxes of a quarter of its sides for models that need them."""
    if model.task == "panoptic" and (arguments.prompt or arguments.boxes is not None):
        raise UserError(f"{arguments.model} finds all segments by itself: it takes neither --prompt nor --boxes")
    generator = torch.Generator().manual_seed(0)
    if arguments.image is not None:
        image = read_image(arguments.image)
    else:
        image = torch.randint(0, 256, (3, *arguments.image_size), dtype=torch.uint8, generator=generator)
    images = [image] * arguments.batch_size
    count = arguments.boxes or 100
    if not (arguments.prompt or model.needs_boxes):
        return Work(images, None, count)
    sides = torch.tensor([image.shape[2], image.shape[1]])
    corners = torch.rand(count, 2, generator=generator) * sides * 0.75
    boxes = torch.cat([corners, corners + sides * 0.25], dim=1)
    return Work(images, [boxes] * arguments.batch_size, count)


def convolution_rates(device: torch.device, precision: str) -> Callable[[], list[tuple[float, float]]]:
    """A function that measures the machine's FLOP per second and per processor second, some times."""
    dtype = getattr(torch, precision)
    layer = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 128, 128, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def measure() -> list[tuple[float, float]]:
        rates = []
        for _ in range(CONVOLUTIONS):
            wall, cpu = seconds(device)
            layer(x)
            after_wall, after_cpu = seconds(device)
            rates.append((CONVOLUTION_FLOP / (after_wall - wall), CONVOLUTION_FLOP / max(after_cpu - cpu, 1e-9)))
        return rates

    measure()
    return measure


def seconds(device: torch.device) -> tuple[float, float]:
    """On the clock, and of the processor; all of the device's work is done by then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


class Run:
    """One precision's predictor with all of its measurements."""

    def __init__(self, precision: str, arguments: argparse.Namespace) -> None:
        self.precision = precision
        model, self.work = create_model(arguments.model, arguments)
        family = str(model.family)
        self.predictor = Predictor(model, arguments.device, precision, in_place=True)
        self.stages = PREPARATION | (COMPILED_STAGES if arguments.compile else STAGES[family])
        self.memory_before = peak_memory(self.predictor.device)
        with FlopCounterMode(display=False) as counter:
            flop = Stopwatch(lambda: (float(counter.get_total_flops()),))
            with flop.watch(self.predictor.model, self.stages):
                predictions = self.work.predict(self.predictor, flop)
        self.flop = {stage: count for stage, (count,) in flop.spent.items()}
        self.found = [len(p if isinstance(p, InstancePrediction) else p.segments_info) for p in predictions]
        if arguments.compile:
            compile_network(self.predictor.model)
        for _ in range(arguments.warm_up):
            self.work.predict(self.predictor, Stopwatch(tuple))
        self.measure_rates = convolution_rates(self.predictor.device, precision)
        self.rates: list[tuple[float, float]] = []
        self.spent: list[dict[str, list[float]]] = []

    def once(self) -> None:
        """Convolutions, a prediction, convolutions."""
        self.rates += self.measure_rates()
        stopwatch = Stopwatch(lambda: seconds(self.predictor.device))
        with stopwatch.watch(self.predictor.model, self.stages):
            self.work.predict(self.predictor, stopwatch)
        self.spent.append(stopwatch.spent)
        self.rates += self.measure_rates()

    def results(self) -> dict[str, Any]:
        """Per stage and in all: seconds, processor seconds, FLOP, and both rates as fractions of the convolution's."""
        rate, cpu_rate = (median(values) for values in zip(*self.rates, strict=True))
        rows = {stage: [spent[stage] for spent in self.spent] for stage in self.spent[0]}
        rows["all"] = [[sum(values) for values in zip(*spent.values(), strict=True)] for spent in self.spent]
        flop = {**self.flop, "all": sum(self.flop.values())}
        stages = {}
        for stage, spent in rows.items():
            wall, cpu = (median(values) for values in zip(*spent, strict=True))
            stages[stage] = {
                "seconds": wall,
                "cpu_seconds": cpu,
                "gflop": flop[stage] / 1e9,
                "of_rate": flop[stage] / wall / rate,
                "of_cpu_rate": flop[stage] / max(cpu, 1e-9) / cpu_rate,
            }
        return {"gflop_per_second": rate / 1e9, "gflop_per_cpu_second": cpu_rate / 1e9, "stages": stages}


def mask_agreement(runs: list[Run]) -> float | None:
    """Mean IoU of the masks of the last run's precision with those of the first, from the same given boxes."""
    if runs[0].work.boxes is None or len(runs) < 2:
        return None
    first, *_, last = (run.work.predict(run.predictor, Stopwatch(tuple)) for run in runs)
    overlaps = [mask_ious(exact.masks, other.masks) for exact, other in zip(first, last, strict=True)]
    return float(torch.cat(overlaps).mean())


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().split("\n") if "model name" in line]
        processor = names[0] if names else processor
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    return {"device": name, "threads": threads, "torch": torch.__version__}


def peak_memory(device: torch.device) -> float:
    """The most memory, in 10^9 bytes, that this process has held: of the GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(results: dict[str, Any]) -> str:
    """One line per stage."""
    columns = {
        "s": "seconds",
        "CPU s": "cpu_seconds",
        "GFLOP": "gflop",
        "of rate": "of_rate",
        "by CPU s": "of_cpu_rate",
    }
    rows = [[stage, *(values[key] for key in columns.values())] for stage, values in results["stages"].items()]
    return format_table(["stage", *columns], rows)


def at_least(smallest: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number of `smallest` or more."""

    def whole_number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, but got {text}")
        return int(text)

    return whole_number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="recipe, weights folder, or bundled model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=at_least(1), default=2, help="of torch")
    parser.add_argument("--image-size", type=at_least(1), nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--image", metavar="FILE", help="this picture instead of noise")
    parser.add_argument("--batch-size", type=at_least(1), default=1)
    parser.add_argument("--boxes", type=at_least(1), metavar="N", help="per image, found or given (default: 100)")
    parser.add_argument("--prompt", action="store_true", help="give the boxes also to a model that could find them")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument("--warm-up", type=at_least(0), default=2, metavar="N", help="predictions that are not measured")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: expected a file in a folder that is there")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All precisions in turn, `repeats` times."""
    torch.set_num_threads(arguments.threads)
    choose_device(arguments.device)
    runs = [Run(precision, arguments) for precision in arguments.precision]
    for _ in range(arguments.repeats):
        for run in runs:
            run.once()
    device = runs[0].predictor.device
    return {
        "machine": machine(device, arguments.threads),
        "instances": runs[0].found,
        "peak_memory": peak_memory(device),
        "peak_memory_before": runs[-1].memory_before,
        "mask_iou": mask_agreement(runs),
        "precisions": {run.precision: run.results() for run in runs},
    }


def main() -> None:
    arguments = parse_arguments()
    try:
        results = measure(arguments)
    except UserError as error:
        print(f"latency: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print(f"instances or segments per image {results['instances']}")
    memory, before = results["peak_memory"], results["peak_memory_before"]
    print(f"peak memory of the process {memory:.2f} GB; before the first prediction it was {before:.2f} GB")
    for precision, numbers in results["precisions"].items():
        print(f"\n{precision}: one convolution {numbers['gflop_per_second']:.0f} GFLOP/s")
        print(table(numbers))
    first, *_, last = (numbers["stages"]["all"] for numbers in [*results["precisions"].values()] * 2)
    if len(results["precisions"]) > 1:
        speeds = [first[key] / last[key] for key in ("seconds", "cpu_seconds")]
        print(f"\n{arguments.precision[-1]} is {speeds[0]:.2f} times as fast ({speeds[1]:.2f} by CPU seconds)")
    if results["mask_iou"] is not None:
        print(f"mean IoU of its masks with those of {arguments.precision[0]}: {results['mask_iou']:.4f}")
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
