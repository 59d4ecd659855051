"""What a model made of an image, as one HTML page: it opens from a folder, without a network.

The page is `page.html`, a Jinja template; the picture in it is drawn by Bokeh, whose script is put into the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ats_core.attend.result import Attended
from ats_core.plot import (
    OPACITY,
    PROBABILITY,
    Picture,
    colours_of,
    draw_image,
    heat_layer,
    limits_of,
    probability_colours,
    require,
)

# Pixels of a patch's longer side; of more patches than this smaller ones, so that a page stays some megabytes.
TILE, SMALL_TILE, MANY = 192, 96, 256
HEAT_SIZES = 512, 2048  # pixels of the heat map's longer side, at least and at most
MOST_PIXELS, MOST_OUTPUTS = 4096, 10
TOOLTIP_SIZES = 160, 110  # pixels high: the first scale's picture, the others'
CLOSEST, FARTHEST = 8, 4  # of the zoom: pixels of level 0, times the image
TOOLTIP = """
<div class="ats-tooltip" style="font: 12px/1.5 system-ui, sans-serif; color: #1d2630">
  <div style="display: flex; gap: 3px">%s</div>
  <div style="margin-top: 6px; font-weight: 600">patch @rank</div>
  <div>probability <b>@probability</b></div>
  <div>weight <b>@weight</b></div>
  <div style="color: #66717e">at @place</div>
