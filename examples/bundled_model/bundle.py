"""Make the bundled weights folder of a training run.

    python examples/bundled_model/bundle.py RUN/last

Writes `src/maskwright/weights/deep-mac-tiny`: the run's averaged weights as float16, the model card
(`card.md` beside this script) and the weights' own licence notice (`LICENSE-weights`).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from maskwright.models.hub import BUNDLED, from_pretrained, save_pretrained

HERE = Path(__file__).parent


def main() -> None:
    """Read the arguments, write the folder and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="weights folder of a run")
    arguments = parser.parse_args()
    model = from_pretrained(arguments.weights)
    folder = BUNDLED / "deep-mac-tiny"
    save_pretrained(model, folder, dtype=torch.float16, card=(HERE / "card.md").read_text())
    shutil.copy(HERE / "LICENSE-weights", folder / "LICENSE-weights")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {parameters / 1e6:.2f} million parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
