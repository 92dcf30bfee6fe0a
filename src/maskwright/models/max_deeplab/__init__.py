"""MaX-DeepLab, family `max_deeplab`."""

from maskwright.models.max_deeplab.model import MaXDeepLab

__all__ = ["MaXDeepLab"]
