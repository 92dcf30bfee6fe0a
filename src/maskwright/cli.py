"""The command `maskwright`: its arguments, its exit codes, and one sentence for every mistake.

Exit code 0: done. 2: refused, and a sentence on stderr says why. 3: something that was listed could not be done, and
the rest is written. 130: stopped by Ctrl-C. 143: stopped by SIGTERM, which ends a command as Ctrl-C does.
Nothing heavy is imported before the verb is known.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import maskwright
from maskwright.errors import UserError
from maskwright.signals import Terminated, sigterm_as_interrupt

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_LONGEST_WORD = 500  # characters of a path or value that a message repeats
DEFAULT_MODEL_HELP = "a bundled model (see `maskwright models`), a weights folder, a Hub repository, or a FILE.onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `maskwright ARGUMENTS` (those of the process when None) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is printed with escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings(), sigterm_as_interrupt():
        _quieten_libraries()
        try:
            code = _dispatch(given)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _refuse(str(error))
        except KeyboardInterrupt as error:
            print("\nmaskwright: stopped", file=sys.stderr)
            return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
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
    parser.add_argument(
        "images",
        nargs="+",
        type=str,
        help="image files, folders (searched with the folders in them), or quoted patterns",
    )
    parser.add_argument(
        "--boxes",
        type=str,
        metavar="FILE|DIR|BOXES",
        help='"x1,y1,x2,y2;..." for one image (--boxes=-5,... where it begins with a minus sign), a JSON file '
        '{"photo.jpg": [[x1, y1, x2, y2], ...]} (boxes may have a score, or be objects with box, label and score), a '
        "COCO file, a COCO results list, MegaDetector results, or a folder of YOLO labels; left out for a model that "
        "finds objects or segments by itself",
    )
    parser.add_argument(
        "--annotations", type=str, metavar="FILE", help="COCO file with the images of a results list given as --boxes"
    )
    parser.add_argument("--model", type=str, default="deep-mac-tiny", help=DEFAULT_MODEL_HELP)
    parser.add_argument("--out", type=str, default="masks", metavar="DIR", help="folder for all results")
    _add_exif(parser)
    _add_loading(parser)
    parser.add_argument("--processes", type=int, default=1, help="processes that share the images, each with the model")
    parser.add_argument(
        "--masks", action="store_true", help="also write each instance's mask as a PNG; a panoptic map is one"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="without --boxes: the smallest score of a detection, or of a segment of a panoptic map",
    )
    parser.add_argument(
        "--max-detections", type=int, default=1000, help="without --boxes: the number of detections in an image at most"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first image or box that fails")
    _add_overlays(parser)
    values = _parse(parser, arguments)

    from maskwright.apps.predict import PredictOptions, predict_files
    from maskwright.drawing.overlays import OverlayStyle

    style = OverlayStyle(**{name: values.pop(name) for name in ("labels", "outline", "opacity", "color_by")})
    overlays = not values.pop("no_overlays")
    images = values.pop("images")
    return predict_files(images, PredictOptions(**values, overlays=overlays, overlay_style=style)).exit_code


def _add_overlays(parser: ArgumentParser) -> None:
    parser.add_argument("--no-overlays", action="store_true", help="write no overlays")
    parser.add_argument(
        "--labels",
        type=str,
        default="auto",
        metavar="auto|on|off",
        help="names and scores in overlays; auto: of objects that are large enough",
    )
    parser.add_argument("--outline", action="store_true", help="overlays show contours only")
    parser.add_argument("--opacity", type=float, default=0.45, help="of the masks in overlays, from 0 to 1")
    parser.add_argument(
        "--color-by",
        type=str,
        default="instance",
        metavar="instance|class",
        help="what has a colour of its own in overlays",
    )


def _train(arguments: list[str]) -> int:
    from maskwright.training.run import main as train

    return train(arguments)


def _study(arguments: list[str]) -> int:
    from maskwright.apps import leave_classes_out, study

    if not arguments:
        study.list_studies()
        print(f"{leave_classes_out.NAME}: {leave_classes_out.ABOUT}")
        return 0
    values, others = _split_keys(arguments)
    parser = _parser("study")
    if others[:1] == [leave_classes_out.NAME]:
        app, others = leave_classes_out, others[1:]
    else:
        app = study
    _add_options(parser, app.OPTIONS)
    return app.run(values, **_parse(parser, others, defaults=False))


def _split_keys(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of `--SECTION.KEY VALUE` and `--SECTION.KEY=VALUE` by key, and the other arguments."""
    values, others = {}, []
    following = iter(arguments)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." in name:
            values[name.removeprefix("--")] = value if equals else next(following, "")
        else:
            others.append(argument)
    return values, others


