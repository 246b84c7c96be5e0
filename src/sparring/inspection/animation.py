"""An ascent as an animated GIF: each frame beside the probabilities that the network gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sparring.inspection import pictures, style
from sparring.inspection import pixels as px
from sparring.inspection.gradients import name_of

if TYPE_CHECKING:
    from sparring.inspection.ascending import ClassAscent

MOST = 48  # frames: more are thinned out
CLASSES = 5
DPI = 90


def write_gif(ascent: ClassAscent, path: Path) -> Path:
    """The animation, played again and again, with a rest at either end; written whole or not at all."""
    numbers = sorted({round(i) for i in np.linspace(0, ascent.steps, min(ascent.steps + 1, MOST))})
    pages = rendered(ascent, numbers)
    durations = [900] + [90] * (len(pages) - 2) + [1600] if len(pages) > 1 else [1600]
    # one palette for all frames, so that what stands still does not flicker
    strip = Image.fromarray(np.concatenate([pages[0], pages[len(pages) // 2], pages[-1]]))
    palette = strip.quantize(128, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    colours[(colours > 244).all(1)] = 255  # averaging leaves the paper greyish
    palette.putpalette(colours.flatten().tolist())
    frames = [Image.fromarray(page).quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        frames[0].save(
            partial, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def rendered(ascent: ClassAscent, numbers: list[int]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """(H, W, 3) pixels of these frames; the axes are drawn once, what moves is set anew."""
    from sparring.inspection.ascending import ranked

    classes = ranked(ascent, CLASSES)
    names = [pictures.short(name_of(number, ascent.names), 16) for number in classes]
    side = pictures.shape_of(ascent.frames[0])
    figure = style.new_figure(6.4, 2.7 * side + 0.5)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    pictures.show_sample(left, ascent.frames[0], ascent.bounds)
    left.set_title("step 000", loc="left", color=style.MUTED, fontsize=11)
    style.dress(right)
    right.grid(False)
    right.spines["bottom"].set_visible(False)
    places = list(range(len(classes)))[::-1]
    colors = [
        style.CLEAN if number == ascent.label else style.ROBUST if number == ascent.target else "#9aa4b1"
        for number in classes
    ]
    bars = right.barh(places, [1.0] * len(classes), color=colors, height=0.62)
    right.set_xlim(0, 1.28)
    right.set_xticks([])
    right.set_yticks(places, names, color=style.INK, parse_math=False)
    texts = [right.text(0, place, "", va="center", color=style.INK, fontsize=10) for place in places]
    pages = []
    with style.settings():
        drawing: Any = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        for count, number in enumerate(numbers):
            left.images[0].set_data(px.pixels(ascent.frames[number], ascent.bounds))
            left.set_title(f"step {number}", loc="left", color=style.MUTED, fontsize=11)
            for bar, text, each in zip(bars, texts, classes):
                chance = float(ascent.probabilities[number, each])
                bar.set_width(chance)
                text.set_x(chance + 0.03)
                text.set_text(f"{chance:.0%}")
            drawing.draw()
            if count == 0:
                figure.set_layout_engine("none")  # the panels keep the places that they have now
            pages.append(np.asarray(drawing.buffer_rgba())[..., :3].copy())
    return pages
