"""The mask branch as a whole, through `DeepMAC`: preprocessing, embeddings, masks and losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from cases_deep_mac_networks import HOURGLASS_MOMENTUM, INFERENCE, TRAINING
from cases_deep_mac_ops import Arrays, assert_near, channels_first, check_paste, pixel_boxes
from parity_data import ParityData, below
from torch import Tensor

from maskwright.convert.deep_mac import DEEP_MAC
from maskwright.convert.tables import Table, load_variables, module_table
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.deep_mac.centernet import CenterNetHeads
from maskwright.models.deep_mac.losses import MaskInstances, crop_mask_targets
from maskwright.models.deep_mac.network import Maps
from maskwright.nn.feature_maps import Backbone
from maskwright.nn.hourglass import Hourglass
from maskwright.nn.image_batch import ImageBatch, resize_image
from maskwright.nn.layers import prediction_head
from maskwright.structures import Target

GRADIENT = 1e-3
EMBEDDINGS = {"PIXEL_EMBEDDING": "pixel_embedding", "INSTANCE_EMBEDDING": "instance_embedding"}
MASK_LOSSES = {
    "mask_cross_entropy": "deep_mask_estimation",
    "mask_dice": "deep_mask_estimation",
    "box_consistency": "deep_mask_box_consistency",
}
OBJECT_HEADS = {"object_center": "center", "box/scale": "size", "box/offset": "offset"}
# Per channel of 0..255, in RGB order here; the originals list them for BGR.
MEAN = (119.9165958 / 255, 114.03422265 / 255, 104.01362025 / 255)
STD = (70.9150767 / 255, 69.89082075 / 255, 73.6027665 / 255)


class SmallHourglass(Backbone):
    """A backbone of the fixture's own depth and widths."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        network = Hourglass(
            3,
            config["input_channel_dims"],
            list(zip(config["channel_dims_per_stage"], config["blocks_per_stage"], strict=True)),
            stacks=config["num_hourglasses"],
            stem_stride=4,
            norm_momentum=HOURGLASS_MOMENTUM,
        )
        super().__init__(network.out_channels, (4,) * config["num_hourglasses"], network.size_divisor)
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network(images)


def create_model(config: Mapping[str, Any], detector: Literal["centernet"] | None = None, **values: Any) -> DeepMAC:
    """The model of a fixture, its backbone and heads replaced where the fixture's are smaller."""
    kernel = (3, 3) if config.get("embedding_head_kernel", "3x3") == "3x3" else (1, 3)
    model = DeepMAC(
        categories=[{"id": i + 1, "name": str(i)} for i in range(config["num_classes"])],
        image_size=config.get("size", 128),
        detector=detector,
        backbone="hourglass10",
        mask_head=config["network_type"],
        mask_head_width=config["num_init_channels"],
        mask_size=config["mask_size"],
        pixel_embedding_dim=config["pixel_embedding_dim"],
        instance_embedding_dim=config["dim"],
        embedding_kernel=kernel,
        resize="tf1",
        image_mean=MEAN,
        image_std=STD,
        channel_order="bgr",
        norm_momentum=HOURGLASS_MOMENTUM,
        **{"box_consistency_weight": config.get("box_consistency_loss_weight", 0.0), **values},
    )
    if "backbone" in config:
        network = model.network
        network.backbone = backbone = SmallHourglass(config["backbone"])
        for name, dim in (("pixel_embedding", "pixel_embedding_dim"), ("instance_embedding", "dim")):
            heads = [
                prediction_head(backbone.channels, config["embedding_head_filters"], config[dim], kernel)
                for _ in backbone.strides
            ]
            setattr(network, name, torch.nn.ModuleList(heads))
        if detector:
            widths = (backbone.channels, config["num_classes"], config["center_and_box_head_filters"])
            network.detector = torch.nn.ModuleList(CenterNetHeads(*widths) for _ in backbone.strides)
    return model


def load_model(model: DeepMAC, variables: Mapping[str, np.ndarray]) -> Table:
    """Load every tensor; the table by full names of our tensors and full paths of the original's."""
    table = module_table(model.network, {**DEEP_MAC, SmallHourglass: {"network": "_network"}})
    detector = [f"model/_prediction_head_dict/{name.replace('/', '.S')}/" for name in OBJECT_HEADS]
    load_variables(model.network, table, variables, "model", () if model.network.detector else detector)
    return {name: replace(row, path=f"model/{row.path}") for name, row in table.items()}


