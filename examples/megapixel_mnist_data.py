"""Megapixel-MNIST: where the digits come from, and how they are scattered on large dark images.

An image shows five 28 x 28 digits that do not overlap, three of them of one class (the label) and two of other classes,
and, if asked for, short lines as distraction. Only *what stands where* is stored (a hundred bytes an image); a batch of
pixels is composed when it is needed, so thousands of 1500 x 1500 images fit into little memory.
"""

import gzip
import os
import zlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from download import DownloadError, download

DIGIT = 28  # pixels along the side of a digit, and of a line pattern
PER_IMAGE = 5  # digits on an image
MAJORITY = 3  # how many of them are of the image's class
N_LINES = 256  # line patterns that noise is drawn from
N_PAIRS = 50  # patterns of the paper's noise

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# what reading a truncated, corrupt or entirely different file can raise
UNREADABLE = (
    AttributeError,
    BadZipFile,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)


class Digits(NamedTuple):
    """Digit images (D, 28, 28) uint8 and their classes (D,) int64."""

    images: np.ndarray
    classes: np.ndarray


# --------------------------------------------------------------------------------------------------------------- digits


def load_digits(source, path=None):
    """Train and test `Digits` of `source`: "sklearn" (bundled) or "mnist" (from `path`, a cache, or a download)."""
    if source == "sklearn":
        return _sklearn_digits()
    if path is None:
        return _cached_mnist()
    path = Path(path)
    if path.is_dir():
        return _read_idx(path)
    if path.is_file():
        return _read_npz(path)
    raise ValueError(
        f"--digits-file: {path} does not exist; expected an mnist.npz file or a folder with the four idx files"
    )


