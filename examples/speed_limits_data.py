"""The speed limit signs: photographs of Swedish roads, and which of the limits 50, 70 or 80 they show, if any.

Source: Larsson and Felsberg, "Using Fourier Descriptors and Spatial Models for Traffic Sign Recognition", SCIA 2011;
https://www.cvl.isy.liu.se/research/datasets/traffic-signs-dataset/. Set 1 is for training, set 2 for testing. A folder
of data holds Set1/ and Set2/, each with annotations.txt and an archive of JPEGs that is read without unpacking it.
"""

import json
import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from download import DownloadError, digest_of, download
from PIL import Image

URL = "http://www.isy.liu.se/cvl/research/trafficSigns/swedishSignsSummer"
SETS = {"train": "Set1", "test": "Set2"}
ANNOTATIONS_MD5 = {"Set1": "9106a905a86209c95dc9b51d12f520d6", "Set2": "09debbc67f6cd89c1e2a2688ad1d03ca"}
CLASSES = ["EMPTY", "50_SIGN", "70_SIGN", "80_SIGN"]
VISIBILITIES = ["VISIBLE", "BLURRED", "SIDE_ROAD", "OCCLUDED"]  # the clearest first
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Sign(NamedTuple):
    """One annotated sign; the box in pixels."""

    visibility: str
    x_max: float
    y_max: float
    x_min: float
    y_min: float
    kind: str
    name: str

    @property
    def area(self):
        return (self.x_max - self.x_min) * (self.y_max - self.y_min)


# ------------------------------------------------------------------------------------------------------------- download


def archive_name(name):
    """File name of the archive of a set."""
    return f"{name}Part0.zip"


def fetch(folder, url=URL):
    """Download into `folder` what is not there yet, 3.6 GB; `url` is the folder of a server that holds Set1 and Set2.

    Raises:
        DownloadError: a file cannot be had, or has other sums than it should.
    """
    for name in SETS.values():
        base = f"{url.rstrip('/')}/{name}"
        download(f"{base}/annotations.txt", folder / name / "annotations.txt", ("md5", ANNOTATIONS_MD5[name]))
        archive = download(f"{base}/{archive_name(name)}", folder / name / archive_name(name))
        check_archive(archive)


