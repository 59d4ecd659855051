"""Training on several processes: real ones, over the loopback. They draw what one process draws and learn what it learns;
and a run that was killed goes on as if it had not been."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ats_core

torch = pytest.importorskip("torch")
for module in ("sklearn", "scipy", "tqdm"):
    pytest.importorskip(module)

from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler

import scaling_torch
from ats_core.torch import RngStream, SamplePatches, sample
from scaling_torch import Classifier, F, make_data, record

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import megapixel_mnist_distributed as program

PROGRAM = EXAMPLES / "megapixel_mnist_distributed.py"
CALL = 2**32
CELLS = np.random.default_rng(0).random((4, 12, 10), np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*words, cwd, status=0, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def torchrun(*words, cwd, more=()):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *more)
    return run(*launch, *words, cwd=cwd, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")  # pytorch#135712


def train(model, batches, optimizer=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1) if optimizer is None else optimizer
    for x_low, x_high, y in batches:
        loss = F.cross_entropy(model(x_low, x_high), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------------------------- the stream


def test_stream_draws_what_numpy_draws():
    stream = RngStream(-5)
    for call in (0, 1):
        drawn = sample(torch.from_numpy(CELLS), 6, rng=stream(4)).indices
        np.testing.assert_array_equal(drawn, ats_core.sample(CELLS, 6, rng=(-5, call * CALL)).indices)
    stream.eval()
    for _ in range(2):
        np.testing.assert_array_equal(stream(4), [-5, -CALL])
    stream.train()
    np.testing.assert_array_equal(stream(4), [-5, 2 * CALL])


def test_module_draws_from_its_stream():
    attention, image = torch.from_numpy(CELLS), torch.zeros(4, 1, 60, 50)
    module = SamplePatches(5, 6, seed=7)
    expected = [ats_core.sample(CELLS, 6, rng=(7, call * CALL)).indices for call in (0, 1, -1)]
    np.testing.assert_array_equal(module(attention, image).indices, expected[0])
    module(attention, image, rng=1)  # neither of these draws from it
    module(attention, image, deterministic=True)
    np.testing.assert_array_equal(module(attention, image).indices, expected[1])
    np.testing.assert_array_equal(module.eval()(attention, image).indices, expected[2])
    assert not SamplePatches(5, 6).state_dict()


def test_seed_is_checked():
    for bad, error in (("1", TypeError), (1.5, TypeError), (2**63, ValueError)):
        with pytest.raises(error, match="seed"):
            SamplePatches(5, seed=bad)


def test_compiled_module_counts():
    x_low, x_high, _ = make_data(4).tensors
    model = Classifier()
    expected = record(lambda: [model(x_low, x_high) for _ in range(3)])
    model = Classifier()
    compiled = torch.compile(model.ats, fullgraph=True, backend="aot_eager")
    patches = [compiled(x_low, x_high).patches for _ in range(3)]
    other = Classifier().ats
    for indices, found in zip(expected, patches, strict=True):
        cut, _ = other.sampler.cut(indices, x_low.shape[2:], x_high)
        torch.testing.assert_close(found, cut, rtol=0, atol=0)


def test_activation_checkpointing_is_refused():
    """It draws again in the backward pass, and would get the gradient of other patches."""
    x_low, x_high, _ = make_data(4).tensors
    model = Classifier()
    loss = checkpoint(lambda: model(x_low, x_high).sum(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="rng: must be given"):
        loss.backward()
    loss = checkpoint(lambda: model.head(model.ats(x_low, x_high, rng=1).features).sum(), use_reentrant=False)
    loss.backward()


def test_resume_within_an_epoch():
    batches = list(DataLoader(make_data(), 8))

    def start():
        model = Classifier()
        return model, torch.optim.Adam(model.parameters())

    model, optimizer = start()
    picks = record(lambda: train(model, batches, optimizer))
    part, its_optimizer = start()
    train(part, batches[:2], its_optimizer)
    with torch.no_grad():
        part.eval()(*batches[0][:2])  # disturbs nothing
    resumed, new_optimizer = start()
    resumed.load_state_dict(part.state_dict())
    new_optimizer.load_state_dict(its_optimizer.state_dict())
    assert torch.equal(record(lambda: train(resumed, batches[2:], new_optimizer)), picks[2:])
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------- programs of docs/scaling.md


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Picks and weights of two ranks, of each program. (Only DDP's ends the group of processes, so it is alone.)"""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(TESTS / "scaling_torch.py", folder, "ddp", cwd=folder)
    some = [name for name in ("lightning", "accelerate", "keras") if importlib.util.find_spec(name)]
    if "accelerate" in some:
        torchrun(TESTS / "scaling_torch.py", folder, *some, cwd=folder)
    return folder


def rows(name, data):
    """Batches of 16 of two epochs in one process: the rows of rank 0 and then those of rank 1."""
    if name == "ddp":
        for epoch in range(2):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
            yield from DataLoader(data, batch_sampler=order.view(-1, 16).tolist())
    elif name == "accelerate":
        loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            yield from loader
    else:
        samplers = [DistributedSampler(data, 2, rank) for rank in range(2)]
        for epoch in range(2):
            for sampler in samplers:
                sampler.set_epoch(epoch)
            order = torch.tensor([list(sampler) for sampler in samplers]).view(2, -1, 8)
            yield from DataLoader(data, batch_sampler=order.transpose(0, 1).reshape(-1, 16).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "lightning", "accelerate"])