</div>
"""
TOOLTIP_PICTURE = '<img src="@picture%d" alt="" style="height: %dpx; image-rendering: %s; border-radius: 3px">'


def write_page(path: Path, attended: Attended, picture: Picture, *, classes: Sequence[str] | None = None) -> None:
    """Write the page: the picture with attention over it and the sampled patches as boxes, the patches, the prediction.

    Args:
        path: of the HTML file.
        attended: what the model made of an image.
        picture: uint8 RGB (H, W, 3) of the whole image, at most 4096 pixels an axis.
        classes: names of the outputs; None: numbers.

    Raises:
        ValueError: the source's axes are not "yx"; a wrong picture; not as many classes as outputs.
        ImportError: Bokeh is not installed.
    """
    attended.require_image()
    fits = picture.ndim == 3 and picture.shape[2] == 3 and all(1 <= n <= MOST_PIXELS for n in picture.shape)
    if picture.dtype != np.uint8 or not fits:
        raise ValueError(f"picture: must be uint8 (H, W, 3), H and W at most 4096, got {picture.dtype} {picture.shape}")
    outputs = _outputs(attended, classes)
    embed, resources, jinja = (require(module, "attend") for module in ("bokeh.embed", "bokeh.resources", "jinja2"))
    source = _patch_columns(attended)
    environment = jinja.Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}  # Bokeh's order has a meaning
    page = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))
    html = page.render(
        attended=attended,
        size=[f"{n:,}" for n in attended.shape[::-1]],
        millimetres=_millimetres(attended),
        outputs=outputs[:MOST_OUTPUTS],
        outputs_left=len(outputs[MOST_OUTPUTS:]),
        cells=f"{attended.attention.size:,}",
        share=_number(100 * attended.probabilities[np.unique(attended.indices, return_index=True)[1]].sum()),
        limits=[_number(p) for p in (attended.probabilities.min(), attended.probabilities.max())],
        colours=[f"rgb({r} {g} {b})" for r, g, b in colours_of(PROBABILITY, np.linspace(0.0, 1.0, 7))],
        opacity=OPACITY,
        patches=[
            {"index": i, **{name: source[name][i] for name in ("rank", "short", "weight", "place")}}
            for i in reversed(range(len(source["rank"])))
        ],
        sheet_aspect=f"{attended.patch_size[1]} / {attended.patch_size[0]}",
        rendering=_rendering(attended, 74),
        box=[n * attended.scales[0] for n in attended.patch_size],
        # Only what is drawn is there: no widgets, no tables, no WebGL.
        bokeh=resources.Resources(mode="inline", components=["bokeh"], log_level="error").js_raw,
        item=_renumbered(embed.json_item(_figure(attended, picture, source)), {}),
    )
    path.write_text(html, "utf-8")


def _renumbered(item: Any, names: dict[str, str]) -> Any:
    """What Bokeh made, with names of its objects that do not tell how many the process has made before."""
    if isinstance(item, list):
        return [_renumbered(entry, names) for entry in item]
    if not isinstance(item, dict):
        return item
    return {
        key: names.setdefault(entry, f"p{len(names)}")
        if key in ("id", "root_id") and isinstance(entry, str)
        else _renumbered(entry, names)
        for key, entry in item.items()
    }


def _figure(attended: Attended, picture: Picture, patches: dict[str, list[Any]]) -> Any:
    """The Bokeh figure, in pixels of level 0, y downwards."""
    models, plotting = require("bokeh.models", "attend"), require("bokeh.plotting", "attend")
    height, width = attended.shape
    pan, wheel, tap = models.PanTool(), models.WheelZoomTool(), models.TapTool()
    figure = plotting.figure(
        name="figure",
        x_range=models.Range1d(0, width, min_interval=CLOSEST, max_interval=FARTHEST * max(width, height)),
        y_range=models.Range1d(height, 0, min_interval=CLOSEST, max_interval=FARTHEST * max(width, height)),
        min_border_left=10 + 7 * len(f"-{10 * height:,}"),  # room for all labels: the frame keeps its size
        sizing_mode="stretch_both",
        tools=[pan, wheel, tap],
        active_drag=pan,
        active_scroll=wheel,
        toolbar_location=None,
        lod_threshold=None,
        background_fill_color="#e9ecf0",
        border_fill_color=None,
        outline_line_color="#c6ccd3",
    )
    figure.grid.visible = False
    for axis in (figure.xaxis[0], figure.yaxis[0]):
        axis.update(
            formatter=models.NumeralTickFormatter(format="0,0"),
            axis_line_color=None,
            major_tick_line_color="#c6ccd3",
            minor_tick_line_color=None,
            major_label_text_color="#66717e",
            major_label_text_font="system-ui, sans-serif",
        )
    figure.image_url(url=[_uri(picture, "JPEG")], x=0, y=0, w=width, h=height, name="picture")
    source = models.ColumnDataSource(patches)
    # Each patch in its place, at its own resolution, which the picture does not have. Bokeh cannot draw pictures of
    # which one is selected: they have a source of their own, which the page fills from the other.
    place = {"url": "picture0", "x": "left0", "y": "top0", "w": "width0", "h": "height0"}
    empty = models.ColumnDataSource({column: [] for column in place.values()})
    figure.image_url(**place, source=empty, name="patch")
    y, x = attended.margin
    figure.image_url(
        url=[_heat_uri(attended)], x=x, y=y, w=width - 2 * x, h=height - 2 * y, global_alpha=OPACITY, name="heat"
    )

    def squares(scale: int | None, chosen: dict[str, Any] | None = None, **line: Any) -> Any:
        """Boxes of a scale; without one squares of some pixels of the screen, where boxes would be too small to see."""
        if scale is None:
            renderer = figure.scatter("x", "y", marker="square", size=8, fill_color=None, source=source, **line)
        else:
            sides = {side: f"{side}{scale}" for side in ("left", "top", "right", "bottom")}
            renderer = figure.quad(**sides, fill_color=None, source=source, **line)
        renderer.name = "dot" if scale is None else "box"
        renderer.nonselection_glyph = None
        renderer.selection_glyph = renderer.glyph.clone(**(chosen or {}))
        return renderer

    for scale in range(1, len(attended.scales)):
        squares(scale, {"line_alpha": 1.0}, line_color="colour", line_alpha=0.3)
    hit = []
    for which in (0, None):
        squares(which, line_color="black", line_alpha=0.4, line_width=4)  # seen on bright images too
        hit.append(squares(which, {"line_color": "#ffd60a", "line_width": 4}, line_color="colour", line_width=2))
    tap.renderers = hit
    rendering = _rendering(attended, TOOLTIP_SIZES[0])
    images = "".join(TOOLTIP_PICTURE % (s, TOOLTIP_SIZES[s > 0], rendering) for s in range(len(attended.scales)))
    figure.add_tools(models.HoverTool(renderers=hit, tooltips=TOOLTIP % images, limit=1, sort_by="rank"))
    return figure


def _rendering(attended: Attended, pixels: int) -> str:
    """How a browser draws patches with sides of so many pixels: small ones with all of theirs."""
    return "pixelated" if max(attended.patch_size) < pixels else "auto"


def _patch_columns(attended: Attended) -> dict[str, list[Any]]:
    """What is shown of every patch; the likeliest one is the last, and so on top."""
    order = attended.ranks.argsort()[::-1]
    patches = attended.patches
    limits = None if patches.dtype == np.uint8 else limits_of(patches[..., :3])
    size = min(max(attended.patch_size), TILE if len(order) <= MANY else SMALL_TILE)
    colours = probability_colours(len(order), attended.probabilities, None)[order]
    columns: dict[str, list[Any]] = {
        "colour": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours],
        "rank": attended.ranks[order].tolist(),
        "probability": [_number(p) for p in attended.probabilities[order]],
        "short": [_number(p, 2) for p in attended.probabilities[order]],
        "weight": [_number(w) for w in attended.weights[order]],
        "place": [f"x {x:,}, y {y:,}" for y, x in attended.origins[order].tolist()],
    }
    for s, scale in enumerate(attended.scales):
        columns[f"picture{s}"] = [_uri(draw_image(patches[i, s], size=size, limits=limits)) for i in order]
        boxes = attended.boxes(scale)[order]
        for corner, (y, x) in enumerate((("top", "left"), ("bottom", "right"))):
            columns |= {f"{y}{s}": boxes[:, corner, 0].tolist(), f"{x}{s}": boxes[:, corner, 1].tolist()}
    first = attended.boxes(attended.scales[0])[order]
    columns["y"], columns["x"] = first.mean(1).T.tolist()
    columns["height0"], columns["width0"] = (first[:, 1] - first[:, 0]).T.tolist()
    return columns


def _outputs(attended: Attended, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """The outputs with their names, the largest first; `share` only where they are probabilities."""
    values = np.asarray(attended.prediction, np.float64).reshape(-1)
    names = attended.class_names(classes)
    if classes is None:
        names = [f"output {name}" for name in names] if len(values) > 1 else ["output"]
    shares = len(values) > 1 and values.min() >= 0 and abs(values.sum() - 1) < 1e-3
    return [
        {
            "name": names[i],
            "value": _number(values[i]),
            "share": round(100 * values[i], 2) if shares else None,
            "predicted": i == attended.predicted,
        }
        for i in np.argsort(-values, kind="stable")
    ]


def _millimetres(attended: Attended) -> list[str]:
    if attended.mpp is None:
        return []
    return [f"{n * mpp / 1000:.3g}" for n, mpp in zip(attended.shape[::-1], attended.mpp[::-1], strict=True)]


def _heat_uri(attended: Attended) -> str:
    grid = np.array(attended.attention.shape)
    longer = np.clip(grid.max(), *HEAT_SIZES)
    height, width = (max(int(n), 1) for n in np.round(grid * longer / grid.max()))
    colours, opacity = heat_layer(attended.attention, (height, width))
    return _uri(np.dstack([colours, np.round(255 * opacity).astype(np.uint8)]))


def _uri(picture: Picture, *formats: str) -> str:
    """The picture as a data: address, in the smallest of the formats."""
    image = require("PIL.Image", "attend").fromarray(picture)
    files = {}
    for name in formats or (("PNG", "JPEG") if picture.shape[2] == 3 else ("PNG",)):
        buffer = io.BytesIO()
        image.save(buffer, format=name, **({"quality": 85} if name == "JPEG" else {}))
        files[name.lower()] = buffer.getvalue()
    name = min(files, key=lambda name: len(files[name]))
    return f"data:image/{name};base64,{base64.b64encode(files[name]).decode()}"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"
