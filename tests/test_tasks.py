"""examples/audio_events.py and volume_lesions.py at tiny settings: their data, what they write, how they refuse bad input."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("tqdm", "PIL", "matplotlib"):
    pytest.importorskip(module)

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import audio_events
import patch_tasks
import volume_lesions

TINY = {
    "audio_events": ["--seconds=4", "--n-train=12", "--n-test=6", "--epochs=2", "--n-patches=3", "--batch-size=4"],
    "volume_lesions": ["--size=40", "--n-train=12", "--n-test=6", "--epochs=2", "--n-patches=3", "--batch-size=4"],
}


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def start(name, folder, *words):
    program = importlib.import_module(name)
    return program.start([*TINY[name], "--threads=1", "--out", str(folder), *words])


@pytest.mark.parametrize("name", TINY)
def test_what_is_written(name, tmp_path, capsys):
    import matplotlib.image

    program = importlib.import_module(name)
    assert program.main([*TINY[name], "--threads=1", "--whole", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"overlay.png", "results.json", "table.md"}
    assert matplotlib.image.imread(tmp_path / "overlay.png").std() > 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["variant"] for row in results["rows"]] == list(patch_tasks.VARIANTS)
    assert all(row["step_ms"] > 0 and row["inference_ms"] > 0 for row in results["rows"])
    for row in results["rows"]:
        curve = [entry for entry in results["history"] if entry["variant"] == row["variant"]]
        assert [entry["epoch"] for entry in curve] == [1, 2]
        assert curve[-1]["test_accuracy"] == row["test_accuracy"]  # asked again, it answers the same
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and len(table.splitlines()) == 5


@pytest.mark.parametrize("name", TINY)
def test_seed_decides_everything(name, tmp_path):
    runs = [start(name, tmp_path, f"--seed={seed}", "--epochs=1") for seed in (7, 7, 8)]
    for run in runs:
        torch.manual_seed(0)
        run.train(patch_tasks.Classifier(run.task, run.options, patch_tasks.SAMPLING), patch_tasks.SAMPLING)
    first, same, other = ([entry["loss"] for entry in run.history] for run in runs)
    assert first == same != other


@pytest.mark.parametrize("name", TINY)
def test_variants_have_the_same_feature_network(name, tmp_path):
    run = start(name, tmp_path)
    models = [patch_tasks.Classifier(run.task, run.options, variant) for variant in patch_tasks.VARIANTS]
    shapes = [{key: value.shape for key, value in model.ats.feature.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1] == shapes[2]
    low, high, _ = next(run.batches(run.test, np.arange(4)))
    for model in models:
        assert model(low, high).shape == (4, len(run.task.classes))


def test_loudness_tells_nothing_of_the_kind():
    powers = [np.mean(make(1000.0) ** 2) for make in audio_events.KINDS.values()]
    np.testing.assert_allclose(powers, powers[0], rtol=0.03)


def test_mean_tells_nothing_of_the_kind():
    lesions = volume_lesions.lesions()
    means = [lesion.mean() for lesion in lesions]
    np.testing.assert_allclose(means, means[0], rtol=1e-6)
    solid, hollow, split = lesions
    centre = (volume_lesions.PATCH // 2,) * 3
    assert solid[centre] > 0 == hollow[centre] == split[centre]


def test_recordings_hold_what_they_are_made_of():
    data = audio_events.Recordings(3, 4 * audio_events.RATE, (0, 1))
    low, high, labels = data.batch(np.array([2, 0]))
    assert low.shape == (2, 1, 200) and high.shape == (2, 1, 32_000) and low.dtype == high.dtype == np.float32
    np.testing.assert_array_equal(labels, data.labels[[2, 0]])
    np.testing.assert_array_equal(data.batch(np.array([0]))[1][0], high[1])
    at = data.at[0, 0]
    sound = high[1, 0, at : at + audio_events.EVENT]
    likeness = {kind: np.dot(sound, make(data.base[0])) for kind, make in audio_events.KINDS.items()}
    assert max(likeness, key=likeness.get) == list(audio_events.KINDS)[labels[1]]


def test_volumes_hold_what_they_are_made_of():
    data = volume_lesions.Volumes(3, 40, (0, 1))
    low, high, labels = data.batch(np.array([2, 0]))
    assert low.shape == (2, 1, 5, 5, 5) and high.shape == (2, 1, 40, 40, 40) and high.dtype == np.uint8
    np.testing.assert_array_equal(labels, data.labels[[2, 0]])
    np.testing.assert_array_equal(data.batch(np.array([0]))[1][0], high[1])
    place = tuple(slice(at, at + volume_lesions.PATCH) for at in data.at[0])
    inside = data.lesions[labels[1]] > 0
    assert high[1, 0][place][inside].mean() > volume_lesions.TISSUE + 1.5 * volume_lesions.NOISE


@pytest.mark.parametrize(
    "name, words, says",
    [
        ("audio_events", "--seconds 0", "--seconds must be from 1"),
        ("audio_events", "--seconds x", "--seconds"),
        ("audio_events", "--n-patches 0", "--n-patches must be from 1"),
        ("audio_events", "--n-patches 256 --seconds 1", "--n-patches 256 is more than"),
        ("audio_events", "--lr 0", "--lr must be positive"),
        ("audio_events", "--out /dev/null/x", "--out"),
        ("volume_lesions", "--size 36", "--size must be a multiple of 8"),
        ("volume_lesions", "--size 8", "--size must be from 32"),
        ("volume_lesions", "--n-patches 100 --size 32", "--n-patches 100 is more than the 64 cells"),
        ("volume_lesions", "--epochs 0", "--epochs must be from 1"),
        ("volume_lesions", "--lr nan", "--lr must be from 0"),
    ],
)
def test_bad_option(name, words, says, tmp_path, capsys):
    program = importlib.import_module(name)
    assert program.main(["--out", str(tmp_path), *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
