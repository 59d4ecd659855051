"""The benchmarks at tiny sizes: they run, check their peers, and write tables and numbers that say what they should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import expectation_peers
import growth
import patches_peers
import report
import sample_peers
import timing


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


def test_methods_take_turns():
    calls = []
    times = timing.take_turns({"a": lambda number: calls.append(number), "b": lambda number: calls.append(-number)}, 2)
    assert calls == [0, -1, 2, -3, 4, -5] and set(times) == {"a", "b"}


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
def test_bad_arguments(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["sample_peers.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        sample_peers.main()
    assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_bad_report(monkeypatch, tmp_path, capsys):
    (tmp_path / "raw.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "raw.json"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        report.main()
    assert exit_.value.code == 2 and "is not what Google Benchmark writes" in capsys.readouterr().err


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
