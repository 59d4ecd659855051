"""What a model might have made of an image, for the tests of what is drawn of it."""

import numpy as np

import ats_core
from ats_core.attend.result import Attended


def made(
    *,
    name="slide.svs",
    shape=(3000, 4000),
    n=6,
    scales=(1.0,),
    patch_size=(60, 80),
    channels=3,
    dtype="uint8",
    grid=(5, 8),
    field=(30, 20),
    prediction=(0.25, 0.75),
    mpp=(0.5, 0.25),
    axes="yx",
):
    """Attention grows from the first cell to the last; a patch has 4 x 4 areas of one value each."""
    rng = np.random.default_rng(0)
    cells = int(np.prod(grid))
    attention = np.linspace(0.1, 2.0, cells).reshape(grid) / np.linspace(0.1, 2.0, cells).sum()
    indices = rng.choice(cells, n, replace=False)
    low = tuple(size // 10 for size in shape)
    origins = ats_core.patch_origins(indices[None], grid, shape, patch_size, low_shape=low, receptive_field=field)[0]
    areas = rng.integers(0, 256, (n, len(scales), 4, 4, channels))
    rows, columns = (np.arange(size) * 4 // size for size in patch_size)
    patches = areas[:, :, rows[:, None], columns]
    return Attended(
        name=name,
        axes=axes,
        shape=shape,
        mpp=mpp,
        prediction=np.array(prediction, np.float32),
        thumbnail=rng.integers(0, 256, (*low, channels)).astype(dtype),
        attention=attention,
        margin=tuple(width / 2 * size / little for width, size, little in zip(field, shape, low, strict=True)),
        indices=indices,
        origins=origins,
        patch_size=patch_size,
        scales=scales,
        patches=patches.astype(dtype),
        probabilities=attention.reshape(-1)[indices],
        weights=rng.uniform(0.05, 0.3, n),
    )
