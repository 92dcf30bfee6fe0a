"""What the package's code weighs: lines by folder, arguments, private functions used once, casts, guards, doubles.

    python benchmarks/code.py [--source DIR] [--json OUT]

A code line is a line that is neither blank nor a comment nor part of a docstring. A guard is an `if` or `except`
block that ends by raising. A double is a name that two public classes or functions of different modules share.

    python benchmarks/code.py --follow

trains one step and predicts one photograph, and lists the modules that are handed the recipe or one of its sections
(from the command line to the optimizer), and those that are handed the options of `predict` (to the network).
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SOURCE = Path(__file__).parents[1] / "src" / "maskwright"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of the docstrings of modules, classes, functions, and of the values that a text follows."""
    texts = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return {line for node in texts for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_lines(text: str, docstrings: set[int]) -> set[int]:
    """Lines that hold a token of code."""
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for token in tokens if token.type not in blank for line in range(token.start[0], token.end[0] + 1)}
    return lines - docstrings


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def count_arguments(function: Function) -> int:
    """Arguments without `self` and `cls`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def guard_lines(tree: ast.AST) -> int:
    """Lines of `if` and `except` blocks that end by raising."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.ExceptHandler)]
    guards = [block for block in blocks if isinstance(block.body[-1], ast.Raise)]
    return len({n for guard in guards for n in range(guard.lineno, (guard.body[-1].end_lineno or guard.lineno) + 1)})


def signature_lines(tree: ast.AST) -> int:
    """Lines from `def` to the colon."""
    return sum(max(1, function.body[0].lineno - function.lineno) for function in functions(tree))


def import_lines(tree: ast.AST) -> int:
    """Lines of import statements."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in imports)


def weigh(source: Path) -> dict[str, Any]:
    """All numbers of a package's folder."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}
    folders: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    public: dict[str, set[str]] = defaultdict(set)
    private: list[int] = []
    arguments: list[tuple[int, str]] = []
    for path, tree in trees.items():
        text, place = path.read_text(), path.relative_to(source)
        docstrings = docstring_lines(tree)
        lines = len(code_lines(text, docstrings))
        folders[place.parts[0] if len(place.parts) > 1 else "(top)"] += lines
        totals.update(code_lines=lines, files=1, docstring_lines=len(docstrings), guard_lines=guard_lines(tree))
        totals.update(signature_lines=signature_lines(tree), import_lines=import_lines(tree))
        totals["casts"] += len(re.findall(r"\bcast\(", text))
        words = Counter(re.findall(r"\b_\w+", text))
        for function in functions(tree):
            arguments.append((count_arguments(function), f"{place}:{function.name}"))
            if function.name.startswith("_") and not function.name.endswith("__"):
                private.append(words[function.name] - 1)
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                public[node.name].add(str(place))
    return {
        **totals,
        "folders": dict(sorted(folders.items())),
        "private_functions": len(private),
        "private_functions_used_once": sum(uses == 1 for uses in private),
        "most_arguments": sorted(arguments, reverse=True)[:5],
        "functions_of_more_than_8_arguments": sum(count > 8 for count, _ in arguments),
        "doubles": {name: sorted(places) for name, places in sorted(public.items()) if len(places) > 1},
    }


def print_weights(weights: dict[str, Any]) -> None:
    """The numbers as a person reads them."""
    lines = weights["code_lines"]
    print(f"{lines:,} code lines in {weights['files']} files")
    for folder, count in weights["folders"].items():
        print(f"  {folder:12} {count:6,}")
    print(f"docstring lines per code line: {weights['docstring_lines'] / lines:.2f}")
    for kind in ("signature", "import", "guard"):
        print(f"{kind} lines: {weights[f'{kind}_lines'] / lines:.1%}")
    print(f"casts: {weights['casts']}")
    once, private = weights["private_functions_used_once"], weights["private_functions"]
    print(f"private functions used once: {once} of {private}")
    print("most arguments: " + ", ".join(f"{count} {place}" for count, place in weights["most_arguments"]))
    print(f"functions of more than 8 arguments: {weights['functions_of_more_than_8_arguments']}")
    print(f"doubles: {', '.join(weights['doubles']) or 'none'}")


RECIPE = {"Recipe", "DataOptions", "InstanceDataOptions", "PanopticDataOptions", "OptimizerOptions", "TrainerOptions"}


def follow(arguments: list[str], kinds: set[str], last: str) -> list[str]:
    """Modules of the package that are handed an object of one of `kinds` until the function `last` is called."""
    from maskwright.cli import main as maskwright

    passed: dict[str, None] = {"maskwright.cli": None}
    arrived = False

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal arrived
        module = frame.f_globals.get("__name__", "")
        if event != "call" or arrived or not module.startswith("maskwright."):
            return
        code = frame.f_code
        handed = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(type(frame.f_locals.get(name)).__name__ in kinds for name in handed if name != "self"):
            passed[module] = None
        arrived = code.co_name == last

    sys.setprofile(look)
    try:
        maskwright(arguments)
    finally:
        sys.setprofile(None)
    if not arrived:
        raise SystemExit(f"`maskwright {' '.join(arguments)}` never called {last}")
    return list(passed)


def print_ways() -> None:
    """Follow a recipe and the options of `predict`, on the photograph of `examples/`."""
    examples = Path(__file__).parents[1] / "examples"
    with tempfile.TemporaryDirectory() as scratch:
        boxes = json.loads((examples / "cat_boxes.json").read_text())["cat.jpg"]
        coco = {
            "images": [{"id": 1, "file_name": "cat.jpg", "height": 522, "width": 640}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                 "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "area": 1, "iscrowd": 0}
                for number, (x1, y1, x2, y2) in enumerate(boxes, start=1)
            ],
        }  # fmt: skip
        annotations = Path(scratch) / "instances.json"
        annotations.write_text(json.dumps(coco))
        values = {"data.images": examples, "data.annotations": annotations, "data.validation_images": examples,
                  "data.validation_annotations": annotations, "data.num_workers": 0, "data.batch_size": 1,
                  "data.crop_size": 128, "trainer.steps": 1, "trainer.output": Path(scratch) / "run",
                  "trainer.accelerator": "cpu", "trainer.devices": 1, "model.pretrained_backbone": "false"}  # fmt: skip
        train = ["train", "deep_mac/tiny", *(f"--{key}={value}" for key, value in values.items())]
        predict = ["predict", str(examples / "cat.jpg"), "--boxes", str(examples / "cat_boxes.json"), "--out", scratch]
        ways = {
            "recipe, from the command line to the optimizer": follow(train, RECIPE, "create_optimizer"),
            "options of predict, from the command line to the network": follow(predict, {"PredictOptions"}, "maps"),
        }
    for title, modules in ways.items():
        print(f"{title}: {len(modules)} modules\n  " + "\n  ".join(modules))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="the package's folder")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--follow", action="store_true", help="follow the recipe and the options instead")
    arguments = parser.parse_args()
    if arguments.follow:
        print_ways()
        return
    weights = weigh(arguments.source)
    print_weights(weights)
    if arguments.json:
        arguments.json.write_text(json.dumps(weights, indent=2) + "\n")


if __name__ == "__main__":
    main()
