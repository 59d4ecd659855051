"""The example of the README, at tiny settings: what it writes, how it stops and goes on, and how it refuses bad input."""

import gzip
import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

for module in ("torch", "sklearn", "scipy", "matplotlib", "tqdm"):
    pytest.importorskip(module)

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import megapixel_mnist as program
import megapixel_mnist_crops as crops
import megapixel_mnist_data as data
import megapixel_mnist_measure as measure
import megapixel_mnist_paper as paper
import megapixel_mnist_paper_report as paper_report
import megapixel_mnist_paper_study as paper_study
import megapixel_mnist_study as study
import megapixel_mnist_torch
import torch

TINY = re.findall(r"\S+", "--size=112 --n-train=32 --n-test=16 --n-patches=4 --batch-size=8 --threads=1 --cost-size=0")
WRITTEN = {"checkpoint.pt", "curves.png", "overlay.png", "patches.png", "results.json", "table.md", "weights.pt"}


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*words, program=("megapixel_mnist.py",)):
    line = [sys.executable, *program, *map(str, words)]
    return subprocess.run(line, cwd=EXAMPLES, capture_output=True, text=True, timeout=120, check=False)


def main(capsys, *words):
    """(exit code, lines on stderr) of the program in this process."""
    code = program.main([*map(str, words)])
    return code, capsys.readouterr().err.splitlines()


