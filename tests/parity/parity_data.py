"""Finds the reference outputs of one family and its manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

_OWN = Path(__file__).parent / "data"


class ParityData:
    """The folder of one family: the project's copy, or `$MASKWRIGHT_PARITY/FAMILY` where that is set."""

    def __init__(self, family: str) -> None:
        elsewhere = os.environ.get("MASKWRIGHT_PARITY")
        self.is_own_copy = elsewhere is None
        self.folder = (Path(elsewhere) if elsewhere else _OWN) / family

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The manifest's entry of every file."""
        files = self.manifest["files"]
        return files if isinstance(files, dict) else {entry["file"]: entry for entry in files}

    def arrays(self, file: str) -> Mapping[str, np.ndarray]:
        """The arrays of one file, read when asked for."""
        return np.load(self.folder / file)

    def with_module(self, module: str) -> dict[str, dict[str, Any]]:
        """The entries of one module, by file name."""
        return {file: entry for file, entry in self.files.items() if entry["module"] == module}


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
