"""MaX-DeepLab, family `max_deeplab`."""

from maskwright.models.max_deeplab.config import MaXDeepLabConfig
from maskwright.models.max_deeplab.model import MaXDeepLab

__all__ = ["MaXDeepLab", "MaXDeepLabConfig"]