def check_archive(path):
    """Check the sums that the archive holds of every image, once: what was right is kept in NAME.sha256.json beside it.

    No sum of the whole archive is published. The record holds the SHA-256 for those who want to compare, and the size
    and the time of the file that was checked.
    """
    record = path.with_name(f"{path.name}.sha256.json")
    state = {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    try:
        if {**json.loads(record.read_text()), "sha256": None} == {**state, "sha256": None}:
            return
    except (OSError, ValueError, TypeError):
        pass  # no record, or none of ours
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{path} is not a ZIP archive, or a broken one, to be deleted: {error}") from error
    if broken is not None:
        raise DownloadError(f"{path} is broken and to be deleted: the sum of {broken} is wrong")
    part = record.with_suffix(".part")
    part.write_text(json.dumps({"sha256": digest_of(path, "sha256"), **state}, indent=1) + "\n")
    os.replace(part, record)


# ---------------------------------------------------------------------------------------------------------- annotations


def read_annotations(path):
    """[(name of the image, its `Sign`s)], in the order of the file.

    A line is NAME:SIGN;SIGN;... with SIGN = VISIBILITY, x_max, y_max, x_min, y_min, TYPE, NAME. Some numbers have other
    characters behind them, which are dropped. MISC_SIGNS, for signs that nobody described, are dropped, too.
    """
    images = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                images.append(_read_line(line.strip()))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return images


def _read_line(line):
    image, colon, signs = line.partition(":")
    if not colon:
        raise ValueError(f"expected NAME:SIGNS, got {line[:80]!r}")
    return image.strip(), [_read_sign(text) for text in signs.split(";") if _describes(text)]


def _describes(text):
    return text.strip() and text.split(",")[0].strip() != "MISC_SIGNS"


def _read_sign(text):
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 7:
        raise ValueError(f"expected VISIBILITY, x_max, y_max, x_min, y_min, TYPE, NAME, got {text.strip()!r}")
    if parts[0] not in VISIBILITIES:
        raise ValueError(f"expected one of {', '.join(VISIBILITIES)}, got {parts[0]!r}")
    return Sign(parts[0], *map(_read_number, parts[1:5]), parts[5], parts[6])


def _read_number(text):
    number = NUMBER.match(text)
    if not number or not math.isfinite(float(number[0])):
        raise ValueError(f"expected a number, got {text!r}")
    return float(number[0])


def class_of(signs):
    """The class, as an index into `CLASSES`, that an image with these signs stands for; None to leave it out.

    Without a described sign it is EMPTY. Otherwise the clearest speed limit decides, of several the largest, and it
    must be VISIBLE; an image whose signs are all of other kinds is left out.
    """
    if not signs:
        return 0
    limits = [sign for sign in signs if sign.name in CLASSES[1:]]
    if not limits:
        return None
    clearest = min(limits, key=lambda sign: (VISIBILITIES.index(sign.visibility), -sign.area))
    return CLASSES.index(clearest.name) if clearest.visibility == "VISIBLE" else None


# --------------------------------------------------------------------------------------------------------------- images


class SpeedLimitImages:
    """The images of a split ("train" or "test") that have a class, in a data folder as `fetch` leaves it.

    Attributes: `classes` (n,) int64; `names`, in the same order; `shape`, (height, width) of all images.
    """

    def __init__(self, folder, split):
        name = SETS[split]
        annotations = folder / name / "annotations.txt"
        labelled = [(image, class_of(signs)) for image, signs in read_annotations(annotations)]
        labelled = [(image, label) for image, label in labelled if label is not None]
        self.names = [image for image, _ in labelled]
        self.classes = np.array([label for _, label in labelled], np.int64)
        missing = [name for name, count in zip(CLASSES, self.counts, strict=True) if count == 0]
        if missing:
            raise ValueError(f"{annotations} has no image of class {missing[0]}")
        self.path = folder / name / archive_name(name)
        self.archive = zipfile.ZipFile(self.path)
        self.members = {Path(member).name: member for member in self.archive.namelist()}
        absent = [image for image in self.names if image not in self.members]
        if absent:
            raise ValueError(f"{self.path} lacks {len(absent)} of {len(self.names)} images, for example {absent[0]}")
        sizes = [self._opened(i, lambda image: image.size) for i in range(len(self))]  # of the header: fast
        self.shape = sizes[0][::-1]
        for image, (width, height) in zip(self.names, sizes, strict=True):
            if (height, width) != self.shape:
                raise ValueError(
                    f"{image} in {self.path} has {height} x {width} pixels, "
                    f"{self.names[0]} {self.shape[0]} x {self.shape[1]}"
                )

    def __len__(self):
        return len(self.names)

    @property
    def counts(self):
        """Images of each class."""
        return np.bincount(self.classes, minlength=len(CLASSES))

    def class_weights(self):
        """Class -> weight of its images in the loss, so that all classes count alike; the mean over the images is 1."""
        return {k: len(self) / (len(CLASSES) * int(count)) for k, count in enumerate(self.counts)}

    def read(self, i):
        """Image i, (height, width, 3) uint8."""
        return self._opened(i, lambda image: np.asarray(image.convert("RGB")))

    def _opened(self, i, function):
        """`function` of image i, opened but not decoded yet."""
        try:
            with self.archive.open(self.members[self.names[i]]) as file, Image.open(file) as image:
                return function(image)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.names[i]} in {self.path} cannot be read: {error}") from error

    def some_of_each(self, n, seed=0):
        """Indices of n images, the classes in turn, as far as there are that many."""
        order = np.random.default_rng(seed).permutation(len(self))
        by_class = [order[self.classes[order] == k] for k in range(len(CLASSES))]
        turns = [rows[turn] for turn in range(max(map(len, by_class))) for rows in by_class if turn < len(rows)]
        return np.array(turns[:n])
