"""The benchmarks at tiny sizes: they run, check their peers, and write tables and numbers that say what they should."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import expectation_peers
import growth
import kernel_resources
import patches_peers
import peers
import report
import sample_peers
import timing
import torch_estimators

import ats_core.torch as ats


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a script at tiny sizes, in this process and not in one a framework, and return what it wrote."""

    def run(script, *arguments):
        def child(framework, threads, turns, smoke):
            assert smoke
            return json.loads(json.dumps(list(script.measure(framework, turns, smoke))))

        monkeypatch.setattr(timing, "_child", child)
        words = ["--smoke", "--turns", "2", "--threads", "1", "--out", tmp_path, *arguments]
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, words)])
        script.main()
        name = Path(script.__file__).stem
        markdown = (tmp_path / f"{name}.md").read_text()
        assert capsys.readouterr().out.strip() == markdown.strip()
        return json.loads((tmp_path / f"{name}.json").read_text()), markdown

    return run


@pytest.mark.parametrize(
    ("script", "framework", "ours"),
    [
        (sample_peers, "torch", "ats_core.torch.sample"),
        (sample_peers, "tensorflow", "ats_core.tensorflow.sample"),
        (patches_peers, "torch", "ats_core.torch.extract_patches"),
        (patches_peers, "tensorflow", "ats_core.tensorflow.extract_patches"),
        (expectation_peers, "torch", "ats_core.torch.expectation"),
    ],
)
def test_peers(run, script, framework, ours):
    pytest.importorskip(framework)
    content, markdown = run(script, *["--frameworks", framework] * (script is not expectation_peers))
    check_results(content, markdown, ours)
    assert all(len(record["milliseconds"]) >= 2 for record in content["results"])


def test_growth(run, tmp_path):
    content, markdown = run(growth, "--plot", tmp_path / "growth.png")
    check_results(content, markdown, "ats_core.torch.")
    assert len({record["group"] for record in content["results"]}) == 4
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def check_results(content, markdown, ours):
    """Every time and ratio is a positive number, and the table shows them."""
    assert content["results"] and content["machine"]["cpu"] and content["machine"]["cores"] >= 1
    for record in content["results"]:
        names = list(record["milliseconds"])
        assert names[0].startswith(ours)
        assert all(time > 0 for time in record["milliseconds"].values())
        assert list(record["ratios"]) == names[1:]
        for name in names[1:]:
            expected = record["milliseconds"][name] / record["milliseconds"][names[0]]
            assert record["ratios"][name] == pytest.approx(expected) and expected > 0
        assert f"| {record['case']} | 1 |" in markdown


def test_a_wrong_peer_is_found():
    with pytest.raises(AssertionError, match="Gumbel: a cell was drawn twice"):
        sample_peers.check("Gumbel", [[1, 1]], 1, 3, 2)
    with pytest.raises(AssertionError, match="Gumbel: outside of the map"):
        sample_peers.check("Gumbel", [[1, 3]], 1, 3, 2)


@pytest.mark.parametrize("estimator", torch_estimators.PEERS)
def test_the_peers_are_the_same_estimators(estimator):
    generator = torch.Generator().manual_seed(0)
    samples = ats.sample(torch.rand(3, 50, generator=generator), 6, rng=(1, 2))
    features, slope = (torch.randn(shape, generator=generator) for shape in ((3, 6, 8), (3, 8)))

    def ours(features, attention, threshold):
        more = {"threshold": threshold} if estimator == "horvitz_thompson" else {}
        return ats.expectation(features, attention, estimator=estimator, **more)

    results = []
    for method in (ours, torch_estimators.PEERS[estimator]):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (features, samples.attention)]
        expected = method(*leaves, samples.threshold)
        results.append((expected, *torch.autograd.grad(expected, leaves, slope)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5 * float(mine.detach().abs().max()))


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        (0.0, [0, 1, -2, -3, 4, -5, 6, -7]),  # a long call: twice in the first turn only
        (math.inf, [0, 1, -2, -3, 4, 5, -6, -7, 8, 9, -10, -11]),
    ],
)
def test_methods_take_turns(monkeypatch, short, expected):
    monkeypatch.setattr(timing, "SHORT", short)
    calls = []
    times = timing.take_turns({"a": lambda number: calls.append(number), "b": lambda number: calls.append(-number)}, 2)
    assert calls == expected and set(times) == {"a", "b"}


def test_a_floor_is_no_peer():
    assert timing.best_peer({"ours": 1.0, "slow": 3.0, "peer": 2.0, "sum" + timing.FLOOR: 0.1}) == "peer"
    assert timing.best_peer({"ours": 1.0, "sum" + timing.FLOOR: 0.1}) is None


# ------------------------------------------------------------------------------------------------- Google Benchmark

