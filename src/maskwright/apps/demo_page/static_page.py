"""The demo page as a folder of files: the browser runs the exported model, and any web server can send the files."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskwright import __version__
from maskwright.apps.demo_page.limits import Limits
from maskwright.apps.demo_page.models import public_name
from maskwright.errors import UserError
from maskwright.export.files import ExportOptions, export_model, save_models
from maskwright.files import write_json, write_whole
from maskwright.models.family import BoxPromptedFamily
from maskwright.models.hub import BUNDLED, from_pretrained, model_hash
from maskwright.onnx.metadata import KEY

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of the npm package onnxruntime-web that the page needs."""

_PAGE = Path(__file__).parent
_SHARED = _PAGE.parent / "page" / "static"
_OLDEST_RUNTIME = (1, 23)
_HOW = (
    "expected the npm package onnxruntime-web, as a folder or a .tgz: `npm pack onnxruntime-web@1.30.0`, or "
    "`curl -O https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz`"
)


def write_static_page(folder: Path, model_name: str, runtime: str | None, limits: Limits) -> None:
    """Write the page with a box-prompted model, whole or not at all; half-precision weights halve what is loaded.

    Args:
        folder: new or empty.
        model_name: of `from_pretrained`.
        runtime: the npm package onnxruntime-web, its folder or its archive.
        limits: of pictures and boxes.

    Raises:
        UserError: the folder, the package or the model cannot be used, or the libraries of the extra `export` are not
            installed.
    """
    is_taken = folder.exists() and not (folder.is_dir() and folder.name and not any(folder.iterdir()))
    if is_taken or not folder.parent.is_dir():
        raise UserError(f"--static {folder}: expected the name of a folder that is new or empty, in one that exists")
    if runtime is None:
        raise UserError(f"--static needs --onnxruntime too: {_HOW}")
    libraries = read_runtime(Path(runtime))
    model = from_pretrained(model_name)
    if not isinstance(model, BoxPromptedFamily):
        raise UserError(f"--model {model_name}: expected a model that takes boxes, which alone has a static page")
    about = {
        "version": __version__,
        "models": {"boxes": {"name": public_name(model_name), "weights": model_hash(model)}},
        "limits": limits.told,
    }
    graphs = export_model(model, ExportOptions(precision="float16"))
    (metadata,) = (json.loads(entry.value) for entry in graphs["masks"].metadata_props if entry.key == KEY)

    def write(temporary: Path) -> None:
        static = temporary / "static"
        for part in (_SHARED, _PAGE / "static", _PAGE / "in_browser"):  # the last one's segmenter.js is the right one
            shutil.copytree(part, static, dirs_exist_ok=True)
        (static / "requests.js").unlink()
        (static / "demo.html").rename(temporary / "index.html")
        for name, content in libraries.items():
            (static / name).write_bytes(content)
        save_models(graphs, static / "model.onnx")
        write_json(static / "model.json", {**about, "model": metadata})
        for notice in (BUNDLED / model_name).glob("LICENSE*"):
            shutil.copy(notice, temporary)

    write_whole(folder, write)


def read_runtime(package: Path) -> dict[str, bytes]:
    """The files `RUNTIME` of the npm package onnxruntime-web, a folder or an archive.

    Raises:
        UserError: it is not there, is something else, or of a version that the page does not fit.
    """
    try:
        if package.is_dir():
            return _runtime(lambda name: (package / name).read_bytes())
        with tarfile.open(package) as archive:
            return _runtime(lambda name: _member(archive, f"package/{name}"))
    except UserError:
        raise
    except Exception as error:  # an archive can be damaged in any way there is
        raise UserError(f"--onnxruntime {package}: {_HOW}") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _runtime(read: Callable[[str], bytes]) -> dict[str, bytes]:
    about: dict[str, Any] = json.loads(read("package.json"))
    if about["name"] != "onnxruntime-web":
        raise ValueError(about["name"])
    version = str(about["version"])
    major, minor = (int(number) for number in version.split(".")[:2])
    if not _OLDEST_RUNTIME <= (major, minor) < (2, 0):
        raise UserError(f"onnxruntime-web {version}: the page fits 1.23 and later ones of 1.x; {_HOW}")
    return {name: read(f"dist/{name}") for name in RUNTIME}