def history(folder):
    """The history in results.json but for the times."""
    entries = json.loads((folder / "results.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name != "train_s"} for entry in entries]


def trained(tmp_path, *words):
    """The `Run` of these options after all its epochs."""
    result = program.start([*TINY, "--out", str(tmp_path), *words])
    result.fit(tmp_path / "checkpoint.pt")
    return result


# ------------------------------------------------------------------------------------------------- stopping and resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of three epochs without a stop, with the costs."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(*TINY, "--epochs", 3, "--out", folder, "--cost-size", 1)
    assert done.returncode == 0, done.stderr
    return folder


def test_all_files_are_there(whole):
    import matplotlib.image

    assert {path.name for path in whole.iterdir()} == WRITTEN
    for name in ("curves", "overlay", "patches"):
        assert matplotlib.image.imread(whole / f"{name}.png").std() > 0
    results = json.loads((whole / "results.json").read_text())
    assert [entry["epoch"] for entry in results["history"]] == [1, 2, 3]
    assert results["test_accuracy"] == 1 - results["history"][-1]["test_error"]
    assert [row["variant"] for row in results["costs"]] == list(measure.VARIANTS)
    assert all(row["train_s"] > 0 and row["infer_s"] > 0 and row["train_bytes"] > 0 for row in results["costs"])
    assert "attention sampling" in (whole / "table.md").read_text()
    assert "head.weight" in torch.load(whole / "weights.pt", weights_only=True)


def test_sigint_and_resume_equal_an_uninterrupted_run(whole, tmp_path):
    options = [*TINY, "--epochs", "3", "--out", str(tmp_path)]
    # the signal comes from within the second batch of the second epoch: no timing is involved
    script = """
import os, signal, sys
import megapixel_mnist, megapixel_mnist_torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
steps, step = [], megapixel_mnist_torch.Backend.train_step
def interrupt(self, *arguments):
    steps.append(1)
    if len(steps) == 6:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, *arguments)
megapixel_mnist_torch.Backend.train_step = interrupt
sys.exit(megapixel_mnist.main())
"""
    stopped = run(*options, program=("-c", script))
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after 1 whole epochs" in stopped.stderr and "Traceback" not in stopped.stderr
    assert " ".join(options) in stopped.stderr and stopped.stderr.rstrip().endswith("--resume")
    resumed = run(*options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after epoch 1" in resumed.stdout
    assert re.findall(r"^epoch +(\d+)/3", resumed.stdout, re.MULTILINE) == ["2", "3"]
    assert history(tmp_path) == history(whole)
    ours, theirs = (torch.load(folder / "weights.pt", weights_only=True) for folder in (tmp_path, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_interrupt_elsewhere(tmp_path, capsys, monkeypatch):
    """While the data are read, and while the first checkpoint is written: no epoch is done yet."""
    for place, name in ((program, "load_digits"), (megapixel_mnist_torch, "write_checkpoint")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, Mock(side_effect=KeyboardInterrupt))
            code, lines = main(capsys, *TINY, "--out", tmp_path)
        assert code == 130 and lines[-2] == "stopped; to go on:" and lines[-1].endswith("--resume")


def test_finished_run(whole, capsys, monkeypatch):
    """It is not overwritten; --resume writes the report again, without a second measurement."""
    options = [*TINY, "--epochs", 3, "--out", whole, "--cost-size", 1]
    before = (whole / "checkpoint.pt").read_bytes()
    code, lines = main(capsys, *options)
    assert code == 2 and len(lines) == 1
    assert "holds a run of 3 epochs: add --resume to go on, or choose another --out" in lines[0]
    (whole / "overlay.png").unlink()
    monkeypatch.setattr(measure, "measure", None)
    assert program.main([*map(str, options), "--resume"]) == 0
    assert "all 3 epochs are done" in capsys.readouterr().out
    assert {path.name for path in whole.iterdir()} == WRITTEN
    assert (whole / "checkpoint.pt").read_bytes() == before
    code, lines = main(capsys, *options, "--resume", "--lr", 0.1)
    assert code == 2 and len(lines) == 1 and "--lr 0.1 contradicts" in lines[0]


def test_resume_without_a_checkpoint(tmp_path, capsys):
    assert program.main([*TINY, "--epochs", "1", "--out", str(tmp_path), "--resume"]) == 0
    assert capsys.readouterr().out.startswith("epoch   1/1")
    assert "not measured" in (tmp_path / "table.md").read_text()


def test_seed_decides_everything(tmp_path):
    runs = [trained(tmp_path / str(i), "--epochs=1", f"--seed={seed}") for i, seed in enumerate((7, 7, 8))]
    first, same, other = (run.history[0]["loss"] for run in runs)
    assert first == same != other


def test_failing_measurement_keeps_the_results(tmp_path, capsys, monkeypatch):
    options = program.parser().parse_args(["--size=112", "--cost-size=1"])
    reported = []
    for error in (MemoryError(), RuntimeError("killed\nby someone"), OSError("no more processes")):

        def fail(options, size, error=error):
            reported.append((tmp_path / "results.json").is_file())
            raise error

        monkeypatch.setattr(measure, "measure", fail)
        assert measure.cost_rows(options) == []
        assert len(capsys.readouterr().err.splitlines()) == 1
    code, lines = main(capsys, *TINY, "--epochs", 1, "--out", tmp_path, "--cost-size", 1)
    assert code == 0 and len(lines) == 1 and "measuring time and memory at 112 x 112 failed" in lines[0]
    assert reported[-1]  # written before the measurement
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN
    assert json.loads((tmp_path / "results.json").read_text())["costs"] == []


# ----------------------------------------------------------------------------------------------------------------- Keras


@pytest.fixture(scope="module")
def keras_backend():
    """The module of the Keras backend, on whichever framework Keras has."""
    pytest.importorskip("keras")
    return pytest.importorskip("megapixel_mnist_keras", exc_type=ImportError)


KERAS_TINY = [*TINY, "--backend=keras", "--n-train=16", "--n-test=8"]
KERAS_WRITTEN = WRITTEN - {"checkpoint.pt", "weights.pt"} | {"checkpoint.npz", "model.weights.h5"}


def to_keras(name, tensor):
    """A weight of PyTorch's layer as Keras lays it out."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.dim(), (0,))  # (out, in, rows, columns) to (rows, columns, in, out)
    return tensor.permute(order).numpy()


@pytest.mark.keras
def test_keras_trains_the_same_model_as_torch(keras_backend, digits):
    """From the same weights the same losses, step by step, and then the same predictions and patches."""
    options = program.parser().parse_args([*KERAS_TINY, "--patch-size=24", "--entropy=0.1", "--lr=1e-3"])
    ours, theirs = keras_backend.Backend(options, 40), megapixel_mnist_torch.Backend(options, 40)
    weights = {k: v for k, v in theirs.model.state_dict().items() if not k.endswith("num_batches_tracked")}
    ours.model.set_weights([to_keras(*item) for item in weights.items()])
    images = data.MegapixelMNIST(digits[0], 48, options.size, low_size=program.low_size(options))
    rows = np.arange(8)
    for step in range(5):
        batch, rng = images.batch(8 * step + rows), (3, 8 * step)
        loss = theirs.train_step(*batch, rng)
        # Adam divides by the size of a gradient, so that rounding shows in weights whose gradient is nearly 0
        assert ours.train_step(*batch, rng) == pytest.approx(loss, rel=2e-3), step
        if step > 0:
            assert loss != pytest.approx(np.log(10), abs=1e-3)  # not where everything starts, which proves nothing
    x_low, x_high, _ = images.batch(40 + rows)
    rng = 3, 40
    look, expected = (backend.look(x_low, x_high, rng) for backend in (ours, theirs))
    np.testing.assert_array_equal(look.origins, expected.origins)
    np.testing.assert_array_equal(look.patches, expected.patches)
    np.testing.assert_allclose(look.attention, expected.attention, rtol=0.02)
    np.testing.assert_allclose(look.weights, expected.weights, rtol=0.02)
    logits = [backend.predict(x_low, x_high, rng) for backend in (ours, theirs)]
    np.testing.assert_allclose(*logits, atol=0.02 * np.abs(logits[1]).max())
    np.testing.assert_array_equal(look.predictions, logits[0].argmax(1))


@pytest.mark.keras
def test_keras_starts_as_torch_does(keras_backend):
    """Every weight from the same distribution: uniform within the same bounds, or the same number."""
    options = program.parser().parse_args(KERAS_TINY)
    weights = megapixel_mnist_torch.Backend(options, 1).model.state_dict().items()
    expected = [to_keras(*item) for item in weights if not item[0].endswith("num_batches_tracked")]
    for ours, theirs in zip(keras_backend.Backend(options, 1).model.get_weights(), expected, strict=True):
        assert ours.shape == theirs.shape
        bound = 1.15 * np.abs(theirs).max() + 1e-9 if theirs.size > 100 else 1.0
        assert np.abs(ours).max() <= bound and (ours.std() == 0) == (theirs.std() == 0)
        if theirs.size > 100:
            assert ours.std() == pytest.approx(theirs.std(), rel=0.2)


@pytest.mark.keras
def test_keras_interrupt_and_resume(keras_backend, tmp_path, capsys, monkeypatch):
    steps, step = [], keras_backend.Backend.train_step

    def interrupt(self, *arguments):
        steps.append(1)
        if len(steps) == 4:  # the second batch of the second epoch
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(keras_backend.Backend, "train_step", interrupt)
        code, lines = main(capsys, *KERAS_TINY, "--epochs=3", "--out", tmp_path / "a")
    assert code == 130 and "stopped after 1 whole epochs; to go on:" in lines
    code, lines = main(capsys, *KERAS_TINY, "--backend=torch", "--epochs=3", "--out", tmp_path / "a", "--resume")
    assert code == 2 and "--backend torch contradicts" in lines[-1]
    assert program.main(["--out", str(tmp_path / "a"), "--resume", "--threads=1", "--cost-size=0"]) == 0
    assert program.main([*KERAS_TINY, "--epochs=3", "--out", str(tmp_path / "b")]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == KERAS_WRITTEN
    assert len(history(tmp_path / "a")) == 3 and history(tmp_path / "a") == history(tmp_path / "b")


@pytest.mark.keras
def test_keras_foreign_checkpoint(keras_backend, tmp_path, capsys):
    path = tmp_path / "checkpoint.npz"
    assert program.main([*KERAS_TINY, "--epochs=1", "--out", str(tmp_path)]) == 0
    with np.load(path) as file:
        right = dict(file)
    first = next(name for name in right if name.startswith("model/"))
    raw = path.read_bytes()
    broken = [b"", b"some text", raw[:-1000], raw[: len(raw) // 2]]
    wrong = [
        {"json": np.array("[]")},
        {"json": np.array("{}")},
        {name: array for name, array in right.items() if name != first},
        {**right, first: np.zeros((7, 7))},
        {name: array for name, array in right.items() if not name.startswith("optimizer/")},
        {"json": np.array({}, object)},
    ]
    for content in [*broken, *wrong]:
        path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
        code, lines = main(capsys, *KERAS_TINY, "--epochs=1", "--out", tmp_path, "--resume")
        assert code == 2 and f"{path} is not a checkpoint of this program" in lines[-1]


@pytest.mark.keras
def test_keras_costs(keras_backend, digits):
    """A training step of either variant changes weights, inference does not."""
    options = program.parser().parse_args(KERAS_TINY)
    backend = keras_backend.Backend(options, 1)
    images = data.MegapixelMNIST(digits[0], 4, options.size, low_size=program.low_size(options))
    for variant, model in zip(measure.VARIANTS, (backend.model, backend.whole_image), strict=True):
        train, infer = backend.costs(variant, *images.batch(np.arange(4)))
        before = model.get_weights()
        infer()
        assert all(map(np.array_equal, before, model.get_weights()))
        train()
        assert not all(map(np.array_equal, before, model.get_weights()))


# ------------------------------------------------------------------------------------------------------------- the paper

PAPER_TINY = [*TINY, "--paper", "--digits=sklearn", "--noise=2", "--n-train=8", "--n-test=4", "--batch-size=4"]
PAPER_TINY += ["--first-patches=6", "--first-epochs=1"]


def test_paper_sets_the_papers_experiment(tmp_path):
    """What the 2019 code has by default; a typed option wins, and a resumed run needs no --paper."""
    options, _ = program.read_options(["--paper", "--out", str(tmp_path)])
    expected = {"size": 1500, "noise": 50, "n_patches": 10, "patch_size": 50, "n_train": 5000, "n_test": 1000}
    expected |= {"entropy": 1e-4, "fresh": False, "digits": "mnist", "estimator": "murthy"}
    assert expected.items() <= vars(options).items() and program.low_size(options) == 180
    options, _ = program.read_options(["--paper", "--size=500", "--noise=0", "--out", str(tmp_path)])
    assert (options.size, options.noise, options.n_patches, program.low_size(options)) == (500, 0, 10, 60)
    trained(tmp_path, *PAPER_TINY, "--epochs=1", "--model=mil")
    options, _ = program.read_options(["--resume", "--out", str(tmp_path)])
    assert options.paper and options.model == "mil"


def test_paper_draws_more_patches_at_first(tmp_path, monkeypatch):
    drawn, forward = [], paper.FeatureNetwork.forward

    def count(network, patches):
        drawn.append(len(patches))
        return forward(network, patches)

    monkeypatch.setattr(paper.FeatureNetwork, "forward", count)
    trained(tmp_path, *PAPER_TINY, "--epochs=2")
    assert drawn == [24, 24, 16, 16, 16, 16]  # two batches of training, one of the test


def test_paper_networks():
    """The layers and numbers of the paper's code."""
    options, _ = program.read_options(["--paper", "--out", "unused"])
    model = paper.Classifier(options)
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() > 1]
    features = [(32, 1, 7, 7), (32, 32, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3)]
    assert shapes == [*features, (8, 1, 3, 3), (8, 8, 3, 3), (1, 8, 3, 3), (10, 32)]
    attention = model.ats.attention(torch.rand(2, 1, 180, 180))
    assert attention.shape == (2, 180, 180) and attention.min() >= 1e-5 / 180**2
    torch.testing.assert_close(attention.sum((1, 2)), torch.ones(2))
    seen = model.feature(torch.rand(3, 1, 50, 50))
    assert seen.shape == (3, 32)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("model", program.MODELS)
def test_paper_models_train(model, tmp_path):
    """One gradient step changes every weight, and the step is for the label: with enough of them the loss falls."""
    options, _ = program.read_options([*PAPER_TINY, "--out", str(tmp_path), "--model", model, "--lr=1e-3"])
    run = program.Run(options, bar=False)
    batch = run.images(run.train_digits, 4, "train").batch(np.arange(4))
    # with biases at 0 a sample of black patches alone has no gradient to the convolutions
    for weight in run.backend.model.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0, 0.1)
    before = [weight.clone() for weight in run.backend.model.parameters()]
    losses = [run.backend.train_step(*batch, (3, 4 * step)) for step in range(10)]
    assert not any(map(torch.equal, before, run.backend.model.parameters()))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_paper_writes_what_the_program_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MODELS", ("attention", "mil"))  # a process each
    assert program.main([*PAPER_TINY, "--epochs=1", "--cost-size=1", "--out", str(tmp_path / "a")]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == WRITTEN
    costs = json.loads((tmp_path / "a" / "results.json").read_text())["costs"]
    assert [row["variant"] for row in costs] == ["attention", "mil"]
    assert all(row["train_s"] > 0 and row["infer_s"] > 0 and row["train_bytes"] > 0 for row in costs)
    table = (tmp_path / "a" / "table.md").read_text()
    assert "| attention |" in table and "*saved against mil*" in table
    program.report(trained(tmp_path / "b", *PAPER_TINY, "--epochs=1", "--model=whole"))
    assert {path.name for path in (tmp_path / "b").iterdir()} == WRITTEN - {"overlay.png", "patches.png"}


def test_deep_mil_covers_the_image():
    seen = torch.zeros(130, 130)
    for y, x in paper.grid_origins(130, 50).tolist():
        seen[y : y + 50, x : x + 50] += 1
    assert seen.min() == seen.max() == 1


@pytest.fixture(scope="module")
def dark(digits):
    """Images without noise, as such and as crops; some digits stand close to each other and to the border."""
    images = data.MegapixelMNIST(digits[0], 3, 130, 0, 5, 16, paper=True)
    return images.batch(np.arange(3)), crops.crop_images(images), crops.crop_images(images, 2)


@pytest.mark.parametrize("case", ["patches", "whole", "downsampled"])
def test_crops_give_the_features_of_whole_patches(case, dark):
    """And their gradients, for patches with digits, parts of digits and none, beyond the border too."""
    (_, x_high, _), batch, reduced = dark
    images = torch.from_numpy(x_high).double() / 255
    batch = batch if case != "downsampled" else reduced
    generator = torch.Generator().manual_seed(0)
    origins = torch.randint(-40, 125, (3, 12, 2), generator=generator)
    side = 50
    if case != "patches":
        origins, side = torch.zeros(3, 1, 2, dtype=torch.int64), 130
    if case == "downsampled":
        images, side = torch.nn.functional.avg_pool2d(images, 2), 65
    network = paper.FeatureNetwork().double()
    for bias in (layer.bias for layer in network.responses if isinstance(layer, torch.nn.Conv2d)):
        torch.nn.init.normal_(bias, 0, 0.1)  # so that black answers something
    windows = paper.extract_patches(images, origins, side).flatten(0, 1)
    expected = network(windows).unflatten(0, origins.shape[:2])
    weights = torch.rand(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), list(network.parameters()))
    result = crops.features(network, batch, origins, side)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad((result * weights).sum(), list(network.parameters())), gradients, rtol=1e-8, atol=1e-10
    )


def test_crops_refuse_noise(digits):
    with pytest.raises(ValueError, match="without noise"):
        crops.crop_images(data.MegapixelMNIST(digits[0], 2, 130, 3))


@pytest.fixture
def small_study(monkeypatch, digits, tmp_path):
    """The study at tiny settings, and its words on the command line."""
    for name, value in {
        "SIZE": 150,
        "LOW": 18,
        "N_TRAIN": 24,
        "N_TEST": 12,
        "NOISE_DRAWS": 2,
        "NOISE_IMAGES": 4,
    }.items():
        monkeypatch.setattr(paper_study, name, value)
    paper_study.load_crops.cache_clear()
    yield ["--digits-file", str(npz(tmp_path, digits)[0])]
    paper_study.load_crops.cache_clear()


@pytest.mark.parametrize("name", ["murthy", "iid", "reference", *program.MODELS[1:]])
def test_study_trains_the_same_model_as_the_program(name, small_study):
    """Logits and gradients from crops are those of `Classifier` from whole images."""
    training = paper_study.Training(paper_study.RUNS[name], 3, small_study[1])
    training.begin(5.0)  # after the epochs with more patches
    for weight in training.model.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0, 0.1)
    images = data.MegapixelMNIST(data.load_digits("mnist", small_study[1])[0], 24, 150, 0, (3, 0, 0), 18, paper=True)
    x_low, x_high, labels = map(torch.from_numpy, images.batch(np.arange(6)))
    batch = paper_study.take(training.train, slice(6))
    torch.testing.assert_close(batch.labels, labels)
    logits, gradients = [], []
    for forward in (lambda: training.model(x_low, x_high, (3, 9)), lambda: training.forward(batch, (3, 9))[0]):
        logits.append(forward())
        loss = torch.nn.functional.cross_entropy(logits[-1], labels)
        gradients.append(torch.autograd.grad(loss, list(training.model.parameters())))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    if name == "reference":  # the value is the same, the gradient is not
        assert not torch.allclose(gradients[0][8], gradients[1][8], rtol=0.1)
    else:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_gradient_of_the_reference_is_biased():
    """Over all ordered draws of 2 of 4 cells: `des_raj` is right at the logits, the 2019 code's gradient is not."""
    torch.manual_seed(0)
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(4, 3, dtype=torch.float64)
    worth = torch.randn(3, dtype=torch.float64)
    attention = torch.softmax(logits, 0)
    (exact,) = torch.autograd.grad(attention @ features @ worth, logits, retain_graph=True)
    means = {}
    for name, expect in {
        "des_raj": lambda f, a: paper_study.expectation(f, a, estimator="des_raj"),
        "reference": paper_study.BiasedExpectation.apply,
    }.items():
        value, gradient = 0.0, 0.0
        for i, j in ((i, j) for i in range(4) for j in range(4) if i != j):
            probability = (attention[i] * attention[j] / (1 - attention[i])).item()
            estimate = expect(features[None, [i, j]], attention[None, [i, j]])[0] @ worth
            value += probability * estimate.item()
            gradient += probability * torch.autograd.grad(estimate, logits, retain_graph=True)[0]
        assert value == pytest.approx((attention @ features @ worth).item(), abs=1e-12), name
        means[name] = gradient
    torch.testing.assert_close(means["des_raj"], exact, rtol=0, atol=1e-12)
    assert (means["reference"] - exact).norm() > 0.05 * exact.norm()


def test_study_stops_resumes_and_reports(small_study, tmp_path, monkeypatch, capsys):
    runs = {
        name: paper_study.Setting(epochs=3, model=model) for name, model in (("murthy", "attention"), ("whole",) * 2)
    }
    monkeypatch.setattr(paper_study, "RUNS", runs)

    def curves(folder, *words):
        command = paper_study.read_command([*small_study, "--out", str(tmp_path / folder), *words])
        paper_study.take_noise("murthy", 0, command)
        for name in runs:
            paper_study.train(name, 0, command)
        histories = [json.loads((tmp_path / folder / f"{name}-0.json").read_text())["history"] for name in runs]
        return [[{key: e[key] for key in e if not key.endswith("_s")} for e in history] for history in histories]

    assert [len(curve) for curve in curves("stopped", "--until", "1")] == [1, 1]
    resumed = curves("stopped")
    assert [len(curve) for curve in resumed] == [3, 3] and resumed == curves("whole")
    words = ["--runs", str(tmp_path / "whole"), "--out", str(tmp_path), "--figures", str(tmp_path / "figures")]
    costs = [
        {"variant": name, "size": 500, "batch_size": 1, "threads": 1, "train_bytes": 10, "infer_bytes": 5}
        | {"train_s": 0.1 + i, "infer_s": 0.05 + i}
        for i, name in enumerate(program.MODELS)
    ]
    (tmp_path / "costs.json").write_text(json.dumps({"costs": costs}))
    assert paper_report.main([*words, "--costs", str(tmp_path / "costs.json")]) == 0
    text = (tmp_path / "megapixel_mnist_paper.md").read_text()
    assert capsys.readouterr().out.endswith(text + "\n")
    assert "| murthy | 0 | 3 |" in text and "| murthy-0 | 0 |" in text and "| 500 x 500 | 1 | mil |" in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "megapixel_mnist_paper_curves.png",
        "megapixel_mnist_paper_costs.png",
    }


