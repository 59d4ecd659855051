"""A made-up set of road pictures with traffic signs, in the files and the format of the real one."""

import io
import zipfile

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from speed_limits_data import CLASSES, SETS, archive_name

HEIGHT, WIDTH = 240, 320
COUNTS = {"train": 700, "test": 200}
# what the pictures show, in turn; None: signs, but no visible limit, so that the picture is to be left out
KINDS = [*CLASSES, *CLASSES, CLASSES[0], None]
DISTRACTIONS = ["PEDESTRIAN_CROSSING", "PASS_RIGHT_SIDE", "STOP", "PRIORITY_ROAD"]
RED, YELLOW, BLUE, BLACK, WHITE = (190, 30, 40), (240, 200, 40), (40, 80, 180), (20, 20, 20), (235, 235, 235)
ENLARGED = 4  # signs are drawn larger and reduced, for smooth edges


def write(folder, seed=0, counts=None):
    """Write Set1 and Set2 into `folder`, with as many images as `counts` says for "train" and "test"."""
    counts = counts or COUNTS
    for number, (split, name) in enumerate(SETS.items()):
        rng = np.random.default_rng((seed, number))
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = []
        with zipfile.ZipFile(folder / name / archive_name(name), "w") as archive:
            for i in range(counts[split]):
                image, signs = draw(rng, KINDS[i % len(KINDS)])
                file = f"{1277381663 + i}Image{i:06d}.jpg"
                jpeg = io.BytesIO()
                image.save(jpeg, "JPEG", quality=92)
                # a fixed date: the same seed gives the same bytes
                archive.writestr(zipfile.ZipInfo(file), jpeg.getvalue())
                lines.append(f"{file}:{''.join(f'{sign};' for sign in signs)}\n")
        (folder / name / "annotations.txt").write_text("".join(lines))


def draw(rng, name):
    """A picture for one of `KINDS`, and its signs as they stand in annotations.txt."""
    image = road(rng)
    taken, signs = [], []
    if name is None:
        hidden = rng.choice(["BLURRED", "SIDE_ROAD", "OCCLUDED"])
        signs.append(_place(image, rng, taken, rng.choice(CLASSES[1:]), hidden, rng.integers(6, 16)))
        signs.append(_place(image, rng, taken, rng.choice(DISTRACTIONS), "VISIBLE", rng.integers(8, 15)))
    elif name != "EMPTY":
        signs.append(_place(image, rng, taken, name, "VISIBLE", rng.integers(13, 18)))
        if rng.random() < 0.3:  # a smaller, less clear one of any limit: the visible one decides
            other, visibility = rng.choice(CLASSES[1:]), rng.choice(["BLURRED", "SIDE_ROAD", "OCCLUDED"])
            signs.append(_place(image, rng, taken, other, visibility, rng.integers(6, 9)))
        for _ in range(rng.integers(0, 3)):
            signs.append(_place(image, rng, taken, rng.choice(DISTRACTIONS), "VISIBLE", rng.integers(8, 15)))
    for _ in range(rng.integers(0, 3)):
        _place(image, rng, taken, rng.choice(DISTRACTIONS), "VISIBLE", rng.integers(5, 9))
        signs.append("MISC_SIGNS")
    return image, [signs[i] for i in rng.permutation(len(signs))]


def road(rng):
    """Sky, land with trees, and a road that runs to the horizon, under noise."""
    horizon = int(rng.integers(HEIGHT // 3, HEIGHT // 2))
    light = rng.uniform(0.6, 1.1)
    image = Image.new("RGB", (WIDTH, HEIGHT), _lit((150, 180, 210), light))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, horizon, WIDTH, HEIGHT), fill=_lit((80, 110, 60), light))
    centre = int(rng.integers(WIDTH // 3, 2 * WIDTH // 3))
    near = int(rng.integers(WIDTH // 4, WIDTH // 2))
    road_corners = [
        (centre - 8, horizon),
        (centre + 8, horizon),
        (WIDTH // 2 + near, HEIGHT),
        (WIDTH // 2 - near, HEIGHT),
    ]
    pen.polygon(road_corners, fill=_lit((95, 95, 100), light))
    for _ in range(12):
        x, y, size = rng.integers(0, WIDTH), horizon + rng.integers(-6, 7), rng.integers(8, 30)
        green = _lit((int(rng.integers(30, 70)), int(rng.integers(60, 110)), 40), light)
        pen.ellipse((x - size, y - size, x + size, y + size // 2), fill=green)
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _lit(colour, light):
    return tuple(min(255, int(value * light)) for value in colour)


def _place(image, rng, taken, name, visibility, radius):
    """Draw a sign where none is yet; returns its annotation."""
    radius = int(radius)
    margin = radius + 4
    for _ in range(100):  # a crowded picture: the last try stays
        x, y = (int(rng.integers(margin, side - margin)) for side in (WIDTH, HEIGHT * 3 // 4))
        if all((x - u) ** 2 + (y - v) ** 2 > (radius + r + 3) ** 2 for u, v, r in taken):
            break
    taken.append((x, y, radius))
    sign = face(name, 2 * radius)
    ImageDraw.Draw(image).line((x, y, x, min(HEIGHT, y + 4 * radius)), fill=(110, 110, 110), width=2)
    if visibility == "BLURRED":
        sign = sign.filter(ImageFilter.GaussianBlur(radius / 4))
    image.paste(sign, (x - radius, y - radius), sign)
    if visibility == "OCCLUDED":
        ImageDraw.Draw(image).ellipse((x - radius, y, x + radius, y + 2 * radius), fill=(40, 80, 40))
    box = f"{x + radius:.6f}, {y + radius:.6f}, {x - radius:.6f}, {y - radius:.6f}"
    kind = "PROHIBITORY" if name in CLASSES else "INFORMATION"
    return f"{visibility}, {box}, {kind}, {name}"


def face(name, size):
    """A sign of that name as (size, size) RGBA."""
    big = ENLARGED * size
    image = Image.new("RGBA", (big, big))
    pen = ImageDraw.Draw(image)
    if name in CLASSES:
        pen.ellipse((0, 0, big - 1, big - 1), fill=RED)
        rim = big // 8
        pen.ellipse((rim, rim, big - 1 - rim, big - 1 - rim), fill=YELLOW)
        font = ImageFont.load_default(0.56 * big)
        pen.text((big / 2, big / 2), name[:2], fill=BLACK, font=font, anchor="mm", stroke_width=big // 50)
    elif name == "STOP":
        pen.regular_polygon((big / 2, big / 2, big / 2), 8, rotation=22, fill=RED)
        pen.rectangle((big // 6, big * 2 // 5, big * 5 // 6, big * 3 // 5), fill=WHITE)
    elif name == "PRIORITY_ROAD":
        pen.regular_polygon((big / 2, big / 2, big / 2), 4, rotation=45, fill=WHITE)
        pen.regular_polygon((big / 2, big / 2, big / 3), 4, rotation=45, fill=YELLOW)
    elif name == "PASS_RIGHT_SIDE":
        pen.ellipse((0, 0, big - 1, big - 1), fill=BLUE)
        pen.line((big // 4, big // 4, big * 3 // 4, big * 3 // 4), fill=WHITE, width=big // 8)
    else:
        pen.rectangle((0, 0, big - 1, big - 1), fill=BLUE)
        pen.polygon([(big / 2, big / 5), (big / 5, big * 4 / 5), (big * 4 / 5, big * 4 / 5)], fill=WHITE)
    return image.resize((size, size), Image.Resampling.LANCZOS)
