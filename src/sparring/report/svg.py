"""matplotlib figures as inline SVG that follows the page: its colours, its fonts, its strict CSP."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from sparring.inspection import style

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_COLORS = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.CLEAN: "var(--clean)",
    style.ROBUST: "var(--robust)",
}
_KEEP = {
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-dashoffset",
    "stroke-linecap", "stroke-linejoin", "opacity", "text-anchor", "font-size",
}  # fmt: skip


def inline(figure: Figure, *, prefix: str, label: str, css_class: str) -> Markup:
    """``figure`` as an ``<svg>`` element to stand in a page.

    Colours of the shared style become the page's CSS variables. Inline styles become attributes, because the page's
    content security policy forbids inline styles. Ids get ``prefix``, so that two figures of a page don't collide.
    ``label`` is what a screen reader says.
    """
    file = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style.settings(svg_text=True, salt=prefix):
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ET.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style") or child.tag.endswith("}RDF"):
                parent.remove(child)
    for element in root.iter():
        _attributes(element, prefix)
        element.tag = element.tag.removeprefix(_SVG)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"class": css_class, "viewBox": view, "role": "img", "aria-label": label})
    return Markup(ET.tostring(root, encoding="unicode"))


def _attributes(element: ET.Element, prefix: str) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (size := re.search(r"([\d.]+)px", value)):
            name, value = "font-size", size[1]
        if name in _KEEP:
            element.attrib[name] = _COLORS.get(value.lower(), value)
    href = element.attrib.pop(f"{_XLINK}href", None)
    if href is not None:
        element.attrib["href"] = f"#{prefix}-{href.removeprefix('#')}"
    if "id" in element.attrib:
        element.attrib["id"] = f"{prefix}-{element.attrib['id']}"
    if "clip-path" in element.attrib:
        element.attrib["clip-path"] = element.attrib["clip-path"].replace("url(#", f"url(#{prefix}-")