@pytest.mark.parametrize(
    "words", ["--jobs 0", "--seeds -1", "--digits-file /nope", "--runs none", "--out /proc/nope/x"]
)
def test_bad_option_of_the_paper_study(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        paper_study.main(["--out", str(tmp_path), *words.split()])
    assert stop.value.code == 2
    assert words.split()[0] in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------- bad input

BAD = """--lr inf|--lr nan|--lr 0|--lr -1|--lr x|--entropy nan|--entropy inf|--entropy -1|--seed -1|--size 100000000|--size 50
--size 1e3|--n-train 1000000000000|--n-train 0|--n-test 0|--noise 1000000000|--noise -1|--threads 100000|--threads 0
--epochs 0|--batch-size 0|--n-patches 0|--n-patches 9999|--patch-size 4|--patch-size 500|--downsample nan|--cost-size -1
--downsample 0|--downsample 100|--estimator iid --n-patches 1|--estimator none|--backend none|--digits none
--paper --backend keras|--model mil|--first-patches 3|--paper --first-patches 9999|--paper --model none|--cost-size 1000000000|--digits-file here|--digits mnist --digits-file /nope|--unknown 1|--seed 9223372036854775808"""


@pytest.mark.parametrize("words", re.split(r"[|\n]", BAD))
def test_bad_option(words, tmp_path, capsys):
    code, lines = main(capsys, *TINY, "--out", tmp_path / "out", *words.split())
    assert code == 2 and len(lines) == 1
    assert words.split()[-2] in lines[0]
    assert not (tmp_path / "out").exists()


def test_bad_option_of_the_real_program(tmp_path):
    done = run("--out", tmp_path, "--lr", "inf")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"megapixel_mnist.py: error: --lr .*\n", done.stderr)


