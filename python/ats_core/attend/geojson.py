"""Sampled patches as GeoJSON (RFC 7946) that QuPath opens as annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ats_core.attend.result import Attended
from ats_core.plot import probability_colours

COLOUR = [255, 0, 255]  # of the class; each box has one of its own


def to_geojson(attended: Attended, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """A FeatureCollection with a box a patch, the likeliest first, at the first scale, in pixels of level 0.

    A box is a closed ring of (x, y), counter-clockwise where y points upwards. Its properties are QuPath's: objectType,
    name, color (by the logarithm of the probability), classification (the predicted class where `classes` names it,
    otherwise "Attended") and measurements: probability, weight, rank (1: the likeliest).

    Raises:
        ValueError: the source's axes are not "yx"; not as many classes as outputs.
    """
    attended.require_image()
    predicted = attended.class_names(classes)[attended.predicted] if classes and attended.predicted is not None else ""
    # A line break would be an error in QuPath, a class without a name no class.
    label = " ".join(predicted.split()) or "Attended"
    colours = probability_colours(len(attended.origins), attended.probabilities, None)
    features = []
    for i in attended.ranks.argsort():
        (top, left), (bottom, right) = attended.boxes(attended.scales[0])[i].tolist()
        rank = int(attended.ranks[i])
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
                },
                "properties": {
                    "objectType": "annotation",
                    "name": f"patch {rank}",
                    "color": colours[i].tolist(),
                    "classification": {"name": label, "color": COLOUR},
                    "measurements": {
                        "probability": float(attended.probabilities[i]),
                        "weight": float(attended.weights[i]),
                        "rank": rank,
                    },
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}
