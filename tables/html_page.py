"""The table as one self-contained HTML page."""

import base64
from pathlib import Path

from tables import text
from tables.model import Table

_TEMPLATES = Path(__file__).with_name("templates")


def html_page(table: Table, svg: bytes) -> str:
    """The page with the figure embedded; it loads nothing, and links each cell to its run files."""
    figure = "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    return page("table.html.j2", table=table, text=text, figure=figure)


def page(template: str, **values: object) -> str:
    """A template of tables/templates, filled in; what it needs and does not get is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