RUN = {"name": "", "run_type": "iteration", "real_time": 2e6, "time_unit": "ns", "bytes_per_second": 5e8}
MADE = {
    "context": {"host_name": "secret", "executable": "/secret", "compiler": "GNU 12", "libats_build_type": "Release"},
    "benchmarks": [
        {**RUN, "name": "sample/float32/1x64/threads:1/iterations:15/manual_time", "median_s": 1e-3, "ratio": 2.5},
        {**RUN, "name": "sample/float32/1x64/threads:2/iterations:15/manual_time", "median_s": 5e-4, "ratio": 3.5},
    ],
}


def test_report(monkeypatch, tmp_path):
    (tmp_path / "raw.json").write_text(json.dumps(MADE))
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "raw.json"), "--out", str(tmp_path / "out")])
    report.main()
    text, markdown = ((tmp_path / "out" / name).read_text() for name in ("bench.json", "bench.md"))
    assert "secret" not in text + markdown
    assert "| float32, 1x64 | 1 | 1 | 2.5 | 0.5 | 2 | 3.5 |" in markdown  # 1 MB in 1 ms is 1 GB/s
    assert json.loads(text)["machine"]["compiler"] == "GNU 12"
    assert [record["ratio"] for record in json.loads(text)["results"]] == [2.5, 3.5]


# ----------------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--turns", "0"], "argument --turns: must be from 1 to 10000, got 0"),
        (["--threads", "two"], "argument --threads: must be from 1 to 256, got two"),
        (["--frameworks", "jax"], "argument --frameworks: invalid choice: 'jax'"),
        (["--out", __file__], "argument --out: "),
    ],
)
def test_bad_arguments(refused, arguments, words):
    assert words in refused(sample_peers, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "growth"], "argument --plot: must end in .png, .svg, .pdf, got growth"),
        (["--plot", "growth.txt"], "argument --plot: must end in .png, .svg, .pdf, got growth.txt"),
        (["--plot", __file__ + "/growth.png"], "argument --plot: " + __file__),
        (["--threads", "1", "2"], "unrecognized arguments: 2"),  # one plot, of one number of threads
        (["--frameworks", "torch"], "unrecognized arguments: --frameworks torch"),  # there is no other
    ],
)
def test_bad_arguments_of_growth(refused, arguments, words):
    assert words in refused(growth, *arguments)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a script that refuses its arguments before it does anything, and return its message."""

    def refused(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            script.main()
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "KeyError: 'context'"),
        ([], "TypeError: list indices"),
        ({**MADE, "benchmarks": []}, "there is no benchmark in it"),
        ({**MADE, "benchmarks": None}, "TypeError: "),
        ({**MADE, "benchmarks": [{**MADE["benchmarks"][0], "error_occurred": True}]}, "there is no benchmark in it"),
        ({**MADE, "benchmarks": [{**MADE["benchmarks"][0], "median_s": 0}]}, "ZeroDivisionError"),
        ({**MADE, "benchmarks": [{**MADE["benchmarks"][0], "median_s": math.nan}]}, "is not a positive number"),
        ({**MADE, "benchmarks": [{**MADE["benchmarks"][0], "ratio": None}]}, "TypeError: "),
        ({**MADE, "benchmarks": [{**MADE["benchmarks"][0], "name": "sample"}]}, "AttributeError: "),
    ],
)
def test_bad_report(refused, tmp_path, content, words):
    (tmp_path / "raw.json").write_text(json.dumps(content))
    (tmp_path / "bench.md").write_text("the committed table")
    message = refused(report, tmp_path / "raw.json", "--out", tmp_path)
    assert "is not what the benchmarks write: " in message and words in message
    assert (tmp_path / "bench.md").read_text() == "the committed table" and not (tmp_path / "bench.json").exists()


def test_no_report(refused, tmp_path):
    assert f"{tmp_path / 'raw.json'}: No such file" in refused(report, tmp_path / "raw.json", "--out", tmp_path)


def test_own_process_a_framework(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "sample_peers.py",
        "--smoke",
        "--turns",
        "1",
        "--frameworks",
        "torch",
    ]
    subprocess.run([*command, "--threads", "1", "--out", tmp_path], check=True, capture_output=True, timeout=300)
    check_results(
        json.loads((tmp_path / "sample_peers.json").read_text()),
        (tmp_path / "sample_peers.md").read_text(),
        "ats_core.torch.sample",
    )


def test_one_framework_has_its_own_process(tmp_path):
    run_script("expectation_peers.py", "--smoke", "--turns", "1", "--out", tmp_path)
    content = json.loads((tmp_path / "expectation_peers.json").read_text())
    cases = {(record["case"].split(",")[0], record["threads"]) for record in content["results"]}
    assert cases == {(estimator, threads) for estimator in torch_estimators.PEERS for threads in (1, 2)}


def run_script(name, *arguments):
    """A script that changes PyTorch's threads: in its own process. Returns what it printed."""
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout


def test_call_overhead(tmp_path):
    printed = run_script("call_overhead.py", "--smoke", "--out", tmp_path)
    assert printed == (tmp_path / "call_overhead_1_thread.md").read_text()
    content = json.loads((tmp_path / "call_overhead_1_thread.json").read_text())
    assert content["threads"] == 1 and content["machine"]["cores"] >= 1
    for operation in ("sample", "patch_origins", "extract_patches", "expectation"):
        assert len(content["microseconds"][operation]) == 5 and f"| {operation} | " in printed


