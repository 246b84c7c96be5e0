"""A page of one file: its own style sheet, its own script, and nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sparring.report import view, words


def page(template: str, **context: object) -> str:
    """The template with these values; whatever comes from a document goes through autoescape."""
    style, script = _read("style.css"), _read("script.js")
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        percent=words.percent,
        interval=words.interval,
        number=words.number,
        duration=words.duration,
        moment=words.moment,
        text=view.setting,
    )
    made = environment.get_template(template)
    # the files are the package's own
    return made.render(
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script), **context
    )


def _read(name: str) -> str:
    return resources.files("sparring.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
