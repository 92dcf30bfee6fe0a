"""The model card of a weights folder as the Hub reads it: a front matter, and the text of the folder's `README.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.models.hub import family_class

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
LIBRARY = "maskwright"
NAMES = {"deep_mac": "Deep-MAC", "deep_marc": "Deep-MARC", "max_deeplab": "MaX-DeepLab"}
PAPERS = {"deep_mac": "2104.00613", "deep_marc": "2104.00613", "max_deeplab": "2012.00759"}

# The Hub's names of tasks. SAM's masks of prompts are there, too.
_FROM_BOXES, _FROM_IMAGES = "mask-generation", "image-segmentation"
_METRICS = ("mask_iou", "class_mask_iou", "mask_ap", "box_ap", "pq", "sq", "rq")


def hub_card(
    folder: Path, repository: str, *, license: str | None = None, results: Mapping[str, str | Path] | None = None
) -> str:
    """The text of the card of a weights folder for `owner/name`.

    What the front matter of the folder's own card says is kept; the rest is filled in: the library, tags, the Hub's
    name of the task, the licence and the numbers. Without a card, the text says what the model is and how to use it.

    Args:
        folder: the weights folder.
        repository: `owner/name`.
        license: the Hub's name of a licence; None takes the folder's file `LICENSE*`, if there is one.
        results: for each data set's name the file that `maskwright evaluate --json` wrote.

    Raises:
        UserError: a file cannot be read, or the front matter is none.
    """
    from huggingface_hub import ModelCardData

    config = read_json_object(folder / "config.json", ("family", "model"), kind="configuration")
    family, values = config["family"], config["model"]
    family_class(family)
    task = _FROM_IMAGES if family == "max_deeplab" or values.get("detector") else _FROM_BOXES
    data: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": task,
        "tags": [LIBRARY, family.replace("_", "-"), f"arxiv:{PAPERS[family]}"],
        **_license(folder, license),
    }
    if results:
        data["model_name"] = repository.rpartition("/")[2]
        data["eval_results"] = [number for name, file in results.items() for number in _numbers(task, name, Path(file))]
    own, text = _own_card(folder)
    front_matter = {**ModelCardData(**data).to_dict(), **own}
    try:
        whole = ModelCardData(**front_matter)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CARD}: its front matter is not what the Hub reads ({error})") from error
    return f"---\n{whole.to_yaml()}\n---\n{text or _text(family, repository, values)}"


def _license(folder: Path, name: str | None) -> dict[str, str]:
    if name is not None:
        return {"license": name}
    file = next(iter(sorted(path.name for path in folder.glob("LICENSE*"))), None)
    return {} if file is None else {"license": "other", "license_name": file.lower(), "license_link": file}


def _numbers(task: str, data_set: str, file: Path) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    hint = "`maskwright evaluate --json` writes it"
    summary = read_json_object(file, (), kind="file of numbers", hint=hint)
    found = {name: summary[name] for name in _METRICS if isinstance(summary.get(name), float)}
    if not found:
        raise UserError(f"{file}: none of the numbers {', '.join(_METRICS)} is in it; {hint}")
    return [
        EvalResult(
            task_type=task,
            dataset_type=data_set,
            dataset_name=data_set,
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=value,
        )
        for name, value in found.items()
    ]


def _own_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter of the folder's card, and the text after it; both empty where there is none."""
    from huggingface_hub import ModelCard

    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.startswith("---\n"):
        return {}, text
    try:
        card = ModelCard(text)
        return card.data.to_dict(), card.text
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: its front matter is not what the Hub reads ({error})") from error


def _text(family: str, repository: str, values: Mapping[str, Any]) -> str:
    classes = [category["name"] for category in values.get("categories") or []]
    known = f"Classes: {', '.join(classes)}.\n\n" if classes else ""
    boxes = "" if family == "max_deeplab" or values.get("detector") else ", boxes=[[40, 40, 295, 477]]"
    paper = f"[arXiv {PAPERS[family]}](https://arxiv.org/abs/{PAPERS[family]})"
    return (
        f"\n# {repository.rpartition('/')[2]}\n\n"
        f"A {NAMES[family]} model ({paper}) of `{LIBRARY}`.\n\n"
        f"{known}```python\nimport maskwright\n\n"
        f'prediction = maskwright.load("{repository}").predict("photo.jpg"{boxes})\n```\n'
    )
