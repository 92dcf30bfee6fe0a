"""The whole network at reduced widths, in inference mode and at several sizes.

With the reference's random weights the softmaxes are nearly one-hot and the network is badly conditioned: a change of
6e-8 of the stem's output, one rounding, changes mask logits by 2.5e-4. So every part of the network is held to the
usual tolerance on the reference's own intermediate maps, and the chain of all parts to what rounding does to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from cases_deep_mac_ops import assert_near
from cases_max_deeplab_layers import INFERENCE, first, last
from parity_data import ParityData, below
from rounding import Results, Rounding
from torch import Tensor

from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.max_deeplab import MAX_DEEPLAB
from maskwright.convert.tables import load_variables, module_table
from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork, MaXDeepLabOutputs

WEIGHTS = "model/weights.npz"


def create_network(data: ParityData, image_size: tuple[int, int]) -> MaXDeepLabNetwork:
    """The manifest's reduced network, without drop path."""
    config = data.files[WEIGHTS]["config"]
    text, override = config["text_config"], config["reduced_override"]
    number = lambda key, index=0: re.findall(rf"\b{key}: ([\d.]+)", text)[index]  # noqa: E731
    config = MaXDeepLabConfig(
        categories=coco_panoptic_categories(),
        backbone=re.findall(r'name: "(max_deeplab_\w)"', text)[0],
        image_size=image_size[0],
        num_mask_slots=override["num_mask_slots"],
        stem_width=float(number("stem_width_multiplier")),
        backbone_width=float(number("backbone_width_multiplier")),
        transformer_width=override["base_transformer_expansion"],
        memory_channels=override["memory_channels"],
        memory_feature_channels=override["global_feed_forward_network_channels"],
        feed_forward_channels=override["block_group_config"]["dual_path_transformer_layer_config"][
            "feed_forward_network_channels"
        ],
        semantic_channels=int(number("decoder_channels")),
        low_level_channels=[int(number("channels_project")), int(number("channels_project", 1))],
        pixel_head_channels=int(number("head_channels")),
        pixel_feature_channels=int(number("output_channels")),
        drop_path_keep=1.0,
    )
    network = MaXDeepLabNetwork(config)
    if network.semantic_decoder is not None:  # the originals' training size need not be square
        height, width = image_size
        network.semantic_decoder.aspp.pool_size = (height // 16 + 1, width // 16 + 1)
    return network


def create_loaded(data: ParityData, image_size: tuple[int, int]) -> MaXDeepLabNetwork:
    network = create_network(data, image_size)
    load_variables(network, module_table(network, MAX_DEEPLAB), data.arrays(WEIGHTS), "")
    return network.eval()


def normalised(image: np.ndarray) -> Tensor:
    return first(image) / 127.5 - 1


def named_outputs(outputs: MaXDeepLabOutputs, recorded: Mapping[str, np.ndarray]) -> Results:
    """By the original's names: those that are recorded."""
    semantic = last(outputs.semantic_logits)
    found = {
        "pixel_space_mask_logits": last(outputs.mask_logits),
        "transformer_class_logits": outputs.class_logits,
        "pixel_space_normalized_feature": last(outputs.pixel_feature),
        "semantic_logits": semantic,
        "semantic_logits_every4th": semantic[..., ::4],
    }
    return {f"out/{name}": value.detach() for name, value in found.items() if name in recorded}


def check_chain(create: Callable[[], MaXDeepLabNetwork], image: np.ndarray, recorded: Mapping[str, np.ndarray]) -> None:
    """All parts one after the other."""

    def infer(network: MaXDeepLabNetwork) -> Results:
        with torch.inference_mode():
            return named_outputs(network(normalised(image).double()), recorded)

    chain = Rounding(create, infer)
    assert len(chain.exact) == 4
    chain.check("out", {name: recorded[name] for name in below(chain.exact, "out/")}, INFERENCE)


def check_parts(data: ParityData, file: str) -> None:
    """Every part of the network, on what the reference's part before it gave."""
    arrays = data.arrays(file)
    image = arrays["image"]
    network = create_loaded(data, (image.shape[1], image.shape[2]))
    encoder = network.encoder
    maps = {name: first(values) for name, values in below(arrays, "enc/").items()}
    checked = set()

    def check(name: str, value: Tensor) -> None:
        assert_near(last(value), arrays[name], name, INFERENCE)
        checked.add(name)

    with torch.inference_mode():
        memory = encoder.memory.expand(len(image), -1, -1)
        check("enc/stage1", encoder.stem(normalised(image)))
        for number, stage in encoder.stages.items():
            pixel, memory = stage(maps[f"stage{int(number) - 1}"], memory)
            check(f"enc/stage{number}", pixel)
        assert encoder.stage5_extra is not None
        pixel, memory = encoder.stage5_extra(maps["stage5"], memory)
        decoded, memory = encoder.decoder(pixel, {4: maps["stage2"], 8: maps["stage3"]}, memory)
        check("enc/feature_panoptic", decoded[-1].relu())
        check("enc/transformer_class_feature", encoder.class_feature(memory))
        check("enc/transformer_mask_feature", encoder.mask_feature(memory))
        for name in ("enc/backbone_output", "enc/feature_semantic"):
            check(name, maps["stage5"].relu())
        check("dec/transformer_class_logits", network.class_head(maps["transformer_class_feature"]))
        feature = network.pixel_head(maps["feature_panoptic"])
        check("dec/pixel_space_normalized_feature", feature)
        check("dec/pixel_space_mask_logits", network.mask_head(maps["transformer_mask_feature"], feature))
        low_level = {4: maps["stage2"].relu(), 8: maps["stage3"].relu()}
        assert network.semantic_decoder is not None
        semantic = network.semantic_decoder(maps["feature_semantic"], low_level)
        check("dec/semantic_logits", network.semantic_head(semantic))
    assert checked == {name for name in arrays if name.startswith(("enc/", "dec/"))}


def check_inference(data: ParityData, file: str) -> None:
    """All parts in a chain; and the short way to the masks, which gives the same."""
    arrays = data.arrays(file)
    image = arrays["image"]
    size = (image.shape[1], image.shape[2])
    check_chain(lambda: create_loaded(data, size), image, below(arrays, "dec/"))
    network = create_loaded(data, size)
    with torch.inference_mode():
        outputs = network(normalised(image))
        torch.testing.assert_close(network.masks(normalised(image)), (outputs.mask_logits, outputs.class_logits))


def check_other_sizes(data: ParityData, file: str) -> None:
    """The same weights in networks for other crops, each with the pooling window of its own."""
    arrays = data.arrays(file)
    for size in {name.partition("/")[0] for name in arrays}:
        height, width = (int(side) for side in size.split("x"))
        recorded = below(arrays, f"{size}/")
        check_chain(partial(create_loaded, data, (height, width)), recorded["image"], recorded)


CHECKS = {
    "deeplab.DeepLab (reduced MaX-DeepLab-S)": [check_parts, check_inference],
    "same reduced model, rebuilt at 97x97 and 81x49 (crop/pool size follows)": [check_other_sizes],
}