@pytest.mark.parametrize("out", ["{}/file", "{}/file/below", "/proc/nope/below"])
def test_bad_out(out, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, lines = main(capsys, *TINY, "--out", out.format(tmp_path))
    assert code == 2 and len(lines) == 1 and "--out" in lines[0]


def test_foreign_checkpoint(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    trained(tmp_path, "--epochs=1")
    other_network = {**torch.load(path, weights_only=True), "backend": {"model": {}}}
    no_options = {**other_network, "options": {}}
    for content in (b"", b"some text", b"PK\3\4 broken", 1, {}, {"model": torch.zeros(3)}, no_options, other_network):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        for resume in [["--resume"]] if content is other_network else [[], ["--resume"]]:
            code, lines = main(capsys, *TINY, "--epochs=1", "--out", tmp_path, *resume)
            assert code == 2 and len(lines) == 1 and f"{path} is not a checkpoint of this program" in lines[0]


@pytest.mark.parametrize("words", ["--jobs 0", "--seeds -1", "--digits-file /nope", "--epochs 1", "--out /proc/nope/x"])
def test_bad_option_of_the_study(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(["--out", str(tmp_path), *words.split()])
    assert stop.value.code == 2
    assert words.split()[0].removesuffix("s") in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits():
    return data.load_digits("sklearn")


def npz(folder, digits):
    (x_train, y_train), (x_test, y_test) = digits
    path = folder / "mnist.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path, path


def idx(folder, digits, pack=bytes, ending=""):
    for split, (images, classes) in zip(("train", "t10k"), digits, strict=True):
        for kind, array in (("images-idx3", images), ("labels-idx1", classes)):
            raw = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
            path = folder / f"{split}-{kind}-ubyte{ending}"
            path.write_bytes(pack(raw + array.astype(np.uint8).tobytes()))
    return folder, path


def gz(folder, digits):
    return idx(folder, digits, lambda raw: gzip.compress(raw, 1), ".gz")


@pytest.mark.parametrize("write", [npz, idx, gz])
def test_digit_files(write, digits, tmp_path):
    small = [data.Digits(images[:200], classes[:200]) for images, classes in digits]
    given, path = write(tmp_path, small)
    for read, expected in zip(sum(data.load_digits("mnist", given), ()), sum(small, ()), strict=True):
        np.testing.assert_array_equal(read, expected)
    raw = path.read_bytes()
    middle = len(raw) // 2
    broken = [b"", raw[:3], raw[:middle], raw[:-1], b"x" + raw[1:], b"\x93NUMPY" + raw, bytes(100)]
    if write is not idx:  # the others have a checksum
        broken.append(raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :])
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            data.load_digits("mnist", given)
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(str(path).removesuffix(".gz"))):
        data.load_digits("mnist", given)


def test_wrong_arrays(digits, tmp_path):
    path, _ = npz(tmp_path, digits)
    with np.load(path) as file:
        right = dict(file)
    wrong = {"x_train": right["x_train"][:, :20]}, {"y_train": right["y_train"][:7]}, {"x_test": np.array([{}])}
    for arrays in (*({**right, **change} for change in wrong), {"x_train": right["x_train"]}):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            data.load_digits("mnist", path)


def test_download(tmp_path):
    content = bytes(range(256)) * 1000

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: 1000 if "short" in self.path else None])

        def log_message(self, *_):
            pass

    target = tmp_path / "cache" / "file"
    right = hashlib.sha256(content).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            cases = (
                ("/file", "0" * 64, "SHA-256"),
                ("/short", right, "1000 of 256000 bytes"),
                ("/missing", right, "404"),
            )
            for name, checksum, message in cases:
                with pytest.raises(ValueError, match=message):
                    data._download(url + name, target, checksum)
                assert list(target.parent.iterdir()) == []
            assert data._download(url + "/file", target, right) == target
        finally:
            server.shutdown()
    assert target.read_bytes() == content and list(target.parent.iterdir()) == [target]
    with pytest.raises(ValueError, match=r"could not download .*--digits-file"):
        data._download(url + "/file", tmp_path / "other", right)  # nobody listens any more


