"""Values of models: each has a default and an explanation, and is refused by name where it has no meaning."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Literal

import pytest
import small_deep_mac
import small_deep_marc
from small_max_deeplab import small_model

from maskwright.errors import UserError
from maskwright.models.config import FamilyConfig, check_label_space, setting
from maskwright.models.deep_mac import DeepMAC, DeepMACConfig
from maskwright.models.deep_marc import DeepMARCConfig
from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.models.max_deeplab import MaXDeepLabConfig

FAMILIES = [small_deep_mac.build, small_deep_marc.build, small_model]
CONFIGS = [DeepMACConfig, DeepMARCConfig, MaXDeepLabConfig]
CAT, DOG = {"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}


def test_label_spaces():
    check_label_space(None, None)
    check_label_space([], [])
    check_label_space((CAT, {**DOG, "isthing": False, "supercategory": "animal"}), ["cat", "neither"])


@pytest.mark.parametrize(
    ("categories", "mask_classes", "message"),
    [
        ("cat", None, "categories must be a list, but got 'cat'"),
        ({"id": 1, "name": "cat"}, None, "categories must be a list, but got {'id': 1"),
        ([CAT, "dog"], None, "categories: number 1 must have a whole number 'id' and a text 'name', but got 'dog'"),
        ([{"name": "cat"}], None, "number 0 must have a whole number 'id'"),
        ([{"id": True, "name": "cat"}], None, "but got {'id': True"),
        ([{"id": 1.0, "name": "cat"}], None, "but got {'id': 1.0"),
        ([{"id": 1, "name": None}], None, "a text 'name', but got {'id': 1, 'name': None}"),
        ([CAT, {"id": 7, "name": "dog"}], None, r"each needs its own id, but these repeat: \[7\]"),
        ([CAT, {"id": 3, "name": "cat"}], None, r"each needs its own name, but these repeat: \['cat'\]"),
        ([CAT], "cat", "mask_classes must be a list, but got 'cat'"),
        ([CAT], ["cat", 7], "mask_classes must be names of classes, but got 7"),
    ],
)
def test_what_is_no_label_space(categories, mask_classes, message):
    with pytest.raises(ValueError, match=message):
        check_label_space(categories, mask_classes)


MEANINGLESS = [math.nan, math.inf, -math.inf, True, "1", None, [1], -1]


def config_with(value_type, **limits):
    """A config with one more value, whose default is 1."""

    class OneValue(FamilyConfig):
        n: value_type = setting(1, **limits)
        image_size: int = 8

    return dataclass(frozen=True, kw_only=True)(OneValue)


@pytest.mark.parametrize(
    ("value_type", "limits", "good", "bad", "message"),
    [
        (int, {"at_least": 2}, [2, 300], [1, 0, 2.0], "n must be at least 2 and a whole number, but got "),
        (float, {"at_least": 0}, [0.0, 0.5, 300.0], [-1e-9], "n must be at least 0 and finite, but got "),
        (float, {"above": 0}, [1e-9, 300.0], [0, 0.0], "n must be above 0 and finite, but got "),
        (
            float,
            {"at_least": 0, "at_most": 1},
            [0.0, 0.25, 1.0],
            [1.001],
            "n must be at least 0 and at most 1, but got ",
        ),
        (float, {"above": 0, "at_most": 1}, [0.25, 1.0], [0, 1.001], "n must be above 0 and at most 1, but got "),
    ],
)
def test_numbers(value_type, limits, good, bad, message):
    config_class = config_with(value_type, **limits)
    for value in good:
        assert config_class(n=value).n == value
    for value in bad + MEANINGLESS:
        with pytest.raises(ValueError, match=message):
            config_class(n=value)


def test_null_is_refused_unless_the_type_has_it():
    assert config_with(int | None, at_least=1)(n=None).n is None
    with pytest.raises(ValueError, match="n must be one of a, b, null, but got 'c'"):
        config_with(Literal["a", "b"] | None)(n="c")
    with pytest.raises(ValueError, match="n must be one of a, b, but got None"):
        config_with(str, one_of=["a", "b"])(n=None)


@pytest.mark.parametrize("config_class", CONFIGS)
class TestConfigs:
    def test_every_value_is_documented_and_immutable(self, config_class):
        for entry in fields(config_class):
            assert f"        {entry.name}: " in config_class.__doc__, entry.name
        with pytest.raises(FrozenInstanceError):
            config_class(categories=[CAT]).width = 2.0

    def test_names_of_registries_are_in_the_documentation(self, config_class):
        assert "{" not in config_class.__doc__
        for entry in fields(config_class):
            for name in entry.metadata.get("one_of", ()):
                assert name in config_class.__doc__

    def test_every_value_has_a_default(self, config_class):
        assert config_class(categories=[CAT]) == config_class(categories=[CAT], mask_classes=None)

    def test_every_limit_and_registry_is_kept(self, config_class):
        for entry in fields(config_class):
            wrong = -1.0 if "float" in entry.type else "no such name" if entry.metadata.get("one_of") else -1
            if entry.metadata.get("limits") or entry.metadata.get("one_of"):
                with pytest.raises(ValueError, match=f"{entry.name} must be "):
                    config_class(**{"categories": [CAT], entry.name: wrong})


def test_a_model_takes_a_config_or_its_values():
    values = {"image_size": 64, "backbone": "hourglass10", "mask_head": "resnet4", "width": 0.125}
    config = DeepMACConfig(**values)
    assert DeepMAC(config).config == DeepMAC(**values).config == config
    assert DeepMAC(config, norm_momentum=0.5).config == replace(config, norm_momentum=0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_sizes'"):
        DeepMAC(image_sizes=64)


def test_initial_weights_are_of_no_concern_to_a_stored_model():
    config = DeepMACConfig(pretrained_backbone=True, frozen_levels=2)
    assert config.without_initial_weights() == DeepMACConfig(frozen_levels=2)
    assert {"pretrained_backbone", "frozen_levels", "dice_weight", "norm_momentum"} <= DeepMACConfig.training_only()
    assert not {"box_frame", "image_mean", "width"} & DeepMACConfig.training_only()


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"categories": [CAT, CAT]}, "categories: each needs its own id"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": True}, "image_size must be at least 1 and a whole number, but got True"),
        ({"width": math.nan}, "width must be above 0 and finite, but got nan"),
        ({"width": math.inf}, "width must be above 0"),
        ({"norm_momentum": math.nan}, "norm_momentum must be at least 0 and at most 1, but got nan"),
    ],
)
def test_every_family_refuses_values_by_name(build, values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        *((small_deep_mac.build, name, math.inf) for name in ("box_margin", "dice_weight", "box_jitter_ratio")),
        (small_deep_mac.build, "min_box_overlap", 1.5),
        (small_deep_mac.build, "mask_head_width", 0),
        (small_deep_marc.build, "anchor_scale", 0.0),
        (small_deep_marc.build, "mask_weight", math.nan),
        (small_deep_marc.build, "min_box_score", -0.5),
        (small_deep_marc.build, "num_box_samples", 0),
        (small_model, "num_mask_slots", 0),
        (small_model, "memory_channels", 0),
        (small_model, "stem_width", math.nan),
        (small_model, "pq_weight", math.inf),
    ],
)
def test_values_of_one_family(build, name, value):
    with pytest.raises(ValueError, match=f"{name} must "):
        build(**{name: value})


@pytest.mark.parametrize("build", FAMILIES)
def test_a_folder_with_such_a_value_is_one_sentence(build, tmp_path):
    save_pretrained(build(), tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["width"] = math.nan
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: cannot build the model: width must be above 0"):
        from_pretrained(tmp_path / "weights")
