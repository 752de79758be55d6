"""HTML from the templates beside this file. Jinja escapes whatever is put into one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitseg.ui import theme

TEMPLATES = Path(__file__).with_name("templates")
_ENVIRONMENT = Environment(
    autoescape=True, loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined
)
_ENVIRONMENT.globals["theme"] = theme


def render(template: str, **values: Any) -> Markup:
    """A template filled in. Of the values, `Markup` and tables go in as they are; the rest is
    escaped.
    """
    return Markup(_ENVIRONMENT.get_template(f"{template}.j2").render(values))


STYLE = render("style")
"""The style sheet that every screen, table and page of ours begins with."""


def html(body: Any) -> Markup:
    """HTML, or a table, in the box to which `STYLE` applies."""
    return Markup(f"<div class='vitseg'>{Markup(body)}</div>")


def verbatim(text: str) -> Markup:
    """Text as it stands, lines and all."""
    return Markup("<pre>{}</pre>").format(text)


Line = tuple[str, object]
"""A CSS class, and the text in it."""


def lines(said: Iterable[Line]) -> Markup:
    """A paragraph for each."""
    return html(render("lines", lines=said))


def page(*sections: Sequence[Any]) -> Markup:
    """A whole HTML page, which asks for nothing from outside. A section is a heading and what stands
    below it: `Markup` and tables as they are, text as a paragraph. The first heading is the title.
    """
    return render("page", sections=sections)