# ----------------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("size", [112, 113, 200])
def test_composition(digits, size):
    images = data.MegapixelMNIST(digits[0], 500, size, noise=3, seed=1)
    at = images.digit_at
    assert at.min() >= 0 and at.max() <= size - 28
    gaps = np.abs(at[:, :, None] - at[:, None]).max(axis=-1) + 28 * np.eye(5, dtype=int)
    assert gaps.min() >= 28
    for label, ids in zip(images.labels, images.digit_ids, strict=True):
        values, counts = np.unique(digits[0].classes[ids], return_counts=True)
        assert sorted(counts) == [1, 1, 3] and values[counts.argmax()] == label
    x_low, x_high, labels = images.batch(np.array([7, 3]))
    assert (x_low.shape, x_high.shape) == ((2, 1, size // 4, size // 4), (2, 1, size, size))
    np.testing.assert_array_equal(labels, images.labels[[7, 3]])
    for b, row in enumerate((7, 3)):
        for (top, left), digit in zip(at[row], images.digit_ids[row], strict=True):
            box = x_high[b, 0, top : top + 28, left : left + 28]
            assert (box >= digits[0].images[digit]).all()  # a line may cross it


def test_composition_of_the_paper(digits):
    """Noise is pairs of lines, away from the border, that cover what they fall on."""
    images = data.MegapixelMNIST(digits[0], 200, 300, noise=20, seed=1, paper=True)
    assert images.line_at.min() >= 28 and images.line_at.max() <= 300 - 56
    assert images.lines.shape == (50, 28, 28)
    ink = images.lines > 0
    assert images.lines[ink].min() >= 0.8 * 255 - 1 and ((ink.sum((1, 2)) >= 27) & (ink.sum((1, 2)) <= 112)).all()
    _, x_high, _ = images.batch(np.arange(200))
    for image, ids, at in zip(x_high[:, 0], images.line_ids, images.line_at, strict=True):
        top, left = at[-1]
        np.testing.assert_array_equal(image[top : top + 28, left : left + 28], images.lines[ids[-1]])
    others = digits[0].classes[images.digit_ids[:, 3:]]
    assert (others != images.labels[:, None]).all() and (others[:, 0] == others[:, 1]).any()
    np.testing.assert_array_equal(digits[0].classes[images.digit_ids[:, :3]], images.labels[:, None].repeat(3, 1))


@pytest.mark.parametrize(("size", "low"), [(112, 28), (200, 33), (131, 131), (130, 17)])
def test_x_low_is_the_area_average(digits, size, low):
    x_low, x_high, _ = data.MegapixelMNIST(digits[0], 4, size, 5, 2, low).batch(np.arange(4))
    edges = [i * size // low for i in range(low + 1)]
    expected = [
        [[image[a:b, c:d].mean() / 255 for c, d in pairwise(edges)] for a, b in pairwise(edges)]
        for image in x_high[:, 0]
    ]
    np.testing.assert_allclose(x_low[:, 0], expected, rtol=1e-5, atol=1e-7)
