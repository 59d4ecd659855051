"""Patches as GeoJSON: RFC 7946, and what QuPath reads of a feature (its QuPathTypeAdapters, PathClassTypeAdapter)."""

import itertools
import json

import numpy as np
import pytest

from ats_core import extract_patches
from ats_core.attend.geojson import to_geojson
from attend_made import made


def signed_area(ring):
    """Positive where a ring is counter-clockwise, x to the right and y upwards."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 4.0), (3.0, 16.0), (2.0,)], ids=str)
def test_a_feature_is_a_patch(scales):
    attended = made(scales=scales)
    file = json.loads(json.dumps(to_geojson(attended), allow_nan=False))
    assert file.keys() == {"type", "features"} and file["type"] == "FeatureCollection"
    assert len(file["features"]) == len(attended.origins)
    order = sorted(range(len(attended.origins)), key=lambda i: -attended.probabilities[i])
    for rank, (i, feature) in enumerate(zip(order, file["features"], strict=True), 1):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5 and ring[0] == ring[-1]
        height, width = (size * scales[0] for size in attended.patch_size)
        assert signed_area(ring) == height * width
        top, left = (
            origin - np.floor((scales[0] - 1) * size / 2)
            for origin, size in zip(attended.origins[i], attended.patch_size, strict=True)
        )
        corners = {(left, top), (left + width, top), (left, top + height), (left + width, top + height)}
        assert {tuple(point) for point in ring} == corners
        properties = feature["properties"]
        assert properties["objectType"] == "annotation" and properties["name"] == f"patch {rank}"
        assert properties["measurements"] == {
            "probability": attended.probabilities[i],
            "weight": attended.weights[i],
            "rank": rank,
        }
        for colour in (properties["color"], properties["classification"]["color"]):
            assert len(colour) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in colour)
        assert properties["classification"]["name"] == "Attended"
    colours = [tuple(feature["properties"]["color"]) for feature in file["features"]]
    assert len(set(colours)) == len(colours)


def test_a_box_is_what_extract_patches_reads():
    """An image of which every pixel says where it is."""
    shape, scale = (64, 96), 3
    attended = made(shape=shape, patch_size=(5, 4), scales=(float(scale),), grid=(4, 4), field=(1, 1))
    image = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float64)
    # Patches that reach outside know less of where they are.
    inside = [i for i, origin in enumerate(attended.origins) if (origin >= 8).all() and (origin < (50, 80)).all()]
    assert inside
    patches = extract_patches(image[None], attended.origins[None], (5, 4), scales=[scale])[0, :, 0]
    features = to_geojson(attended)["features"]
    for i in inside:
        (ring,) = features[attended.ranks[i] - 1]["geometry"]["coordinates"]
        x, y = np.mean(ring[:4], 0)
        np.testing.assert_allclose(patches[i].mean((0, 1)) + 0.5, (y, x))  # pixel i spans i to i + 1


def test_the_class_is_the_predicted_one():
    def label(classes, prediction=(0.1, 0.7, 0.2)):
        features = to_geojson(made(prediction=prediction), classes)["features"]
        (name,) = {feature["properties"]["classification"]["name"] for feature in features}
        return name

    assert label(["healthy", "tumour", "other"]) == "tumour"
    assert label(["healthy", " tum\nour ", "other"]) == "tum our"  # QuPath refuses line breaks
    assert label(["healthy", " ", "other"]) == "Attended"
    assert label(["healthy", "tumour"], (np.nan, 1.0)) == "Attended"
    assert label(["score"], (0.3,)) == "Attended"
    with pytest.raises(ValueError, match=r"^classes: the model has 3 outputs, got 2 names$"):
        label(["healthy", "tumour"])


def test_only_images_are_drawn():
    with pytest.raises(ValueError, match=r"^axes: .*slide.svs has tyx$"):
        to_geojson(made(axes="tyx"))