def check_preprocessing(data: ParityData, file: str) -> None:
    """Sizes, the TF1 resize with padding, and the normalisation."""
    arrays = data.arrays(file)
    size = data.files[file]["config"]["S"]
    images = [name for name in arrays if re.fullmatch(r"image\d+", name)]
    assert images
    batch = ImageBatch(size, "tf1", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    for name in images:
        index = name.removeprefix("image")
        image = channels_first(arrays[name])[0]
        resized, (lies,) = batch([image])
        assert (*lies.resized_size, 3) == tuple(arrays[f"true_shape{index}"])
        assert_near(resized, channels_first(arrays[f"resized{index}"]), f"resized{index}", 1e-6)
    for target in (int(name.rsplit("_", 1)[1]) for name in arrays if name.startswith("size_out_")):
        batch = ImageBatch(target, "tf1", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        for given, expected in zip(arrays["size_in"], arrays[f"size_out_{target}"], strict=True):
            assert batch.geometry(torch.empty(3, *given, device="meta")).resized_size == tuple(expected), given
    image = channels_first(arrays["norm_in"])[0].float() / 255
    normalise = ImageBatch(max(image.shape[1:]), "tf1", MEAN, STD, "bgr")
    normalised, _ = normalise([image])
    expected = channels_first(arrays["norm_out"])
    assert_near(normalised[:, :, : image.shape[1], : image.shape[2]], expected, "norm_out", 1e-5)
    assert resize_image(image, (image.shape[1], image.shape[2]), "tf1") is image


def check_inference(data: ParityData, file: str) -> None:
    """A photograph and boxes to masks, every intermediate map on the way, and the pasted masks."""
    arrays = data.arrays(file)
    model = create_model(data.files[file]["config"]).eval()
    load_model(model, below(arrays, "w/"))
    image = channels_first(arrays["image"])[0]
    with torch.no_grad():
        batch, _ = model.image_batch([image])
        assert_near(batch, channels_first(arrays["preprocessed"]), "preprocessed", 1e-5)
        for index, (features, maps) in enumerate(
            zip(model.network.backbone(batch), model.network.stack_outputs(batch)[0], strict=True)
        ):
            assert_near(features, channels_first(arrays[f"features/{index}"]), f"features/{index}", INFERENCE)
            for name, values in zip(EMBEDDINGS, maps, strict=False):
                assert_near(values, channels_first(arrays[f"heads/{name}/{index}"]), f"{name}/{index}", INFERENCE)
        boxes = pixel_boxes(arrays["provided_boxes"][0], (image.shape[1], image.shape[2])).float()
        (prediction,) = model.masks_from_boxes(model.encode([image]), [boxes])
    assert_near(prediction.mask_probabilities, arrays["provided_masks"][0], "provided_masks", INFERENCE)
    assert (prediction.masks == torch.from_numpy(arrays["pasted_provided"] > 0.5)).float().mean() > 0.999
    check_paste(arrays)


def check_provided_masks(data: ParityData, file: str) -> None:
    """Masks of given boxes from recorded embeddings, with padding in the image."""
    arrays = data.arrays(file)
    config = data.files[file]["config"]
    model = create_model(config).eval()
    load_variables(model.network.mask_head, module_table(model.network.mask_head, DEEP_MAC), below(arrays, ""), "w")
    maps = recorded_maps(arrays, "")
    for key in ("det/detection_boxes_strided", "provided_boxes_strided"):
        name = key.replace("det/detection_boxes_strided", "det").replace("provided_boxes_strided", "provided")
        strided = torch.from_numpy(arrays[key])[..., [1, 0, 3, 2]]
        for image, boxes in enumerate(strided):
            index = torch.full((len(boxes),), image)
            with torch.no_grad():
                masks = model.network.mask_logits(maps, boxes * config["stride"], index).sigmoid()
            assert_near(masks, arrays[f"{name}/detection_masks"][image], f"{name}/{image}", INFERENCE)


def check_full_resolution_masks(data: ParityData, file: str) -> None:
    """Masks of given boxes from the whole map, enlarged and cut out at the boxes."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    values = {"predict_full_resolution_masks": True, "postprocess_crop_size": config["postprocess_crop_size_fullres"]}
    model = create_model(config, **values).eval()
    load_variables(model.network.mask_head, module_table(model.network.mask_head, DEEP_MAC), below(arrays, ""), "w")
    boxes = torch.from_numpy(arrays["provided_boxes_strided"][0, :2])[:, [1, 0, 3, 2]] * config["stride"]
    with torch.no_grad():
        masks = model.network.mask_logits(recorded_maps(arrays, ""), boxes, torch.zeros(2, dtype=torch.int64)).sigmoid()
    assert_near(masks, arrays["fullres/provided_masks_img0_first2"], "fullres/provided_masks", INFERENCE)


def check_mask_losses_of_stacks(data: ParityData, file: str) -> None:
    """The weighted losses of the mask branch in every case and both modes; in inference mode all images at once."""
    arrays = data.arrays(file)
    config = data.files[file]["config"]
    count = sum(name.startswith("pred/PIXEL_EMBEDDING/") for name in arrays)
    stacks = [recorded_maps(arrays, f"/{stack}") for stack in range(count)]
    size = (config["H"], config["W"])
    for case, options in config["cases"].items():
        weight = config["task_loss_weight"]
        values = {
            "dice_weight" if options.get("dice") else "cross_entropy_weight": weight,
            "box_consistency_weight": options.get("box_cons", 0.0),
            "predict_full_resolution_masks": options.get("full_res", False),
        }
        values.setdefault("cross_entropy_weight", 0.0)
        allowed = options.get("allowed")
        for mode in ("eval", "train"):
            model = create_model(config, **values).train(mode == "train")
            head = model.network.mask_head
            load_variables(head, module_table(head, DEEP_MAC), below(arrays, ""), "w")
            with torch.no_grad():
                losses = losses_image_by_image(model, stacks, arrays, size, allowed, clip=mode == "train")
                if mode == "eval":
                    together = model.mask_losses(stacks, targets(arrays, size, allowed))
                    assert all(torch.isclose(together[name], value, rtol=1e-4) for name, value in losses.items())
            assert len(losses) == 1 + bool(options.get("box_cons"))
            for name, value in losses.items():
                assert_near(value, arrays[f"loss/{case}/{mode}/{MASK_LOSSES[name]}"], f"{case}/{mode}/{name}", TRAINING)


def losses_image_by_image(
    model: DeepMAC, stacks: list[Maps], arrays: Arrays, size: tuple[int, int], allowed: list[int] | None, *, clip: bool
) -> dict[str, Tensor]:
    """The losses of the mask branch with the original's order of passes: per stack, per image, all rows of each.

    Its batch norms see one image's rows at a time, padding and disallowed classes included, which `DeepMAC`
    does not (stated there); the original clips the boxes in training only.
    """
    total: dict[str, Tensor] = {}
    for maps in stacks:
        for image in range(len(maps[0])):
            true_boxes = pixel_boxes(arrays[f"gt_boxes{image}"], size)
            boxes = (clipped(true_boxes, size) if clip else true_boxes).float()
            logits = model.network.head_logits(maps, boxes, torch.full((len(boxes),), image))
            known, real = (torch.from_numpy(allowed_rows(arrays, image, ids)) for ids in (allowed, None))
            masks = crop_mask_targets(
                torch.from_numpy(arrays[f"gt_masks{image}"])[known] > 0, boxes[known], model.config
            )
            index = torch.zeros(int(real.sum()), dtype=torch.int64)
            instances = MaskInstances(boxes[real], true_boxes[real].float(), index, known[real], masks)
            for name, value in model.mask_loss([logits[real]], instances, 1, size).items():
                total[name] = total.get(name, 0.0) + value / (len(stacks) * len(maps[0]))
    return total


def recorded_maps(arrays: Arrays, suffix: str) -> Maps:
    """Embedding maps of the fixture, with an empty image of the size they belong to."""
    pixel, instance = (channels_first(arrays[f"pred/{name}{suffix}"]) for name in EMBEDDINGS)
    count, _, height, width = pixel.shape
    return pixel, instance, torch.zeros(count, 3, 4 * height, 4 * width)


def allowed_rows(arrays: Arrays, image: int, allowed: list[int] | None) -> np.ndarray:
    """Rows that have a weight and a class whose masks may be used (ids from 1; none given: all)."""
    ids = arrays[f"gt_classes{image}"].argmax(axis=1) + 1
    weights = arrays[f"gt_weights{image}"]
    assert set(np.unique(weights)) <= {0.0, 1.0}
    return (weights > 0) & (np.isin(ids, allowed) if allowed else True)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes at least 1e-6 of the frame wide, then inside it."""
    frame = torch.tensor([size[1], size[0]])
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clamp(min=0.5e-6 * frame)
    return torch.cat([centre - half, centre + half], dim=1).clamp(min=0).minimum(torch.cat([frame, frame]))


def targets(arrays: Arrays, size: tuple[int, int], allowed: list[int] | None) -> list[Target]:
    """The fixture's ground truth without its padding rows."""
    found: list[Target] = []
    for image in range(sum(name.startswith("gt_boxes") for name in arrays)):
        real = arrays[f"gt_weights{image}"] > 0
        has_mask = torch.from_numpy(allowed_rows(arrays, image, allowed)[real])
        masks = torch.from_numpy(arrays[f"gt_masks{image}"][real] > 0)
        found.append(
            {
                "boxes": pixel_boxes(arrays[f"gt_boxes{image}"][real], size).float(),
                "labels": torch.from_numpy(arrays[f"gt_classes{image}"][real].argmax(axis=1)),
                "masks": masks & has_mask[:, None, None],
                "has_mask": has_mask,
                "iscrowd": torch.zeros(len(masks), dtype=torch.bool),
                "ids": torch.arange(len(masks)),
                "image_id": image,
            }
        )
    return found
