"""Weights folders: `config.json` + `model.safetensors` + model card, on disk, in the package or on the Hub."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from maskwright.errors import UserError
from maskwright.files import read_json_object, write_json, write_whole
from maskwright.models.calibration import MaskCalibration
from maskwright.models.family import BoxPromptedFamily, Family

BUNDLED = Path(__file__).parents[1] / "weights"
FAMILIES = {
    "deep_mac": ("maskwright.models.deep_mac", "DeepMAC"),
    "deep_marc": ("maskwright.models.deep_marc", "DeepMARC"),
    "max_deeplab": ("maskwright.models.max_deeplab", "MaXDeepLab"),
}

CALIBRATION = "mask_calibration"
"""The key of `config.json` that holds a `MaskCalibration`, if the weights have one."""

EXPORTED = ".onnx"
"""The suffix of exported models, which have no weights folder."""

_CONTENT = "a weights folder holds config.json and model.safetensors"
_FILES = ("config.json", "model.safetensors")
_TENSORS_AT_ONCE = 64
_TOKEN = "a token opens what is yours, from `hf auth login` or in the environment variable HF_TOKEN"


def family_class(family: str) -> type[Family[Any]]:
    """The model class of a family's name.

    Raises:
        UserError: no family has that name.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
    module, name = FAMILIES[family]
    return getattr(importlib.import_module(module), name)


