"""Figures of a training on the speed limit signs."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from megapixel_mnist_report import BOX, HEAT, RIGHT, WRONG, curves
from speed_limits_data import CLASSES

__all__ = ["curves", "overlay"]


def overlay(images, labels, look, receptive_field, low_shape, patch_size, path):
    """Images (B, height, width, 3), the attention over them in colour and the sampled patches as boxes."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    extent = attention_extent((height, width), low_shape, receptive_field)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4 * columns, (4 * height / width + 0.4) * rows + 0.4),
        constrained_layout=True,
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for b, axis in zip(range(len(images)), axes.flat, strict=False):
        axis.imshow(images[b], extent=(0, width, height, 0))
        attention = look.attention[b]
        axis.imshow(attention / attention.max(), cmap=HEAT, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
        for (top, left), weight in zip(look.origins[b], look.weights[b] / look.weights[b].max(), strict=True):
            # the boxes of the cells with most attention stand out
            opacity = 0.35 + 0.65 * weight
            box = Rectangle(
                (left, top), patch_size, patch_size, fill=False, edgecolor=BOX, linewidth=1.2, alpha=opacity
            )
            axis.add_patch(box)
        axis.set(xlim=(0, width), ylim=(height, 0))
        found = look.probabilities[b].argmax()
        names = [CLASSES[k].removesuffix("_SIGN").lower() for k in (labels[b], found)]
        axis.set_title(
            f"{names[0]}, predicted {names[1]} ({look.probabilities[b, found]:.2f})",
            color=RIGHT if labels[b] == found else WRONG,
            fontsize=11,
        )
    figure.suptitle("attention (colour) and sampled patches (boxes) on test images", fontsize=13)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def attention_extent(shape, low_shape, receptive_field):
    """(left, right, bottom, top) of the attention map in pixels of the image.

    The convolutions without padding leave half the receptive field out on every side, as `patch_origins` has it.
    """
    edges = []
    for size, low in zip(shape, low_shape, strict=True):
        begin = receptive_field / 2 * size / low
        edges.append((begin, begin + (low - receptive_field) * size / low))
    (top, bottom), (left, right) = edges
    return left, right, bottom, top
