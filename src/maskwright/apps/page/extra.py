"""The libraries of the pages, which are not always there."""

from __future__ import annotations

from importlib.util import find_spec

from maskwright.errors import UserError


def require_page_libraries() -> None:
    """Refuse to go on without them.

    Raises:
        UserError: one is missing.
    """
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise UserError(f"the page needs {name}: pip install 'maskwright[demo]'")
