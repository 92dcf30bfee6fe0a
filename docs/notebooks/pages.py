"""A hook of mkdocs: each notebook of the site is a page, too, its cells as text and code, with a link to the file.

Other pages link to the notebook, which is there when they are read as files; on the site the links lead to its page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook; the notebooks themselves are copied, as other files are."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(notebook.abs_src_path or "")
        page = str(Path(notebook.src_uri).with_suffix(".md"))
        files.append(File.generated(config, page, content=page_of(json.loads(path.read_text()), path.name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return re.sub(r"\((notebooks/\w+)\.ipynb\)", r"(\1.md)", markdown)


def page_of(notebook: dict[str, Any], name: str) -> str:
    """The markdown of a notebook: its first cell, a link, and the other cells."""
    first, *others = (_markdown(cell) for cell in notebook["cells"])
    return "\n\n".join([first, f"[This page as a notebook]({name})", *others]) + "\n"


def _markdown(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
