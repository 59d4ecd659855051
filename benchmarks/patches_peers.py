"""Cutting patches out of a batch of images, beside what PyTorch, NumPy and TensorFlow offer

    python benchmarks/patches_peers.py [--threads 1 2] [--out benchmarks/results]

Every call cuts at other places, which together are more than a cache holds, so that pixels come from memory. The floor,
a loop of memcpys over the same rows, is measured in C++ (target `bench`); here it is NumPy that copies into one buffer,
where all others make a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import timing

BATCH, SAMPLES, CHANNELS, SIZE, PATCH = 32, 10, 3, 1500, 50
SMOKE = 2, 3, 3, 80, 5
PLACES = 16
SCALES = (1, 2, 4)
MEAN, STD = 127.5, 64.0
ROI_ALIGN = "torchvision.ops.roi_align"


def measure(framework: str, turns: int, smoke: bool) -> Iterator[timing.Record]:
    batch, samples, channels, size, patch = SMOKE if smoke else (BATCH, SAMPLES, CHANNELS, SIZE, PATCH)
    generator = np.random.default_rng(0)
    bytes_ = generator.integers(0, 256, (batch, size, size, channels), np.uint8)
    # So far from the border that the largest scale stays inside.
    margin = (max(SCALES) - 1) * patch // 2
    places = generator.integers(margin, size - margin - patch, (PLACES, batch, samples, 2))
    case = f"{batch} images {size} x {size} x {channels}, {samples} patches {patch} x {patch}"
    groups = torch_groups if framework == "torch" else tensorflow_groups
    for group, methods in groups(bytes_, places, patch):
        expected = np.asarray(next(iter(methods.values()))(0))
        for name, method in methods.items():
            patches = np.asarray(method(0))
            assert patches.shape == expected.shape, f"{name}: shape {patches.shape}, not {expected.shape}"
            np.testing.assert_allclose(patches, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        yield timing.compare(group, case, methods, turns)
        if "NCHW" in group and "scales" not in group and ROI_ALIGN not in methods:
            yield {"note": f"{ROI_ALIGN} is not in the table: no torchvision for this PyTorch is installed."}


Groups = Iterator[tuple[str, dict[str, Callable[[int], object]]]]


def torch_groups(bytes_: np.ndarray, all_places: np.ndarray, size: int) -> Groups:
    import torch
    from torch.nn.functional import avg_pool2d

    import ats_core.torch as ats

    places = [torch.from_numpy(x) for x in all_places]
    steps = torch.arange(size)
    pixels = torch.from_numpy(bytes_)  # NHWC
    images = pixels.permute(0, 3, 1, 2).float().contiguous()
    rows = torch.arange(len(images))[:, None]

    def at(number, scale=1):
        """The batch's places, moved so that a patch `scale` times as large keeps the centre."""
        return places[number % PLACES] - (scale - 1) * size // 2

    def indexing(number, scale=1):
        step = torch.arange(scale * size)
        y, x = (at(number, scale)[:, :, axis, None] + step for axis in (0, 1))
        return images[rows[..., None, None], :, y[..., None], x[:, :, None]].permute(0, 1, 4, 2, 3)

    def unfold(number):
        y, x = at(number).unbind(2)
        return images.unfold(2, size, 1).unfold(3, size, 1)[rows, :, y, x]

    def loop(number, scale=1):
        n = scale * size
        return torch.stack(
            [
                torch.stack([image[:, y : y + n, x : x + n] for y, x in origins])
                for image, origins in zip(images, at(number, scale).tolist(), strict=True)
            ]
        )

    array = images.numpy()
    buffer = np.empty((*places[0].shape[:2], 3, size, size), np.float32)

    def numpy_loop(number):
        for patches, image, origins in zip(buffer, array, at(number).tolist(), strict=True):
            for patch, (y, x) in zip(patches, origins, strict=True):
                patch[:] = image[:, y : y + size, x : x + size]
        return buffer

    methods = {
        "ats_core.torch.extract_patches": lambda number: ats.extract_patches(images, at(number), size),
        "advanced indexing": indexing,
        "unfold + indexing": unfold,
        "loop of slices + stack": loop,
        "NumPy slices into one buffer" + timing.FLOOR: numpy_loop,
    }
    try:
        methods[ROI_ALIGN] = roi_align(images, at, size)
    except (ImportError, RuntimeError):
        pass  # the note says it
    yield "PyTorch and NumPy, float32 NCHW", methods

    def indexing_bytes(number):
        y, x = (at(number)[:, :, axis, None] + steps for axis in (0, 1))
        return (pixels[rows[..., None, None], y[..., None], x[:, :, None]].float() - MEAN) / STD

    def loop_bytes(number):
        cut = torch.stack(
            [
                torch.stack([image[y : y + size, x : x + size] for y, x in origins])
                for image, origins in zip(pixels, at(number).tolist(), strict=True)
            ]
        )
        return (cut.float() - MEAN) / STD

    yield (
        "PyTorch, uint8 NHWC to normalised float32",
        {
            "ats_core.torch.extract_patches": lambda number: ats.extract_patches(
                pixels, at(number), size, mean=MEAN, std=STD, data_format="channels_last"
            ),
            "advanced indexing": indexing_bytes,
            "loop of slices + stack": loop_bytes,
        },
    )

    def pooled(cut, number):
        scales = [cut(number, scale) for scale in SCALES]
        return torch.stack(
            [
                avg_pool2d(x.flatten(1, 2), s).view(*x.shape[:3], size, size)
                for x, s in zip(scales, SCALES, strict=True)
            ],
            2,
        )

    yield (
        f"PyTorch, float32 NCHW, scales {', '.join(map(str, SCALES))}",
        {
            "ats_core.torch.extract_patches": lambda number: ats.extract_patches(
                images, at(number), size, scales=SCALES
            ),
            "advanced indexing + avg_pool2d": lambda number: pooled(indexing, number),
            "loop of slices + avg_pool2d": lambda number: pooled(loop, number),
        },
    )


