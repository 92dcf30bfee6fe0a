"""The command `maskwright`: its arguments, its exit codes, and one sentence for every mistake.

Exit code 0: done. 2: the input is wrong, and a sentence on stderr says how. 130: stopped by Ctrl-C.
Nothing heavy is imported before the verb is known.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

import maskwright
from maskwright.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DEFAULT_MODEL_HELP = "a bundled model (see `maskwright models`), a weights folder, or a Hub repository"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `maskwright ARGUMENTS` (those of the process when None) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        _quieten_libraries()
        try:
            code = _dispatch(given)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _refuse(str(error))
        except KeyboardInterrupt:
            print("\nmaskwright: stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # Whoever read our output has seen enough; Python's own flush at exit must not fail on it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_usage(), file=sys.stderr)
        return 2
    first, *rest = arguments
    if first == "data" and rest:
        first, rest = f"data {rest[0]}", rest[1:]
    if first in ("-h", "--help", "data -h", "data --help"):
        print(_usage())
        return 0
    if first == "--version":
        print(f"maskwright {maskwright.__version__}")
        return 0
    if first not in VERBS:
        close = get_close_matches(first, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(VERBS)}"
        raise UserError(f"there is no command {first!r}; {hint}")
    _, command = VERBS[first]
    return _run(first, command, rest) if isinstance(command, str) else command(rest)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb.ljust(width)}  {summary}" for verb, (summary, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: maskwright COMMAND ...",
            "",
            "Masks that nobody has drawn yet: of boxes that are given, of objects that are found, or of whole images.",
            "",
            *lines,
            "",
            "`maskwright COMMAND --help` says more; `maskwright --version` prints the version.",
        ]
    )


def _predict(arguments: list[str]) -> int:
    parser = _parser("predict")
    parser.add_argument("images", nargs="+", type=str, help="image files, folders, or quoted glob patterns")
    parser.add_argument(
        "--boxes",
        type=str,
        metavar="FILE|BOXES",
        help='"x1,y1,x2,y2;..." for one image (--boxes=-5,... where it begins with a minus sign), a JSON file '
        '{"photo.jpg": [[x1, y1, x2, y2], ...]}, or a COCO file; left out for a model that finds objects or segments '
        "by itself",
    )
    parser.add_argument("--model", type=str, default="deep-mac-tiny", help=DEFAULT_MODEL_HELP)
    parser.add_argument("--out", type=str, default="masks", metavar="DIR", help="folder for all results")
    _add_loading(parser)
    parser.add_argument(
        "--masks", action="store_true", help="also write each instance's mask as a PNG; a panoptic map is one"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="without --boxes: the smallest score of a detection, or of a segment of a panoptic map",
    )
    values = _parse(parser, arguments)

    from maskwright.apps.predict import PredictOptions, predict_files

    predict_files(values.pop("images"), PredictOptions(**values))
    return 0


def _train(arguments: list[str]) -> int:
    from maskwright.training.run import main as train

    return train(arguments)


VERBS: dict[str, tuple[str, str | Callable[[list[str]], int]]] = {
    "predict": ("masks of given boxes, detections with masks, or panoptic maps of images, with overlays", _predict),
    "train": ("train a model from a recipe: on boxes of all classes and masks of some, or on panoptic maps", _train),
    "evaluate": ("mask IoU, COCO AP or panoptic quality on a COCO file", "evaluate"),
    "convert": ("a TensorFlow original's checkpoint to a weights folder", "convert"),
    "data check": ("count what a COCO file holds, and name every broken annotation", "check_data"),
    "data panoptic": ("a COCO panoptic file out of COCO instances and stuff maps", "panoptic_from_instances"),
    "models": ("list the bundled models and the recipes, or print one recipe", "models"),
}
"""Each command: its summary, and the module of `maskwright.apps` that runs it (or a function of its arguments).

Such a module has `OPTIONS`, a function or dataclass whose parameters are the arguments of the command and whose
docstring explains them (the first parameter is positional if it has no default), and `run`, which takes those that were
given by name and returns the exit code.
"""


def _run(verb: str, module_name: str, arguments: list[str]) -> int:
    module = import_module(f"maskwright.apps.{module_name}")
    parser = _parser(verb)
    _add_options(parser, module.OPTIONS)
    return module.run(**_parse(parser, arguments, defaults=False))


def _add_options(parser: ArgumentParser, options: Callable[..., Any]) -> None:
    from docstring_parser import parse

    texts = {text.arg_name: " ".join((text.description or "").split()) for text in parse(options.__doc__ or "").params}
    parameters = signature(options, eval_str=True).parameters.values()
    for position, parameter in enumerate(parameters):
        name, help_text = f"--{parameter.name.replace('_', '-')}", texts[parameter.name]
        kind = parameter.annotation if parameter.annotation in (int, float) else str
        if parameter.annotation is bool:
            parser.add_argument(name, action="store_true", help=help_text)
        elif parameter.default is not parameter.empty:
            parser.add_argument(name, type=kind, default=parameter.default, help=help_text)
        elif position == 0:
            parser.add_argument(parameter.name, type=kind, help=help_text)
        else:
            parser.add_argument(name, type=kind, required=True, help=help_text)


def _parser(verb: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    summary = VERBS[verb][0]
    return ArgumentParser(
        prog=f"maskwright {verb}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        exit_on_error=False,
        allow_abbrev=False,
    )


def _add_loading(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto for a GPU where there is one")
    parser.add_argument(
        "--precision", type=str, default="float32", help="bfloat16 is faster on processors and GPUs that have it"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first: minutes, for many images")


def _parse(parser: ArgumentParser, arguments: list[str], defaults: bool = True) -> dict[str, Any]:
    """The values by name; without `defaults`, of what is given alone."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(arguments, defaults=defaults).as_dict()
    except ArgumentError as error:
        text = " ".join(str(error).split())
        text = re.sub(r"""Parser key "(\w+)": Expected an? <class '(\w+)'>\. Got value: """, _typed, text)
        raise UserError(f"{text} (see `{parser.prog} --help`)") from error


def _typed(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}: expected {match[2]}, but got "


def _refuse(sentence: str) -> int:
    print(f"maskwright: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _quieten_libraries() -> None:
    """Warnings of other libraries are for programmers; ours and Lightning's about the run become one line each."""
    warnings.filterwarnings("default", module=r"maskwright|lightning", append=True)
    warnings.simplefilter("ignore", append=True)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"maskwright: warning: {' '.join(str(message).split())}", file=sys.stderr)