def _sklearn_digits():
    """scikit-learn's 1797 digits, 8 x 8 enlarged to 28 x 28.

    They were copied from 14 filled-in forms one after the other (each starts 0 1 2 .. 9 0 1 2 .. 9), so a cut between
    two forms leaves other people's handwriting for the test: 11 forms for training, 3 for testing.
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits as bundled

    data = bundled()
    # 20 pixels of ink on a margin of 4, as in MNIST; cubic interpolation overshoots, hence the clip
    enlarged = zoom(data.images / 16.0, (1, 2.5, 2.5), order=3, mode="grid-constant", grid_mode=True).clip(0, 1)
    images = np.zeros((len(enlarged), DIGIT, DIGIT), np.uint8)
    images[:, 4:24, 4:24] = np.round(255 * enlarged)
    classes = data.target.astype(np.int64)
    cut = 1415  # where the twelfth form starts
    return Digits(images[:cut], classes[:cut]), Digits(images[cut:], classes[cut:])


def _cached_mnist():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ats" / "mnist.npz"
    for npz in (cache, Path.home() / ".keras" / "datasets" / "mnist.npz"):
        if npz.is_file():
            return _read_npz(npz)
    # torchvision writes to MNIST/raw under a folder that its user names; "data" is what its documentation has
    for folder in (Path("data"), Path.home() / "data"):
        if (folder / "MNIST" / "raw").is_dir():
            return _read_idx(folder / "MNIST" / "raw")
    return _read_npz(_download(MNIST_URL, cache, MNIST_SHA256))


def _download(url, target, sha256):
    try:
        return download(url, target, ("sha256", sha256))
    except DownloadError as error:
        raise ValueError(f"{error}; give the file with --digits-file, or use --digits sklearn") from error


def _read_npz(path):
    try:
        with open(path, "rb") as file, np.load(file) as data:
            return _checked(*(data[name] for name in ("x_train", "y_train", "x_test", "y_test")))
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is not an mnist.npz file (x_train, y_train, x_test, y_test), or a broken one, to be deleted: {error}"
        ) from error


def _read_idx(folder):
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    arrays = [_read_idx_file(folder / name) for name in names]
    try:
        return _checked(*arrays)
    except UNREADABLE as error:
        raise ValueError(f"{folder} does not hold MNIST's four idx files: {error}") from error


def _read_idx_file(path):
    """One idx file, gzipped or not: bytes 0, 0, 8 (for uint8), rank; the sizes as big-endian int32; the data."""
    zipped = path.with_name(path.name + ".gz")
    if not path.is_file() and not zipped.is_file():
        raise ValueError(f"{path} does not exist, neither does {zipped.name}")
    path = path if path.is_file() else zipped
    try:
        raw = gzip.decompress(path.read_bytes()) if path == zipped else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not start with 0, 0, 8")
        shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not an idx file of bytes, or a broken one, to be deleted: {error}") from error


def _checked(x_train, y_train, x_test, y_test):
    for images, classes in ((x_train, y_train), (x_test, y_test)):
        if images.shape[1:] != (DIGIT, DIGIT) or images.dtype != np.uint8 or classes.shape != images.shape[:1]:
            raise ValueError(
                "expected uint8 images (D, 28, 28) with D classes, "
                f"got {images.dtype} {images.shape} and {classes.shape}"
            )
    return Digits(x_train, y_train.astype(np.int64)), Digits(x_test, y_test.astype(np.int64))


# ---------------------------------------------------------------------------------------------------------- composition


class MegapixelMNIST:
    """`n` images of `size` x `size` pixels made of `digits`; `seed` (an int or a tuple of ints) decides them all.

    With `paper` as in the paper's code: the two other digits may be of one class, and noise is pairs of lines, whose
    boxes cover what they fall on.

    Stored: `digit_ids` (n, 5) and their top left corners `digit_at` (n, 5, 2); `line_ids` (n, noise) and `line_at`
    (n, noise, 2).
    """

    def __init__(self, digits, n, size, noise=0, seed=0, low_size=None, paper=False):
        if n < 1:
            raise ValueError(f"a data set needs at least one image, got {n}")
        rng = np.random.default_rng(seed)
        self.digits, self.size, self.low_size, self.paper = digits, size, low_size or size // 4, paper
        self.labels = rng.integers(10, size=n)
        self.digit_ids = _draw_digits(digits.classes, self.labels, rng, others_differ=not paper)
        self.digit_at = _scatter(n, size, rng)
        self.lines = _pair_patterns() if paper else _line_patterns()
        self.line_ids = rng.integers(len(self.lines), size=(n, noise))
        edge = DIGIT if paper else 0  # the paper's noise keeps away from the border
        self.line_at = rng.integers(edge, size - DIGIT + 1 - edge, size=(n, noise, 2))

    def __len__(self):
        return len(self.labels)

    def batch(self, rows):
        """Images `rows` (B,).

        x_low (B, 1, low, low) float32 in [0, 1], x_high (B, 1, size, size) uint8, labels (B,) int64.
        """
        x_high = np.zeros((len(rows), self.size, self.size), np.uint8)
        for slot in range(PER_IMAGE):
            _paste(x_high, self.digits.images[self.digit_ids[rows, slot]], self.digit_at[rows, slot])
        for slot in range(self.line_ids.shape[1]):
            _paste(x_high, self.lines[self.line_ids[rows, slot]], self.line_at[rows, slot], cover=self.paper)
        return downsample(x_high, self.low_size)[:, None], x_high[:, None], self.labels[rows]


def _draw_digits(classes, labels, rng, others_differ):
    """Per image three digits of its class and two of other classes, as ids (n, 5) into `classes`."""
    by_class = [np.flatnonzero(classes == k) for k in range(10)]
    if min(map(len, by_class)) == 0:
        raise ValueError("the digits must hold every class from 0 to 9")
    wanted = np.repeat(labels[:, None], PER_IMAGE, axis=1)
    # a shift by 1..9 modulo 10 is any class but the image's own; two different shifts keep the two others distinct
    others = PER_IMAGE - MAJORITY
    if others_differ:
        shifts = np.argsort(rng.random((len(labels), 9)), axis=1)[:, :others] + 1
    else:
        shifts = rng.integers(1, 10, size=(len(labels), others))
    wanted[:, MAJORITY:] = (labels[:, None] + shifts) % 10
    ids = np.empty_like(wanted)
    for k, members in enumerate(by_class):
        mask = wanted == k
        ids[mask] = rng.choice(members, mask.sum())
    return ids


def _scatter(n, size, rng):
    """Corners (n, 5, 2) of five boxes that do not overlap: a box that meets an earlier one is drawn again.

    On a small image the first boxes can leave no room for the others; after `patience` rounds all five start anew.
    """
    patience = 50
    at = rng.integers(size - DIGIT + 1, size=(n, PER_IMAGE, 2))
    todo = np.arange(n)
    for attempt in range(1, 10_000):
        # (todo, 5, 5); boxes overlap where below DIGIT
        gap = np.abs(at[todo, :, None] - at[todo, None, :]).max(axis=-1)
        clash = np.tril(gap < DIGIT, -1).any(axis=2)
        todo, clash = todo[clash.any(axis=1)], clash[clash.any(axis=1)]
        if len(todo) == 0:
            return at
        if attempt % patience == 0:
            clash[:] = True
        row, slot = todo[:, None].repeat(PER_IMAGE, 1)[clash], np.nonzero(clash)[1]
        at[row, slot] = rng.integers(size - DIGIT + 1, size=(len(row), 2))
    raise ValueError(f"--size {size}: could not place {PER_IMAGE} digits of {DIGIT} pixels without overlap")


def _line_patterns():
    """(N_LINES, 28, 28) uint8: lines 8 to 24 pixels long, about 2 thick, at any angle. Always the same ones."""
    rng = np.random.default_rng(28)
    angle = rng.uniform(0, np.pi, (N_LINES, 1, 1))
    half = rng.uniform(4, 12, (N_LINES, 1, 1))
    y, x = np.mgrid[:DIGIT, :DIGIT] - (DIGIT - 1) / 2
    along = x * np.cos(angle) + y * np.sin(angle)
    across = x * np.sin(angle) - y * np.cos(angle)
    # the distance to the segment, as ink that fades over one pixel
    distance = np.hypot(np.maximum(np.abs(along) - half, 0), across)
    return np.round(255 * np.clip(1.6 - distance, 0, 1)).astype(np.uint8)


def _pair_patterns():
    """(N_PAIRS, 28, 28) uint8: two lines one pixel wide, each from a corner across its box. Always the same ones."""
    rng = np.random.default_rng(50)
    patterns = np.zeros((N_PAIRS, DIGIT, DIGIT))
    along = np.linspace(0, 1, 4 * DIGIT)
    for _ in range(2):
        slope = np.tan(rng.uniform(0, np.pi / 2.5, (N_PAIRS, 1)))
        reach = (DIGIT - 1) / np.maximum(slope, 1)  # to the far side
        y, x = np.rint(along * reach).astype(int), np.rint(along * reach * slope).astype(int)
        y, x = (np.where(rng.random((N_PAIRS, 1)) < 0.33, DIGIT - 1 - axis, axis) for axis in (y, x))
        patterns[np.arange(N_PAIRS)[:, None], y, x] = 1
    return np.round(255 * patterns * rng.uniform(0.8, 1, patterns.shape)).astype(np.uint8)


def _paste(images, stamps, at, cover=False):
    """Lay `stamps` (B, 28, 28) at corners `at` (B, 2) on `images` (B, H, W) in place.

    Where they meet something, the brighter pixel stays, or with `cover` the stamp's.
    """
    side = np.arange(DIGIT)
    where = np.arange(len(images))[:, None, None], at[:, 0, None, None] + side[:, None], at[:, 1, None, None] + side
    images[where] = stamps if cover else np.maximum(images[where], stamps)


def downsample(images, low):
    """Means of (B, H, W) uint8 over `low` x `low` areas: (B, low, low) float32 in [0, 1]. H / low need not be whole."""
    sums = images
    areas = 1.0
    for axis in (1, 2):
        edges = np.arange(low) * images.shape[axis] // low
        sums = np.add.reduceat(sums, edges, axis=axis, dtype=np.float32)
        widths = np.diff(edges, append=images.shape[axis])
        areas = areas * widths.reshape((-1, 1) if axis == 1 else -1)
    return sums / (255 * areas).astype(np.float32)
