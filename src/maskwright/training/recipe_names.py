"""The names of the recipes that ship with the package; apart from what reads them, which needs torch."""

from __future__ import annotations

from importlib.resources import files


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package, such as `deep_mac/tiny`."""
    folders = [entry for entry in files("maskwright.training").joinpath("recipes").iterdir() if entry.is_dir()]
    shipped = [f"{folder.name}/{file.name}" for folder in folders for file in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in shipped if name.endswith(".yaml"))
