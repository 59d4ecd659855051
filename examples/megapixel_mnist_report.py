"""Figures and the cost table of a Megapixel-MNIST run."""

from itertools import groupby

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

RIGHT, WRONG, BOX = "#2a9d5c", "#d1495b", "#4cc9f0"
# transparent to opaque, so that the image shows through where there is no attention
HEAT = LinearSegmentedColormap.from_list(
    "heat", [(1, 0.35, 0, 0), (1, 0.35, 0, 0.45), (1, 0.75, 0, 0.6), (1, 0.95, 0.4, 0.7)]
)


def curves(history, path):
    """Training loss and test error over the epochs."""
    epochs = [entry["epoch"] for entry in history]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    panels = (("loss", "training loss (cross-entropy)", BOX), ("test_error", "test error", WRONG))
    for axis, (name, title, colour) in zip(axes, panels, strict=True):
        axis.plot(epochs, [entry[name] for entry in history], "o-", color=colour, linewidth=2, markersize=5)
        axis.set(title=title, xlabel="epoch")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def overlay(images, labels, look, path):
    """Up to eight test images (B, H, W), the attention over them in colour and the sampled patches as boxes."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.85 * rows), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    patch = look.patches.shape[-1]
    for b, axis in zip(range(len(images)), axes.flat, strict=False):
        height, width = images[b].shape
        frame = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(images[b], cmap="gray", extent=frame)
        attention = look.attention[b]
        axis.imshow(attention / attention.max(), cmap=HEAT, vmin=0, vmax=1, extent=frame, interpolation="bilinear")
        for (top, left), weight in zip(look.origins[b], look.weights[b] / look.weights[b].max(), strict=True):
            # the boxes of the cells with most attention stand out
            axis.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5),
                    patch,
                    patch,
                    fill=False,
                    edgecolor=BOX,
                    linewidth=1.2,
                    alpha=0.35 + 0.65 * weight,
                )
            )
        axis.set(xlim=frame[:2], ylim=frame[2:])
        axis.set_title(
            f"label {labels[b]}, predicted {look.predictions[b]}", color=_colour(labels, look, b), fontsize=12
        )
    figure.suptitle("attention (colour) and sampled patches (boxes) on test images", fontsize=13)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def contact_sheet(labels, look, path):
    """The patches, a row per test image, those with most attention first; the number is the cell's attention."""
    images, count = look.weights.shape
    shown = min(count, 16)
    figure, axes = plt.subplots(
        images, shown, figsize=(0.95 * shown + 1.2, 1.12 * images + 0.5), constrained_layout=True, squeeze=False
    )
    for b in range(images):
        for axis, i in zip(axes[b], np.argsort(-look.weights[b])[:shown], strict=True):
            axis.imshow(look.patches[b, i], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{look.weights[b, i]:.3f}", fontsize=8, pad=2)
        axes[b, 0].set_ylabel(
            f"label {labels[b]}\npredicted {look.predictions[b]}",
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
            color=_colour(labels, look, b),
        )
    figure.suptitle("sampled patches, by attention", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(labels, look, b):
    return RIGHT if labels[b] == look.predictions[b] else WRONG


def cost_table(costs):
    """Markdown table of the rows from `megapixel_mnist_measure.measure`, with the factors saved for each image size."""
    if not costs:
        return "Time and memory were not measured.\n"
    columns = "training step, ms/image | inference, ms/image | peak memory training, MiB | peak memory inference, MiB"
    lines = [f"| image | batch | variant | {columns} |", "|---|---|---|---:|---:|---:|---:|"]
    keys = (("train_s", 1e3), ("infer_s", 1e3), ("train_bytes", 2**-20), ("infer_bytes", 2**-20))
    for _, group in groupby(costs, key=lambda row: row["size"]):
        rows = list(group)
        for row in rows:
            values = " | ".join(f"{row[key] * unit:.1f}" for key, unit in keys)
            lines.append(f"| {row['size']} x {row['size']} | {row['batch_size']} | {row['variant']} | {values} |")
        for other in rows[1:]:
            # what is below the page size or the clock's resolution cannot be compared
            factors = " | ".join(
                f"{other[key] / max(rows[0][key], 4096 if 'bytes' in key else 1e-9):.1f}x" for key, _ in keys
            )
            lines.append(f"| | | *saved against {other['variant']}* | {factors} |")
    threads = costs[0]["threads"]
    note = (
        "Same feature network, same images. Times: medians of alternated repetitions in one process, "
        f"{threads} thread(s). Memory:\ngrowth of the peak resident memory, the batch of images included, "
        "in a fresh process per variant."
    )
    return "\n".join(lines) + f"\n\n{note}\n"
