"""A case and its peers from name to record, and the command that runs them in slices."""

import json
import os
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import jaxorch
from benchmarks import __main__ as command
from benchmarks import peers, runner, slices, timing
from benchmarks.cases import CASES, S
from benchmarks.limit import OutOfTime, limit
from benchmarks.models import MODELS
from benchmarks.peers import compiled
from benchmarks.timing import CACHE_BYTES

given = []
"""The options that cases were optimised with."""


@pytest.fixture
def small_case(monkeypatch):
    given.clear()

    def install(function=lambda x: jax.nn.gelu(x) * 2, ours=None, name="small", **settings):
        monkeypatch.setattr(timing, "CACHE_BYTES", CACHE_BYTES / 30)
        monkeypatch.setitem(CASES, name, lambda: (function, (S(64, 512),), ()))

        def optimize(f, options, **kwargs):
            given.append(options)
            return jax.jit(ours or f, **kwargs)

        monkeypatch.setattr(jaxorch, "optimize", optimize)
        return runner.run_case(name, runner.Settings(seed=0, repeats=2, **settings))

    return install


class Stub:
    """A peer that computes `function` in place of the case's."""

    def __init__(self, name, function):
        self.name = name
        self._function = function

    def build(self, arguments):
        return compiled(jax.jit(self._function), peers.Case(self._function, (S(64, 512),), ()))


def test_a_case_becomes_a_record(small_case):
    found = small_case()
    assert found.failure == ""
    assert found.ratio > 0
    assert found.met is None  # a CPU's wall clock says nothing about the bar
    assert found.ours.timing.source == "clock"
    assert found.xla.queued_us > 0
    assert found.verdict.passed
    assert found.floor_bytes == 2 * 2 * 64 * 512
    assert (found.moved_bytes, found.peers) == (None, ())


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_memory_limit_reaches_the_options(small_case, limit):
    assert small_case(memory_limit=limit).failure == ""
    assert given == [jaxorch.Options(memory_limit=limit)]


def test_a_wrong_result_is_not_timed(small_case):
    found = small_case(ours=lambda x: jax.nn.gelu(x) * 2.1)
    assert found.failure.startswith("wrong: output 0: error")
    assert found.ratio is None
    assert found.ours.timing is None
    assert found.met is False


def test_a_failure_is_a_record(small_case):
    def fails(x):
        raise ValueError("no such kernel")

    assert "ValueError: no such kernel" in small_case(ours=fails).failure


def test_peers_are_timed_behind_the_gate_or_missing_with_the_reason(small_case, monkeypatch):
    def fails(x):
        raise ValueError("cannot be had")

    def stays(x):
        time.sleep(60)

    functions = {
        "right": lambda x: jax.nn.gelu(x) * 2,
        "wrong": lambda x: jax.nn.gelu(x) * 2.1,
        "failing": fails,
        "slow": stays,
        "late": lambda x: 2 * jax.nn.gelu(x),
    }
    monkeypatch.setitem(peers.PEERS, "stubs", lambda case: [Stub(*item) for item in functions.items()])
    found = small_case(peers=("stubs",), peer_limit=3.0)
    assert found.failure == ""
    assert [peer.name for peer in found.peers] == list(functions)
    right, wrong, failing, slow, late = found.peers
    for peer in (right, late):
        assert peer.missing == ""
        assert peer.verdict.passed
        assert peer.side.timing.median_us > 0
        assert peer.side.queued_us > 0
    assert wrong.missing.startswith("wrong: output 0: error")
    assert wrong.side.timing is None
    assert failing.missing == "ValueError: cannot be had"
    assert slow.missing == "not finished within 3 s"


def test_a_peer_that_cannot_be_called_is_missing_and_the_others_are_timed(small_case, monkeypatch):
    class NoGraph(Stub):
        def build(self, arguments):
            def timed(sets):
                raise RuntimeError("not captured\nmore")

            return replace(super().build(arguments), timed=timed)

    right = Stub("right", lambda x: jax.nn.gelu(x) * 2)
    monkeypatch.setitem(peers.PEERS, "stubs", lambda case: [NoGraph("no graph", right._function), right])
    found = small_case(peers=("stubs",))
    assert [peer.missing for peer in found.peers] == ["RuntimeError: not captured", ""]
    assert found.peers[0].side.timing is None
    assert found.peers[1].side.timing.samples == found.ours.timing.samples == 2


def test_peers_that_have_no_time_are_missing(small_case, monkeypatch):
    def stays(x):
        time.sleep(60)

    stubs = [Stub("slow", stays), Stub("next", lambda x: jax.nn.gelu(x) * 2)]
    monkeypatch.setitem(peers.PEERS, "stubs", lambda case: stubs)
    found = small_case(peers=("stubs",), peers_limit=1.0)
    assert found.failure == ""
    assert [peer.missing for peer in found.peers] == [
        "not finished within 1 s",
        "not made: the time for peers was over",
    ]
    assert found.ours.timing.median_us > 0


def interrupted(seconds):
    try:
        with limit(seconds):
            time.sleep(10)
    except OutOfTime as err:
        return str(err)


def test_limits_lie_within_limits():
    start = time.monotonic()
    ended = []

    def block():
        ended.append(interrupted(0.1))
        interrupted(100)
        time.sleep(10)

    with pytest.raises(OutOfTime), limit(0.4):
        block()
    assert ended == ["not finished within 0 s"]
    assert 0.4 <= time.monotonic() - start < 5
    with pytest.raises(OutOfTime), limit(0.2), limit(100):
        time.sleep(10)
    with limit(0.2):
        pass
    time.sleep(0.4)  # nothing is left behind


