"""Masks of boxes that a person draws: each picture is encoded once, and prompted many times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any

from maskwright.apps.named_models import AnyPredictor

_KEPT = 8


class EncodedPictures:
    """The features of the last few pictures that were asked for; several threads may ask.

    Older ones are dropped, and made again when they are asked for: memory stays as it is, however many pictures come.

    Args:
        predictor: of a box-prompted model.
    """

    def __init__(self, predictor: AnyPredictor) -> None:
        self._predictor = predictor
        self._features: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = RLock()

    def masks_from_boxes(self, key: Hashable, read: Callable[[], Any], boxes: Any) -> Any:
        """The masks of boxes on the picture that `read` gives, which it is asked for if it is not known by its key.

        Raises:
            UserError: what `read` raises, or a box is none or lies outside.
        """
        with self._lock:
            return self._predictor.masks_from_boxes(self.features(key, read), boxes)

    def features(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """Those of the picture that `read` gives, which it is asked for if it is not known by its key.

        Raises:
            UserError: what `read` raises.
        """
        with self._lock:
            if key not in self._features:
                self._features[key] = self._predictor.encode(read())
                if len(self._features) > _KEPT:
                    self._features.popitem(last=False)
            self._features.move_to_end(key)
            return self._features[key]
