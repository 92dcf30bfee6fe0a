"""Deep-MAC, family `deep_mac`."""

from maskwright.models.deep_mac.config import DeepMACConfig
from maskwright.models.deep_mac.model import DeepMAC

__all__ = ["DeepMAC", "DeepMACConfig"]