def test_two_processes_are_one(ranks, name):
    if name != "ddp":
        pytest.importorskip(name)
    model, data = Classifier(), make_data()
    picks = record(lambda: train(model, rows(name, data)))
    first, second = (torch.load(ranks / f"{name}-{rank}.pt") for rank in range(2))
    assert torch.equal(torch.cat((first["picks"], second["picks"]), 1), picks)
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    torch.testing.assert_close(first["model"], model.state_dict(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(first["model"]["head.weight"], Classifier().head.weight)


@pytest.mark.slow
def test_keras_on_torch_draws_what_numpy_draws(ranks):
    for name in ("keras", "accelerate"):
        pytest.importorskip(name)
    found = torch.cat([torch.load(ranks / f"keras-{rank}.pt")["picks"] for rank in range(2)], 1)
    weights = scaling_torch.weights().numpy()
    expected = [ats_core.sample(weights, 4, rng=(scaling_torch.SEED, call * CALL)).indices for call in range(3)]
    np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.slow
def test_checkpoints_of_others_hold_the_count(ranks):
    pytest.importorskip("lightning")
    load_file = pytest.importorskip("safetensors.torch").load_file
    (path,) = ranks.glob("lightning_logs/**/*.ckpt")
    states = torch.load(path, weights_only=True)["state_dict"], load_file(ranks / "state" / "model.safetensors")
    for state in states:
        (value,) = [value for name, value in state.items() if name.endswith("rng_stream.state")]
        assert value.tolist() == [0, 6 * CALL]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    for name in ("tensorflow", "keras"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("replicas")
    script = TESTS / "scaling_keras.py"
    run(script, folder, "mirrored", cwd=folder, KERAS_BACKEND="tensorflow")
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in (a, b)]
    processes = []
    for rank in range(2):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CONFIG": config, "RANK": str(rank)}
        command = [sys.executable, str(script), str(folder), "multiworker"]
        with open(folder / f"log-{rank}", "w") as out:
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(300) == 0, (folder / f"log-{rank}").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mirrored-0", "multiworker-0", "multiworker-1"])
def test_replicas_are_one(replicas, name):
    one, other = (dict(np.load(replicas / f"{which}.npz")) for which in ("one-0", name))
    one, other = ({key: value for key, value in arrays.items() if key != "picks"} for arrays in (one, other))
    assert len(one) == len(other) > 0
    for key, array in one.items():
        np.testing.assert_allclose(other[key], array, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_replicas_draw_what_numpy_draws(replicas):
    import scaling_keras

    expected = [ats_core.sample(scaling_keras.weights(), 4, rng=(scaling_keras.SEED, call * CALL)) for call in range(3)]
    expected = np.stack([draws.indices for draws in expected])
    picks = {name: np.load(replicas / f"{name}.npz")["picks"] for name in ("one-0", "mirrored-0")}
    workers = [np.load(replicas / f"multiworker-{rank}.npz")["picks"] for rank in range(2)]
    for found in (*picks.values(), np.concatenate(workers, 1)):
        np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------------------------------------------------- the example

TINY = [
    "--size=112",
    "--n-train=64",
    "--n-test=15",
    "--n-patches=4",
    "--batch-size=8",
    "--epochs=3",
    "--save-every=3",
    "--resume",
]
STEPS = 8  # an epoch

# Kills itself within the fifth step of the second epoch, two after a checkpoint; as the last rank, and not again.
KILL = f"""
import os, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import megapixel_mnist_distributed as program
steps, cross_entropy = [], program.F.cross_entropy
def kill(*arguments):
    steps.append(1)
    last = os.environ.get("RANK", "1") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if last and len(steps) == {STEPS} + 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(*arguments)
program.F.cross_entropy = kill
sys.exit(program.main())
"""


def results(folder):
    written = json.loads((folder / "results.json").read_text())
    return written["history"], torch.load(folder / "weights.pt", weights_only=True), written["processes"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in one process, this one, that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert program.main([*TINY, "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_kill_and_resume_equal_an_uninterrupted_run(whole, tmp_path):
    killed = run("-c", KILL, *TINY, "--out", tmp_path, cwd=tmp_path, status=-9)
    assert killed.stdout.splitlines()[-1] == "saved after epoch 1 and 3 steps"
    resumed = run(PROGRAM, "--resume", "--out", tmp_path, cwd=tmp_path)
    assert re.findall(r"^saved.*|^epoch \d", resumed.stdout, re.MULTILINE)[:2] == [
        "saved after epoch 1 and 6 steps",
        "epoch 2",
    ]
    (history, weights, _), (expected, its_weights, _) = results(tmp_path), results(whole)
    assert history == expected and len(history) == 3
    torch.testing.assert_close(weights, its_weights, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_are_one(whole, tmp_path):
    (tmp_path / "killed.py").write_text(KILL)
    done = torchrun(tmp_path / "killed.py", *TINY, "--out", tmp_path, cwd=tmp_path, more=("--max-restarts", 1))
    assert done.stdout.count("saved after epoch 1 and 6 steps") == 1
    (history, weights, processes), (expected, its_weights, _) = results(tmp_path), results(whole)
    assert processes == 2
    for entry, other in zip(history, expected, strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert entry["test_error"] == pytest.approx(other["test_error"], abs=1.01 / 15)
    torch.testing.assert_close(weights, its_weights, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--batch-size 0", "--batch-size must be from 1"),
        ("--n-train 4", "--n-train 4 is less than --batch-size 16"),
        ("--save-every 0", "--save-every must be from 1"),
        ("--lr nan", "--lr must be from 0"),
        ("--size 50", "--size must be from 112"),
        ("--unknown 1", "unrecognized"),
    ],
)
def test_bad_option(words, says, tmp_path, capsys, monkeypatch):
    assert program.main(["--out", str(tmp_path), *words.split()]) == 2
    assert says in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    assert program.main(["--out", str(tmp_path)]) == 2
    assert "--batch-size 16 cannot be split among 3 processes" in capsys.readouterr().err
