"""Deep-MARC, family `deep_marc`."""

from maskwright.models.deep_marc.config import DeepMARCConfig
from maskwright.models.deep_marc.model import DeepMARC

__all__ = ["DeepMARC", "DeepMARCConfig"]
