"""HTML from the templates beside this file. Jinja escapes whatever is put into one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitseg.ui import theme

TEMPLATES = Path(__file__).with_name("templates")
_ENVIRONMENT = Environment(
    autoescape=True,
    loader=FileSystemLoader(TEMPLATES),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.globals["theme"] = theme


def render(template: str, **values: Any) -> Markup:
    """A template filled in. Of the values, `Markup` and tables go in as they are; the rest is
    escaped.
    """
    return Markup(_ENVIRONMENT.get_template(f"{template}.j2").render(values))


STYLE = str(render("style"))
"""The style sheet that every screen, table and page of ours begins with."""


def html(body: Any) -> str:
    """HTML, or a table, in the box to which `STYLE` applies."""
    return f"<div class='vitseg'>{Markup(body)}</div>"


Line = tuple[str, str, object]
"""A CSS class, what is said in it first, and the text; without the former, all is in the class."""


def lines(said: Iterable[Line]) -> str:
    """A paragraph for each."""
    return html(render("lines", lines=said))


def page(title: str, body: str) -> str:
    """A whole HTML page around `body`, which is HTML; it asks for nothing from outside."""
    return render("page", title=title, body=body)
