"""What the demo page may be asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many at once.

    upload_bytes, pixels: of a picture.
    boxes: of one request.
    waiting: requests under way.
    """

    upload_bytes: int
    pixels: int
    boxes: int
    waiting: int

    @property
    def told(self) -> dict[str, int]:
        """Those that the page itself keeps to."""
        return {"bytes": self.upload_bytes, "pixels": self.pixels, "boxes": self.boxes}
