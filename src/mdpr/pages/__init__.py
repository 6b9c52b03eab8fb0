"""Pages: one HTML file each that opens anywhere, from disk, in a sandboxed frame, without a network.

Everything is inlined; a content security policy forbids every load, and every script but the page's own (by hash).
Whatever comes from data is text to the templates (autoescape).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from mdpr.errors import printable

GENERATOR = 'name="generator" content="mdpr"'  # in every page: by this a page of ours is known
Filters = Mapping[str, Callable[..., Any]]


def render_page(package: str, template: str, script: str, *, filters: Filters | None = None, **values: Any) -> str:
    """`template` and the script file `script` of `package`'s folder `templates`, in the frame and style of all pages.

    The frame, base.html.j2, shows the values `title` and `summary` on top; `script` may call what search.js defines.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("mdpr.pages")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {"label": label, **(filters or {})}
    code = _asset("mdpr.pages", "search.js") + _asset(package, script)
    style = _asset("mdpr.pages", "page.css")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return environment.get_template(template).render(
        values,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(code),  # noqa: S704 - our own file
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _visible(value: Any) -> Any:
    """Text from data without control and invisible characters: a name cannot turn the line around it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def label(key: str) -> str:
    """`general_appearance` as people read it."""
    return key.replace("_", " ").capitalize()


def _asset(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")
