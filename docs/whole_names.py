"""A hook of mkdocs: in code, a name with hyphens is a piece of its own, which style.css keeps in one line."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"<code.*?</code>", re.DOTALL)
_NAME = re.compile(r"(?<![\w-])[\w.]*-[\w.-]*\w(?![^<]*>)")


def on_page_content(html: str, **_: Any) -> str:
    """Mark the names of a page."""
    return _CODE.sub(lambda code: _NAME.sub(r'<span class="whole">\g<0></span>', code[0]), html)
