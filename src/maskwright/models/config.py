"""The base of all configs: each value of a model has its default, its meaning and its check in its family's config."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from maskwright.structures import Category

_LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le}


def setting(
    default: Any,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    one_of: Iterable[str] = (),
    training_only: bool = False,
    initial_only: bool = False,
) -> Any:
    """A field of a config, with what `FamilyConfig` checks of its value.

    A number with limits must also be finite, and whole where the field's type is `int`.

    Args:
        default: the default.
        at_least: smallest number allowed.
        above: the number must be larger than this.
        at_most: largest number allowed.
        one_of: the names allowed, such as a registry. `{NAME OF THE FIELD}` in the config's docstring lists them.
        training_only: the value changes how a model learns, not what trained weights predict.
        initial_only: the value says where the first weights come from; a stored model has the default.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    metadata = {
        "limits": {name: limit for name, limit in limits.items() if limit is not None},
        "one_of": one_of,  # the registry itself: names may be added to it
        "training_only": training_only or initial_only,
        "initial_only": initial_only,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """What the configs of all families share. Texts of `--help` come from the docstrings of the configs.

    Attributes:
        categories: the label space, in label order.
        mask_classes: names of the classes whose masks were used in training.
        image_size: side of the square network input, in pixels.
    """

    categories: list[Category] | None = None
    mask_classes: list[str] | None = None
    image_size: int

    def __init_subclass__(cls) -> None:
        """List the names of the registries in the docstring."""
        settings = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        for name, value in settings.items():
            cls.__doc__ = (cls.__doc__ or "").replace(f"{{{name}}}", ", ".join(value.metadata.get("one_of", ())))

    def __post_init__(self) -> None:
        """Refuse a value without meaning.

        Raises:
            ValueError: the first such value, by name.
        """
        check_label_space(self.categories, self.mask_classes)
        types = _field_types(type(self))
        for entry in fields(self):
            _check_value(entry.name, getattr(self, entry.name), types[entry.name], entry.metadata)

    @property
    def num_classes(self) -> int:
        """The number of categories."""
        return len(self.categories or [])

    def without_initial_weights(self) -> FamilyConfig:
        """The config of a model whose weights come from elsewhere, such as a file."""
        return replace(self, **{entry.name: entry.default for entry in fields(self) if _is(entry, "initial_only")})

    @classmethod
    def training_only(cls) -> set[str]:
        """Names of the values that change how a model learns, but not what trained weights predict."""
        return {entry.name for entry in fields(cls) if _is(entry, "training_only")}


@dataclass(frozen=True, kw_only=True)
class BoxPromptedConfig(FamilyConfig):
    """What the configs of the families share that turn boxes into masks.

    Attributes:
        backbone: name of the backbone.
        mask_quality: predict the IoU of each mask with the truth, which is then its score.
        mask_quality_weight: weight of the loss of that prediction.
        mask_quality_alone: learn that prediction alone.
        second_look_below: boxes with a longer side below this get a second look.
        second_look_context: side of its square crop, in longer sides of the box.
        second_look_size: side to which the crop is resized, in pixels.
    """

    backbone: str
    mask_quality: bool = False
    mask_quality_weight: float = setting(1.0, above=0, training_only=True)
    mask_quality_alone: bool = setting(False, training_only=True)
    second_look_below: float = setting(0.0, at_least=0)
    second_look_context: float = setting(1.5, at_least=1)
    second_look_size: int = setting(128, at_least=1)

    def __post_init__(self) -> None:
        """See `FamilyConfig`; to learn the quality of masks alone without predicting it is refused, too."""
        super().__post_init__()
        if self.mask_quality_alone and not self.mask_quality:
            raise ValueError("mask_quality_alone needs mask_quality, which is false: nothing would be learnt")


def check_label_space(categories: Any, mask_classes: Any) -> None:
    """Refuse what is no label space; null is one without classes.

    Raises:
        ValueError: `categories` is no list of mappings with a whole number `id` and a text `name`, each unique, or
            `mask_classes` no list of texts.
    """
    for label, category in enumerate(_as_list("categories", categories)):
        identity, name = (category.get("id"), category.get("name")) if isinstance(category, Mapping) else (None, None)
        if not _is_number(identity, whole=True) or not isinstance(name, str):
            raise ValueError(
                f"categories: number {label} must have a whole number 'id' and a text 'name', but got {category!r}"
            )
    for key in ("id", "name"):
        counts = Counter(category[key] for category in categories or [])
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"categories: each needs its own {key}, but these repeat: {repeated}")
    for name in _as_list("mask_classes", mask_classes):
        if not isinstance(name, str):
            raise ValueError(f"mask_classes must be names of classes, but got {name!r}")


def _as_list(name: str, value: Any) -> Sequence[Any]:
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, but got {value!r}")
    return value or []


def _is(entry: Field[Any], mark: str) -> bool:
    return entry.metadata.get(mark, False)


@cache
def _field_types(config_class: type[FamilyConfig]) -> dict[str, tuple[Any, ...]]:
    """The alternatives in the type of each field: `(int, NoneType)` of `int | None`."""
    hints = get_type_hints(config_class)
    return {name: get_args(hint) if NoneType in get_args(hint) else (hint,) for name, hint in hints.items()}


def _check_value(name: str, value: Any, types: tuple[Any, ...], metadata: Mapping[str, Any]) -> None:
    if value is None and NoneType in types:
        return
    names = list(metadata.get("one_of", ())) or [
        word for kind in types if get_origin(kind) is Literal for word in get_args(kind)
    ]
    if names and value not in names:
        known = ", ".join([*names, "null"] if NoneType in types else names)
        raise ValueError(f"{name} must be one of {known}, but got {value!r}")
    if limits := metadata.get("limits"):
        whole = int in types
        inside = _is_number(value, whole=whole) and all(_LIMITS[key](value, limit) for key, limit in limits.items())
        if not inside:
            words = [f"{limit.replace('_', ' ')} {number}" for limit, number in limits.items()]
            words += ["a whole number"] if whole else ["finite"] if "at_most" not in limits else []
            raise ValueError(f"{name} must be {' and '.join(words)}, but got {value!r}")


def _is_number(value: Any, *, whole: bool) -> TypeGuard[int | float]:
    kinds = int if whole else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