def bundled_names() -> list[str]:
    """Names of the weights folders that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def save_pretrained(
    model: Family[Any],
    folder: str | Path,
    *,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> None:
    """Write a weights folder; it appears whole or not at all, and replaces one of the same name.

    Args:
        model: any family.
        folder: where to.
        state: tensors to write instead of the model's own (its moving average, say).
        dtype: of the stored floating-point tensors.
        card: text of the model card (`README.md`).

    Raises:
        UserError: `folder` is a file, or a folder that holds something else.
    """
    folder = Path(folder).absolute()
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a weights folder and would be replaced; choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict() if state is None else state
    stored = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in tensors.items()}
    config: dict[str, Any] = {"family": model.family, "model": model.stored_values()}
    if isinstance(model, BoxPromptedFamily) and model.mask_calibration is not None:
        config[CALIBRATION] = model.mask_calibration.stored_values()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        whole = Path(scratch) / "new"
        whole.mkdir()
        (whole / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        # `save_file` would give the file to its owner alone; written this way it has the folder's permissions.
        (whole / "model.safetensors").write_bytes(save(stored, metadata={"format": "pt", "family": model.family}))
        if card is not None:
            (whole / "README.md").write_text(card)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        whole.rename(folder)


def from_pretrained(name_or_path: str | Path) -> Family[Any]:
    """The model of a bundled name, a weights folder, or a Hub repository (`owner/name`), in eval mode.

    Raises:
        UserError: nothing is found there, a file is damaged, the configuration does not fit this version, or
            a tensor is missing, left over or of the wrong shape (each named).
    """
    folder = _find(name_or_path)
    config = read_json_object(folder / "config.json", ("family", "model"), kind="configuration", hint=_CONTENT)
    try:
        model = family_class(config["family"])(**config["model"])
        if CALIBRATION in config:
            _calibrate(model, config[CALIBRATION])
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot build the model: {error}") from error
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; {_CONTENT}")
    try:
        _load_state(model, weights)
    except SafetensorError as error:
        raise UserError(f"{weights}: not a whole safetensors file ({error})") from error
    return model.eval()


def _calibrate(model: Family[Any], values: Any) -> None:
    if not isinstance(model, BoxPromptedFamily):
        raise ValueError(f"a {model.family} model has no mask scores that a {CALIBRATION} could be of")
    model.mask_calibration = MaskCalibration(**values)


def model_hash(model: nn.Module) -> str:
    """A hash of all that decides what a model predicts: its class, its values, its calibration and its tensors."""
    told: dict[str, Any] = {"class": type(model).__name__}
    if isinstance(model, Family):
        told["values"] = model.stored_values()
    if isinstance(model, BoxPromptedFamily) and model.mask_calibration is not None:
        told[CALIBRATION] = model.mask_calibration.stored_values()
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):  # a folded model has no `state_dict`
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store_calibration(name_or_path: str | Path, calibration: MaskCalibration, folder: str | Path | None = None) -> None:
    """Give weights a calibration, beside or in place of the one that they have; nothing else of them changes.

    Args:
        name_or_path: as for `from_pretrained`.
        calibration: of their masks.
        folder: a new weights folder, which becomes a copy with the calibration; None changes the weights folder
            `name_or_path` itself.

    Raises:
        UserError: nothing is found there, or `folder` is not new or cannot be written.
    """
    source = _find(name_or_path)
    config = read_json_object(source / "config.json", ("family", "model"), kind="configuration", hint=_CONTENT)
    config[CALIBRATION] = calibration.stored_values()
    if folder is None:
        write_json(source / "config.json", config)
        return

    def write(copy: Path) -> None:
        shutil.copytree(source, copy)
        write_json(copy / "config.json", config)

    write_whole(folder, write)


def _load_state(model: Family[Any], path: Path) -> None:
    """Copy the tensors of a file into `model`; every name and shape must fit, and the model's dtypes stay.

    What has been read of a file counts as memory until the file is closed, so it is opened for some tensors at a time.
    """
    expected = model.state_dict()
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    missing = sorted(expected.keys() - shapes.keys())
    left_over = sorted(shapes.keys() - expected.keys())
    misfits = [name for name in expected.keys() & shapes.keys() if list(expected[name].shape) != shapes[name]]
    for names, what in ((missing, "is missing"), (left_over, "is not in the model"), (misfits, "has another shape")):
        if names:
            raise UserError(f"{path}: tensor {names[0]!r} {what} ({len(names)} such); the file is of another model")
    names = list(shapes)
    for first in range(0, len(names), _TENSORS_AT_ONCE):
        with safe_open(path, "pt") as file:
            for name in names[first : first + _TENSORS_AT_ONCE]:
                expected[name].copy_(file.get_tensor(name))


def push_to_hub(
    name_or_folder: str | Path,
    repository: str,
    *,
    license: str | None = None,
    results: Mapping[str, str | Path] | None = None,
    private: bool = False,
) -> str:
    """Upload weights to the Hub, with a card that it reads: `README.md`, completed by `model_card.hub_card`.

    The repository is made if there is none. Its files are the configuration, the weights, the card and licence files;
    nothing else of the folder is sent.

    Args:
        name_or_folder: a bundled model or a weights folder.
        repository: `owner/name`.
        license: the Hub's name of a licence (`apache-2.0`); None takes the folder's file `LICENSE*`, if there is one.
        results: for each data set's name the file that `maskwright evaluate --json` wrote; the card lists its numbers.
        private: of a repository that is made: only its owner sees it.

    Returns:
        The address of the commit.

    Raises:
        UserError: no weights are there, the card cannot be completed, or the Hub refuses (without a token it does).
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from maskwright.models.model_card import CARD, hub_card

    folder = _bundled_or(name_or_folder)
    for name in _FILES:
        if not (folder / name).is_file():
            raise UserError(f"{name_or_folder}: no {name} in it; expected a weights folder")
    card = hub_card(folder, repository, license=license, results=results)
    files = [folder / name for name in _FILES] + sorted(folder.glob("LICENSE*"))
    operations = [CommitOperationAdd(path.name, path) for path in files]
    with _hub_errors(f"{repository}: cannot be uploaded"):
        api = HfApi(library_name="maskwright")
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository,
            [*operations, CommitOperationAdd(CARD, card.encode())],
            commit_message="Weights of maskwright",
        )
    return commit.commit_url


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == EXPORTED:
        told = "is an exported model, for `maskwright predict`, `complete`, `demo` and `evaluate`"
        raise UserError(f"{path} {told}; {_CONTENT}")
    in_it = [str(path / name) for name in ("best", "last") if (path / name / "config.json").is_file()]
    if in_it and not (path / "config.json").is_file():
        raise UserError(f"{path} is the folder of a training run; its weights folders are {' and '.join(in_it)}")
    local = _bundled_or(path)
    if local.is_dir():
        return local
    names = ", ".join(bundled_names()) or "none"
    if path.parts[:1] and path.parts[0] in FAMILIES:
        raise UserError(
            f"{name_or_path} is the name of a recipe, which `maskwright train` makes a model of; expected a weights "
            f"folder, a repository of the Hub or a bundled model (bundled: {names})"
        )
    is_repository = len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", "..")
    if not is_repository:
        near = [*bundled_names(), *(str(other.parent) for other in path.parent.glob("*/config.json"))]
        close = get_close_matches(str(path), near, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{name_or_path}: neither a weights folder nor a bundled model (bundled: {names}){hint}")
    return _download(str(name_or_path))


def _bundled_or(name_or_path: str | Path) -> Path:
    """The folder of a bundled name, or the path itself."""
    bundled = BUNDLED / name_or_path
    is_bundled = not Path(name_or_path).is_dir() and (bundled / "config.json").is_file()
    return bundled if is_bundled else Path(name_or_path)


def _download(repository: str) -> Path:
    """The folder of the cache with the files of a repository of the Hub; without the Hub, as they were last."""
    from huggingface_hub import snapshot_download

    with _hub_errors(f"{repository}: neither a folder here nor a repository that the Hub gives"):
        folder = Path(snapshot_download(repository, allow_patterns=[*_FILES, "README.md"], library_name="maskwright"))
    absent = [name for name in _FILES if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{repository}: there is no {' and no '.join(absent)} in this repository; {_CONTENT}, and nothing else is "
            "read, above all no pickle (pytorch_model.bin)"
        )
    return folder


def _client_error() -> type[Exception]:
    """The class of all errors of the HTTP client that this version of `huggingface_hub` is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("type[Exception]", HfHubHTTPError.__bases__[0])


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Errors of the Hub and of the way to it, as `UserError`s."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{what} (its owner gives access on request: ask for it on its page)") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what} (there is none of this name, or it is private: {_TOKEN})") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{what} (the Hub cannot be reached, and the cache does not have all of it)") from error
    except (ValueError, _client_error(), OSError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403):
            raise UserError(f"{what} (it asks who you are: {_TOKEN})") from error
        reason = " ".join(str(error).split(maxsplit=40)[:40]) or type(error).__name__
        raise UserError(f"{what} ({reason})") from error