def test_demo_profile(tmp_path):
    for module in ("sklearn", "tqdm"):
        pytest.importorskip(module)
    printed = run_script("demo_profile.py", "--smoke", "--threads", "1", "--out", tmp_path)
    assert printed == (tmp_path / "demo_profile.md").read_text()
    content = json.loads((tmp_path / "demo_profile.json").read_text())
    together = content["shares"].pop("all ats ops together")
    assert sum(content["shares"].values()) == pytest.approx(1) and 0 < together < 1
    assert content["threads"] == 1 and f"| all ats ops together | {100 * together:.2f} % |" in printed


# ------------------------------------------------------------------------------------------------------------- CUDA


def test_cuda_peers(tmp_path):
    """Without a GPU everything runs on the CPU, but for the graphs: peers are checked, tables and numbers written."""
    printed = run_script("cuda_peers.py", "--smoke", "--turns", "1", "--out", tmp_path)
    assert printed.endswith((tmp_path / "cuda_peers.md").read_text())
    content = json.loads((tmp_path / "cuda_peers.json").read_text())
    assert {record["group"].split(",")[0] for record in content["results"]} == {
        "Patches",
        "Sampling without replacement",
        "Expectation",
    }
    for record in content["results"]:
        names = list(record["milliseconds"])
        assert names[0].startswith("ats_core.torch.") and list(record["ratios"]) == names[1:]
        assert all(time > 0 for time in record["milliseconds"].values())
        assert f"| {record['case']} | {record['how']} | " in printed
    assert len(content["host_microseconds"]) == 10 and "| torch.topk | " in printed


def test_cuda_bounds(tmp_path):
    """Counts over rates; what cuda_peers.py measured stands beside the bound of the same case."""
    case = {"case": "128 x 32,400 float32, N = 10", "how": "CUDA graph", "milliseconds": {"ours": 0.05, "other": 1.0}}
    (tmp_path / "cuda_peers.json").write_text(json.dumps({"results": [case]}))
    printed = run_script("cuda_bounds.py", "--gpu", "H100", "--out", tmp_path)
    assert printed == (tmp_path / "cuda_bounds.md").read_text()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| `")
    ]
    [line] = [line for line in lines if line[1] == case["case"]]
    bound = 4 * 128 * 32_400 / 3.35e12 + 10 * 2_000 / 1.7e9
    assert float(line[6]) == pytest.approx(1e6 * bound, rel=0.01) and float(line[7]) == 50.0
    assert float(line[8]) == pytest.approx(5e-5 / bound, rel=0.01)
    assert all(line[7:] == ["", ""] for line in lines if line[1] != case["case"])


PTXAS = """
[1/2] Building CUDA object CMakeFiles/ats_kernels.dir/libats/src/locate.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3ats4cuda10run_kernelINS0_12_GLOBAL__N_16LocateEEEvT_' for 'sm_90'
ptxas info    : Function properties for _ZN3ats4cuda10run_kernelINS0_12_GLOBAL__N_16LocateEEEvT_
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _ZN3ats5otherEv
    99 bytes stack frame, 99 bytes spill stores, 99 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem, 400 bytes cmem[0]
[2/2] Building CUDA object CMakeFiles/ats_kernels.dir/libats/src/topk.cu.o
ptxas info    : 0 bytes gmem
"""


def test_what_ptxas_says():
    [record] = kernel_resources.read(PTXAS)
    assert record == {
        "kernel": "Locate",
        "file": "locate.cu",
        "architecture": "90",
        "registers": 40,
        "shared": 2048,
        "stack": 16,
        "spilled": 12,
    }


def test_every_script_of_bench_peers_is_there():
    assert all((ROOT / "benchmarks" / script).is_file() for script, *_ in peers.SCRIPTS)


def test_sources(tmp_path):
    for module in ("tifffile", "imagecodecs", "openslide", "zarr"):
        pytest.importorskip(module)
    run_script("sources.py", "--smoke", "--turns", "1", "--threads", "1", "--out", tmp_path)
    content = json.loads((tmp_path / "sources.json").read_text())
    check_results(content, (tmp_path / "sources.md").read_text(), "ats_core.sources")
    assert content["notes"][0].startswith("Bytes decoded by ats_core.sources for bytes needed: ")


def test_slides_training(tmp_path):
    for module in ("tifffile", "imagecodecs"):
        pytest.importorskip(module)
    run_script("slides_training.py", "--smoke", "--turns", "1", "--out", tmp_path)
    content = json.loads((tmp_path / "slides_training.json").read_text())
    assert list(content["milliseconds"]) == list(content["sizes"]) == ["1,250", "2,500"]
    for found in content["sizes"].values():
        assert found["MiB"] > 0 and found["tiles"] > 0 and found["decoded over needed"] >= 1
    assert (tmp_path / "slides_training.md").read_text().count("4 slides of") == 2