def roi_align(images, at, size):
    import torch
    from torchvision.ops import roi_align

    def method(number):
        origins = at(number).flip(2).float()
        boxes = list(torch.cat([origins, origins + size], 2))
        return roi_align(images, boxes, size, sampling_ratio=1, aligned=True).view(*origins.shape[:2], 3, size, size)

    return method


def tensorflow_groups(bytes_: np.ndarray, all_places: np.ndarray, size: int) -> Groups:
    import tensorflow as tf

    import ats_core.tensorflow as ats

    places = [tf.constant(x) for x in all_places]
    pixels = tf.constant(bytes_)
    images = tf.cast(pixels, tf.float32)
    batch, samples = places[0].shape[:2]

    def at(number):
        return places[number % PLACES]

    @tf.function
    def gather(images, origins):
        step = tf.range(size, dtype=tf.int64)
        y, x = (origins[:, :, axis, None] + step for axis in (0, 1))
        first = tf.reshape(tf.range(batch, dtype=tf.int64), (-1, 1, 1, 1))
        shape = (batch, samples, size, size)
        indices = [tf.broadcast_to(i, shape) for i in (first, y[..., None], x[:, :, None])]
        return tf.gather_nd(images, tf.stack(indices, -1))

    @tf.function
    def glimpses(images, origins):
        offsets = tf.unstack(tf.cast(origins, tf.float32), axis=1)
        cuts = [tf.image.extract_glimpse(images, (size, size), x, centered=False, normalized=False) for x in offsets]
        return tf.stack(cuts, 1)

    @tf.function
    def slices(images, origins):
        def cut(pair):
            image, origin = pair
            return tf.map_fn(
                lambda at: tf.slice(image, [at[0], at[1], 0], [size, size, -1]), origin, fn_output_signature=image.dtype
            )

        return tf.map_fn(cut, (images, origins), fn_output_signature=images.dtype)

    ours = tf.function(lambda images, origins: ats.extract_patches(images, origins, size))
    ours_bytes = tf.function(lambda images, origins: ats.extract_patches(images, origins, size, mean=MEAN, std=STD))
    normalise = tf.function(lambda patches: (tf.cast(patches, tf.float32) - MEAN) / STD)
    yield (
        "TensorFlow, float32 NHWC",
        {
            "ats_core.tensorflow.extract_patches": lambda number: ours(images, at(number)),
            "tf.gather_nd": lambda number: gather(images, at(number)),
            "tf.image.extract_glimpse": lambda number: glimpses(images, at(number)),
            "tf.map_fn of tf.slice": lambda number: slices(images, at(number)),
        },
    )
    yield (
        "TensorFlow, uint8 NHWC to normalised float32",
        {
            "ats_core.tensorflow.extract_patches": lambda number: ours_bytes(pixels, at(number)),
            "tf.gather_nd": lambda number: normalise(gather(pixels, at(number))),
            "tf.map_fn of tf.slice": lambda number: normalise(slices(pixels, at(number))),
        },
    )


def main() -> None:
    timing.run(__doc__, "patches_peers", measure)


if __name__ == "__main__":
    main()
