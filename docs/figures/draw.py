"""Draws the figures of the site: `python docs/figures/draw.py` writes them beside itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch
import yaml

from maskwright.ops.frames import BoxFrame, sample_positions

INK, TEAL, ORANGE, PALE = "#263238", "#00796b", "#e64a19", "#cfd8dc"
FILLED_BOX = {"seen": 0.552, "unseen": 0.583}  # mean share of a box that its mask covers, of the study's measured masks
BLOB = "c0-44 14-62 34-62s34 18 34 62z"  # an object that touches its box on all sides


def svg(title: str, width: int, height: int, parts: Iterator[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="15" fill="{INK}">\n<title>{title}</title>'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def text(x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{words}</text>'


def partial_supervision() -> str:
    return svg("Boxes of every class, masks of some", 560, 270, _partial_supervision())


def _partial_supervision() -> Iterator[str]:
    bold = 'font-weight="bold"'
    yield text(110, 24, "what people drew", style=bold)
    yield text(460, 24, "what the model draws", style=bold)
    for row, (name, drawn) in enumerate([("cat", True), ("kite", False)]):
        y = 44 + 100 * row
        yield _object(10, y, drawn)
        yield text(92, y + 26, f"{name}: box and mask" if drawn else f"{name}: box only", "start")
        yield text(92, y + 48, "a seen class" if drawn else "an unseen class", "start", f'fill="{TEAL}"')
        yield _object(424, y, True)
        yield text(506, y + 46, name, "start")
        ends = f"M{204 + 6 * row} {y + 36}L240 {130 + 10 * row}M374 {130 + 10 * row}L416 {y + 40}"
        yield f'<path d="{ends}" stroke="{PALE}" stroke-width="3"/>'
    yield f'<rect x="240" y="106" width="134" height="56" rx="6" fill="{TEAL}"/>'
    yield text(307, 130, "one mask head", style='fill="#fff"')
    yield text(307, 150, "for all classes", style='fill="#fff"')
    yield text(280, 256, "A box takes 7 seconds to draw, a mask 80.")


def _object(x: float, y: float, with_mask: bool) -> str:
    fill = f'fill="{ORANGE}" fill-opacity="0.6"' if with_mask else f'fill="{PALE}"'
    return (
        f'<path d="M{x} {y + 72}m2-2{BLOB}" {fill}/>'
        f'<rect x="{x}" y="{y + 6}" width="72" height="66" fill="none" stroke="{INK}" stroke-width="2"/>'
    )


def box_frames() -> str:
    return svg("Where the samples of a box lie", 560, 250, _box_frames())


def _box_frames() -> Iterator[str]:
    """A box of 8 x 8 pixels with a grid of 4 x 4 samples, in either frame."""
    pixel, size = 22, 4
    frames: tuple[BoxFrame, ...] = ("corner", "pixel")
    for place, frame in enumerate(frames):
        left, top = 50 + 280 * place, 44
        yield text(left + 4 * pixel, 24, f"box frame: {frame}", style='font-weight="bold"')
        for line in range(9):
            at = line * pixel
            yield (
                f'<path d="M{left + at} {top}v{8 * pixel}M{left} {top + at}h{8 * pixel}" stroke="{PALE}" fill="none"/>'
            )
        yield (
            f'<rect x="{left}" y="{top}" width="{8 * pixel}" height="{8 * pixel}" fill="none" stroke="{INK}" '
            'stroke-width="2"/>'
        )
        (positions,) = sample_positions(torch.tensor([0.0]), torch.tensor([8.0]), size, frame).tolist()
        for x in positions:
            for y in positions:
                yield f'<circle cx="{left + x * pixel:g}" cy="{top + y * pixel:g}" r="5" fill="{ORANGE}"/>'
    yield text(138, 240, "first and last sample on the edges")
    yield text(418, 240, "samples in the middle of equal cells")


def seen_and_unseen() -> str:
    return svg("Published: mask AP on seen and unseen classes", 640, 270, _seen_and_unseen())


def _seen_and_unseen() -> Iterator[str]:
    """The paper's Table 2, as the package's study has it."""
    study = yaml.safe_load(files("maskwright").joinpath("studies/paper_table_2.yaml").read_text())
    yield text(320, 22, "mask AP in Table 2 of the paper (Mask R-CNN, ResNet-101)", style='font-weight="bold"')
    rows = [
        ("default_proposals", "default head, proposals"),
        ("default_ground_truth", "default head, true boxes"),
        ("hourglass20_ground_truth", "hourglass20, true boxes"),
        ("hourglass52_ground_truth", "hourglass52, true boxes"),
    ]
    for index, (row, name) in enumerate(rows):
        y = 44 + 48 * index
        yield text(190, y + 22, name, "end")
        for offset, (measure, colour) in enumerate([("mask_ap_seen", PALE), ("mask_ap_unseen", TEAL)]):
            value = 100 * study["published"][row][measure]
            yield f'<rect x="200" y="{y + 17 * offset}" width="{value * 8:.0f}" height="15" fill="{colour}"/>'
            yield text(206 + value * 8, y + 12 + 17 * offset, f"{value:.1f}", "start")
    for x, colour, name in [(200, PALE, "20 seen classes"), (360, TEAL, "60 unseen classes")]:
        yield f'<rect x="{x}" y="244" width="14" height="14" fill="{colour}"/>'
        yield text(x + 20, 256, name, "start")


def missing_masks() -> str:
    return svg("Mask IoU of two mask heads that learn from the masks of people and cars", 760, 320, _missing_masks())


def _missing_masks() -> Iterator[str]:
    """The study `partial_supervision`: a thin line is a training, a thick one the mean of a mask head's.

    missing_masks.json has the numbers of their validations, 500 steps apart, by mask head and seed.
    """
    heads = json.loads(Path(__file__).with_name("missing_masks.json").read_text())
    panels = [("seen", "people and cars: masks are learnt"), ("unseen", "all other things: they are not")]
    for left, (group, name) in zip([48, 418], panels, strict=True):
        yield text(left + 125, 24, name, style='font-weight="bold"')
        for iou in (0.54, 0.58, 0.62, 0.66, 0.70):
            yield f'<path d="M{left} {_height(iou):g}h250" stroke="{PALE}"/>'
            yield text(left - 6, _height(iou) + 5, f"{iou:.2f}", "end")
        for steps in (1000, 2000, 3000):
            yield text(left + steps / 12, 306, f"{steps:,}" + " steps" * (steps == 3000))
        yield f'<path d="M{left} {_height(FILLED_BOX[group]):g}h250" stroke="{INK}" stroke-dasharray="5 4"/>'
        yield text(left + 4, _height(FILLED_BOX[group]) - 5, "filled box", "start", 'font-size="12"')
        for head, colour in [("resnet4", ORANGE), ("hourglass20", TEAL)]:
            curves = [run[group] for run in heads[head].values()]
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            for curve, style in [*((each, 'opacity="0.35"') for each in curves), (mean, 'stroke-width="3"')]:
                points = " ".join(
                    f"{left + 500 * step / 12:.1f},{_height(iou):.1f}" for step, iou in enumerate(curve, 1)
                )
                yield f'<polyline points="{points}" fill="none" stroke="{colour}" {style}/>'
            yield text(left + 254, _height(mean[-1]) + 5, head, "start", f'fill="{colour}" font-size="12"')


def _height(iou: float) -> float:
    return 40 + (0.71 - iou) * 1400


FIGURES = {
    "partial_supervision": partial_supervision,
    "box_frames": box_frames,
    "seen_and_unseen": seen_and_unseen,
    "missing_masks": missing_masks,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw())
