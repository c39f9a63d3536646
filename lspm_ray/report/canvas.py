"""From a matplotlib figure to a small SVG that can stand inside a page beside others and follows its colours."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspm_ray.page.markup import Html, plain
from lspm_ray.page.theme import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PX_PER_PT = 4 / 3
_LEAST_SCALE = 0.8
"""How far a figure shrinks on a small screen before it scrolls: its text must stay readable."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # real text: searchable, readable to screen readers, and in any script
    "text.parse_math": False,  # a label may hold a $
    "font.family": ["DejaVu Sans"],  # ships with matplotlib; wider than what browsers use, so measured text fits
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["faint"],
    "grid.linewidth": 0.6,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}
_TOKENS = {colour: f"var(--{token},{colour})" for token, colour in LIGHT.items()}
_COLOUR = re.compile("|".join(map(re.escape, _TOKENS)))
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SHORT_FONT = re.compile(r"font: (?:(?:normal|italic|oblique) )?(?:(\d+|bold) )?(\d[\d.]*px)[^;]*")


@dataclass(frozen=True)
class Caption:
    """What a figure says.

    Attributes:
        id: unique in the page.
        title: its name, for screen readers and tooltips.
        text: what it shows, for those who do not see it.
    """

    id: str
    title: str
    text: str


def draw(paint: Callable[[Figure], None], width_in: float, height_in: float, caption: Caption) -> Html:
    """An inline `<svg>` of what `paint` draws; the same bytes for the same drawing.

    Args:
        paint: fills the figure, using the colours of `theme.LIGHT` alone.
        width_in: inches; shown at 96 CSS pixels each.
        height_in: inches.
        caption: becomes the accessible name and description.
    """
    stream = io.StringIO()
    with _figure(paint, width_in, height_in, caption.id) as figure:
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing, bbox_inches="tight", pad_inches=0.05)
    return inline(stream.getvalue(), caption)


def save(paint: Callable[[Figure], None], width_in: float, height_in: float, path: Path) -> None:
    """What `paint` draws as a file of its own.

    Args:
        paint: fills the figure.
        width_in: inches.
        height_in: inches.
        path: its suffix says which format, `.svg` or `.png`.
    """
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with _figure(paint, width_in, height_in, path.stem) as figure:
        figure.savefig(path, dpi=144, metadata=metadata, bbox_inches="tight", pad_inches=0.1)


@contextmanager
def _figure(paint: Callable[[Figure], None], width_in: float, height_in: float, salt: str) -> Iterator[Figure]:
    """A painted figure, in the style of the report while the context lasts."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": salt})
        # The browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width_in, height_in), dpi=72, layout="constrained")
        paint(figure)
        yield figure


def fitted(text: str, limit: int) -> str:
    """One line of at most `limit` characters; the middle goes, as long names often differ at their ends."""
    line = " ".join(plain(text).split())
    if len(line) <= limit:
        return line
    head = (limit - 1) * 2 // 3
    return f"{line[:head].rstrip()}…{line[len(line) - (limit - 1 - head) :].lstrip()}"


def inline(svg: str, caption: Caption) -> Html:
    """Matplotlib's SVG document as an element of a page: unique ids, no namespaces, colours as CSS variables."""
    root = ET.fromstring(svg[svg.index("<svg") :])  # noqa: S314 - written by matplotlib a moment ago
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("style", "metadata")]:
            parent.remove(child)
    used = _references(root)
    for node in root.iter():
        _clean(node, used, caption.id)
    _frame(root, caption)
    return Html(ET.tostring(root, encoding="unicode"))


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers between two positive ones for a logarithmic axis: 1, 2, 5 steps, or powers of ten if too many."""
    decades = range(-12, 13)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**k for k in decades for step in steps if low <= step * 10.0**k <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return [float(f"{tick:.6g}") for tick in ticks]
    return [float(f"{tick:.6g}") for tick in ticks[:: -(-len(ticks) // most)]]


def log_axis(axes: Axes, which: str, values: list[float], margin: float = 1.25) -> None:
    """Make an axis logarithmic around `values`, with ticks that are plain numbers."""
    from matplotlib.ticker import NullLocator

    low, high = min(values) / margin, max(values) * margin
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    ticks = log_ticks(low, high)
    getattr(axes, f"set_{which}ticks")(ticks, labels=[f"{tick:,.10g}" for tick in ticks])
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def _references(root: ET.Element) -> set[str]:
    found: set[str] = set()
    for node in root.iter():
        for key, value in node.attrib.items():
            if key.endswith("href"):
                found.add(value.removeprefix("#"))
            found.update(_REFERENCE.findall(value))
    return found


def _clean(node: ET.Element, used: set[str], prefix: str) -> None:
    for key, value in list(node.attrib.items()):
        del node.attrib[key]
        local = key.rpartition("}")[2]
        if local == "id":
            if value in used:
                node.set("id", f"{prefix}-{value}")
        elif local == "href":
            node.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif local == "style":
            node.set("style", _style(_REFERENCE.sub(rf"url(#{prefix}-\1)", value)))
        elif local == "d":
            node.set("d", _NUMBER.sub(_short, " ".join(value.split())))
        else:
            node.set(local, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))
    if node.tag != "text" and node.text is not None and not node.text.strip():
        node.text = None
    if node.tail is not None and not node.tail.strip():
        node.tail = None


def _short(number: re.Match[str]) -> str:
    """Hundredths of a point are finer than any screen, and halve the page."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _style(style: str) -> str:
    style = _SHORT_FONT.sub(lambda m: f"font-size: {m[2]}" + (f"; font-weight: {m[1]}" if m[1] else ""), style)
    return _COLOUR.sub(lambda match: _TOKENS[match[0]], _FONT_FAMILY.sub("", style)).strip("; ")


def _frame(root: ET.Element, caption: Caption) -> None:
    for key in ("width", "height"):
        root.set(key, f"{float(root.get(key, '0pt').removesuffix('pt')) * _PX_PER_PT:.0f}")
    root.set("style", f"min-width:{_LEAST_SCALE * float(root.get('width', '0')):.0f}px")
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{caption.id}-title {caption.id}-desc")
    for index, (tag, text) in enumerate((("title", caption.title), ("desc", caption.text))):
        node = ET.Element(tag, {"id": f"{caption.id}-{tag}"})
        node.text = plain(text)
        root.insert(index, node)