def run(*arguments):
    return command.main([*arguments, "--repeats", "2", "--seed", "7", "--commit", "abc"])


def test_the_command_writes_after_every_case(small_case, tmp_path, capsys):
    small_case()
    out = tmp_path / "results.json"
    assert run("small", "--out", str(out)) == 0
    results = json.loads(out.read_text())
    assert results["machine"]["seed"] == 7
    assert [found["case"] for found in results["records"]] == ["small"]
    assert results["records"][0]["met"] is None
    assert "begun" not in results
    assert "wall clock" in capsys.readouterr().out
    assert command.main(["--read", str(out), "--table"]) == 0
    assert "| small |" in capsys.readouterr().out


def test_a_slice_ends_and_the_next_one_goes_on(small_case, tmp_path, capsys, monkeypatch):
    for name in ("first", "second", "third"):
        small_case(name=name)
    out = tmp_path / "results.json"
    arguments = ("first", "second", "third", "--out", str(out), "--resume")
    run_case, ran = command.run_case, []

    def counted(name, settings):
        ran.append(name)
        if name == "second" and ran.count("second") == 1:
            time.sleep(60)
        return run_case(name, settings)

    monkeypatch.setattr(command, "run_case", counted)
    assert run(*arguments, "--minutes", "0.1") == command.MORE_IS_LEFT
    assert "2 of 3 cases are left" in capsys.readouterr().out
    assert [found["case"] for found in json.loads(out.read_text())["records"]] == ["first"]
    assert run(*arguments) == 0
    assert ran == ["first", "second", "second", "third"]
    content = json.loads(out.read_text())
    assert [found["case"] for found in content["records"]] == ["first", "second", "third"]
    assert run(*arguments) == 0
    assert len(ran) == 4  # nothing was left
    assert "going on with" in capsys.readouterr().out


def test_no_time_at_all_leaves_everything(small_case, capsys):
    small_case()
    assert run("small", "--minutes", "0") == command.MORE_IS_LEFT
    assert "1 of 1 cases are left" in capsys.readouterr().out


def test_a_case_that_does_not_end_is_recorded(small_case, tmp_path, monkeypatch):
    small_case()
    monkeypatch.setattr(jaxorch, "optimize", lambda f, **kwargs: time.sleep(60))
    out = tmp_path / "results.json"
    # By its own limit, or by the end of a slice that it had for itself: it would not end in the next one either.
    for arguments in (("--limit", "1"), ("--minutes", "0.02")):
        assert run("small", "--out", str(out), *arguments) == 1
        [found] = json.loads(out.read_text())["records"]
        assert found["failure"] == "not finished within 1 s"


def test_only_results_of_the_same_kind_are_gone_on_with(small_case, tmp_path, capsys):
    small_case()
    out = tmp_path / "results.json"
    assert run("small", "--out", str(out)) == 0
    with pytest.raises(SystemExit):
        command.main(["small", "--out", str(out), "--resume", "--commit", "def", "--repeats", "3"])
    assert "commit abc, now def; repeats 2, now 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("small", "--resume")
    assert "--out" in capsys.readouterr().err


def test_a_case_that_ended_the_process_is_not_begun_again(small_case, tmp_path):
    small_case()
    out = tmp_path / "results.json"
    results = slices.Results(slices.machine("abc", {"repeats": 2}), out)
    results.begin("small")
    again = slices.resumed(out, slices.machine("abc", {"repeats": 2}))
    assert again.left(["small", "other"]) == ["other"]
    assert again.records[0]["failure"] == "the process ended while it ran"
    assert [record["case"] for record in slices.resumed(out, results.machine).records] == ["small"]
    assert os.listdir(tmp_path) == ["results.json"]


def test_tiny_networks_run_and_functions_have_one_size(monkeypatch, tmp_path, capsys):
    out = tmp_path / "results.json"
    monkeypatch.setattr(timing, "CACHE_BYTES", CACHE_BYTES / 1000)
    assert run("dcgan_B1", "--size", "tiny", "--out", str(out), "--table") == 0
    content = json.loads(out.read_text())
    specs = MODELS["dcgan_B1"](size="tiny")[1]
    outputs = jax.tree.leaves(jax.eval_shape(MODELS["dcgan_B1"](size="tiny")[0], *specs))
    assert content["records"][0]["floor_bytes"] == timing.floor_bytes(specs, outputs, ())
    assert content["machine"]["size"] == "tiny"
    assert "tiny networks" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("log_softmax", "--size", "tiny")
    assert "log_softmax" in capsys.readouterr().err


def test_an_unknown_case_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        command.main(["nosuch"])
    assert "no case or suite is called nosuch" in capsys.readouterr().err


def test_a_plan_that_is_all_kernels_has_its_bytes_counted():
    function, specs, _ = CASES["layernorm_shift_window"]()
    options = jaxorch.Options(device="h200", effort="fast")
    report = jaxorch.explain(jaxorch.optimize(function, options=options), *specs)
    assert not report.left
    outputs = [jax.eval_shape(function, *specs)]
    assert runner._moved(report) == sum(line.bytes_moved for line in report.kernels)
    assert runner._moved(report) >= timing.floor_bytes(specs, outputs, ())
    sorted_too = jaxorch.explain(jaxorch.optimize(lambda *x: jnp.sort(function(*x)), options=options), *specs)
    assert sorted_too.left
    assert runner._moved(sorted_too) is None