VERBS: dict[str, tuple[str, str | Callable[[list[str]], int]]] = {
    "predict": ("masks of given boxes, detections with masks, or panoptic maps of images, with overlays", _predict),
    "train": ("train a model from a recipe: on boxes of all classes and masks of some, or on panoptic maps", _train),
    "evaluate": ("mask IoU, COCO AP or panoptic quality on a COCO file", "evaluate"),
    "complete": ("masks for the boxes of a COCO file that have none; no other byte of it changes", "complete"),
    "review": ("accept, reject or redraw the masks that a model made, in a browser; worst first", "review"),
    "demo": ("draw boxes on pictures in a browser, and see and download their masks", "demo"),
    "study": ("train the rows of a table with several seeds, measure them, and write the table", _study),
    "calibrate": ("make the mask scores of a weights folder the IoU that is to be expected", "calibrate"),
    "export": ("a model as ONNX files, for other programs, browsers, and Python without torch", "export"),
    "convert": ("a TensorFlow original's checkpoint to a weights folder", "convert"),
    "data check": ("count what a COCO file or a recipe's sets hold, and name every broken annotation", "check_data"),
    "data panoptic": ("a COCO panoptic file out of COCO instances and stuff maps", "panoptic_from_instances"),
    "data label-studio": ("the masks of a completed COCO file as tasks for Label Studio", "label_studio_tasks"),
    "label-studio": ("answer Label Studio with the masks of the boxes that people draw there", "label_studio_backend"),
    "data shards": ("the pictures and annotations of a COCO file as a few large tars to train from", "shards"),
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
        "--precision",
        type=str,
        default="auto",
        help="float32, bfloat16, or auto for bfloat16 where the processor or GPU computes it fast",
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first: minutes, for many images")


def _add_exif(parser: ArgumentParser) -> None:
    """The frame of annotations, where the evidence is not to decide."""
    parser.add_argument(
        "--exif",
        type=str,
        choices=("auto", "upright", "stored"),
        default="auto",
        help="what the boxes of pictures with an EXIF orientation are drawn on: the upright picture, the pixels as "
        "stored, or what sizes and boxes say (auto; upright where they say nothing)",
    )


def _parse(parser: ArgumentParser, arguments: list[str], defaults: bool = True) -> dict[str, Any]:
    """The values by name; without `defaults`, of what is given alone."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(arguments, defaults=defaults).as_dict()
    except ArgumentError as error:
        text = " ".join(str(error).split())
        text = re.sub(r"""Parser key "(\w+)": Expected an? <class '(\w+)'>\. Got value: """, _typed, text)
        raise UserError(f"{text}{_hint(parser, arguments)} (see `{parser.prog} --help`)") from error


def _hint(parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """What may have been meant by an argument that is unknown, or by a value that looks like one."""
    known = re.findall(r"(?<![\w-])--[a-z][a-z-]*", parser.format_usage())
    for argument, following in pairwise([*arguments, ""]):
        if argument in known and re.match(r"-[\d.]", following):
            return f"; did you mean {argument}={following}?"
        name = argument.partition("=")[0]
        close = get_close_matches(name, known, n=1) if name.startswith("--") and name not in known else []
        if close:
            return f"; did you mean {close[0]}?"
    return ""


def _typed(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}: expected {match[2]}, but got "


def _refuse(sentence: str) -> int:
    words = (word if len(word) < _LONGEST_WORD else f"{word[:_LONGEST_WORD]}..." for word in sentence.split())
    print(f"maskwright: error: {' '.join(words)}", file=sys.stderr)
    return 2


def _quieten_libraries() -> None:
    """Warnings of other libraries are for programmers; ours and Lightning's about the run become one line each."""
    warnings.filterwarnings("default", module=r"maskwright|lightning", append=True)
    warnings.simplefilter("ignore", append=True)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"maskwright: warning: {' '.join(str(message).split())}", file=sys.stderr)
