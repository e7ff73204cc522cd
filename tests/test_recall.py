"""A second process finds what the first one chose: it searches, compiles and times nothing; the bytes are the same."""

import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxorch
from jaxorch import primitive
from jaxorch.options import Options
from jaxorch.orchestration import choice
from jaxorch.orchestration.recall import KIND
from jaxorch.runtime import handover, kept, launch, source
from jaxorch.runtime import store as store_module
from jaxorch.runtime.store import Store

pytest.importorskip("triton")


def layers(x, weights):
    """Equal layers, a loop, and something that stays with XLA."""
    for w in weights:
        x = jnp.sort(jax.nn.softmax(x * w, axis=-1), axis=0)
    return jax.lax.fori_loop(0, 3, lambda k, y: jax.nn.softmax(y * k), x).T, x


SPECS = jax.ShapeDtypeStruct((64, 256), jnp.float32), [jax.ShapeDtypeStruct((256,), jnp.float32)] * 3


@pytest.fixture(autouse=True)
def own_folder(monkeypatch):
    monkeypatch.delenv("JAXORCH_CACHE_DIR", raising=False)


def exported(folder, **options):
    """The program as a GPU gets it, planned anew."""
    primitive.clear()
    jax.clear_caches()
    chosen = Options(export="kernels", device="h200", cache_dir=str(folder), **options)
    checks = [jax.export.DisabledSafetyCheck.custom_call("triton_kernel_call_ffi")]
    program = jax.jit(jaxorch.optimize(layers, options=chosen))
    return jax.export.export(program, platforms=("cuda",), disabled_checks=checks)(*SPECS).mlir_module()


def explained(folder, **options):
    primitive.clear()
    return jaxorch.explain(
        jaxorch.optimize(layers, options=Options(device="h200", cache_dir=str(folder), **options)), *SPECS
    )


@pytest.fixture
def no_search(monkeypatch):
    """Whoever searches or compiles now fails."""

    def refuse(*args, **named):
        raise RuntimeError("nothing was to be searched or compiled")

    monkeypatch.setattr(choice, "enumerate_candidates", refuse)
    monkeypatch.setattr(kept, "compile_for", refuse)


def plans(folder):
    return sorted(folder.glob(f"{KIND}/*/*.json"))


def test_nothing_is_found_that_was_not_chosen(tmp_path, no_search):
    with pytest.raises(jaxorch.JaxorchError, match="nothing was to be searched"):
        explained(tmp_path)


@pytest.mark.slow
def test_reports_and_programs_are_the_same_from_the_store(tmp_path, request):
    first = explained(tmp_path)
    assert len(first.kernels) >= 3
    assert first.bodies
    assert first.left
    assert len(plans(tmp_path)) == 2  # of the program and of the loop's body
    programs: list[str] = []
    for again in (False, True):
        if again:
            request.getfixturevalue("no_search")
            assert explained(tmp_path).to_json() == first.to_json()
        programs.append(exported(tmp_path))
    assert programs[0] == programs[1]
    assert "triton_kernel_call" in programs[0]


def test_kernels_that_the_store_has_not_are_compiled_beside_each_other(tmp_path, monkeypatch, request):
    """As where the choice was imported and the kernels were not: by the workers, not one by one in this process."""
    first = explained(tmp_path)
    shutil.rmtree(tmp_path / kept.KIND)
    monkeypatch.setattr(handover, "_offered", {})
    monkeypatch.setattr(launch, "SEVERAL", 1)
    request.getfixturevalue("no_search")
    assert explained(tmp_path).to_json() == first.to_json()
    assert len(list(tmp_path.glob(f"{kept.KIND}/*/*.json"))) >= 3


def test_a_kernel_that_another_graph_had_first_is_found_again(tmp_path, request):
    def joined(x, y):
        return jax.nn.softmax(x * 2), jnp.concatenate([jax.nn.softmax(y), jax.nn.softmax(y.T)], axis=1)

    def again():
        primitive.clear()
        specs = jax.ShapeDtypeStruct((512, 1024), jnp.float32), jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
        chosen = Options(device="h200", cache_dir=str(tmp_path))
        return jaxorch.explain(jaxorch.optimize(joined, options=chosen), *specs).to_json()

    first = again()
    (plan,) = plans(tmp_path)
    (made,) = read(plan)["made"]
    built_in = {kernel["version"] for kernel in made["kernels"].values()}
    assert made["version"] in built_in
    assert len(built_in) > 1
    request.getfixturevalue("no_search")
    assert again() == first


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"device": "a100"}, {"memory_weight": 1.0}])
def test_other_options_are_another_choice(tmp_path, options):
    explained(tmp_path)
    before = len(plans(tmp_path))
    assert before == 2
    jaxorch.explain(
        jaxorch.optimize(layers, options=Options(**({"device": "h200", "cache_dir": str(tmp_path)} | options))), *SPECS
    )
    assert len(plans(tmp_path)) == 2 * before


def change(record, path, value):
    *inner, last = path
    for key in inner:
        record = record[key]
    record[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("made",), []),
        (("made",), None),
        (("made", 0, "version"), 99),
        (("made", 0, "steps", 0), {}),
        (("made", 0, "solution"), {"chosen": []}),
        (("made", 0, "baselines"), 7),
    ],
)
def test_a_record_that_does_not_fit_is_made_again(tmp_path, path, value):
    first = explained(tmp_path)
    store = Store(tmp_path)
    for file in plans(tmp_path):
        record = store.get(KIND, file.stem)
        change(record, path, value)
        store.put(KIND, file.stem, record)
    assert explained(tmp_path).to_json() == first.to_json()
    assert all(record["made"] and record["made"][0]["version"] != 99 for record in map(read, plans(tmp_path)))


def test_a_kernel_whose_source_has_changed_is_chosen_again(tmp_path):
    first = explained(tmp_path)
    store = Store(tmp_path)
    for file in plans(tmp_path):
        record = store.get(KIND, file.stem)
        for kernel in record["made"][0]["kernels"].values():
            kernel["digest"] = "0" * 64
        store.put(KIND, file.stem, record)
    assert explained(tmp_path).to_json() == first.to_json()
    assert all("0" * 64 not in json.dumps(read(file)) for file in plans(tmp_path))


def read(file):
    return json.loads(json.loads(file.read_text())["record"])


PROCESS = """
import hashlib, sys
from tests.test_recall import exported
print(hashlib.sha256(exported(sys.argv[1]).encode()).hexdigest())
"""


def in_a_process(folder, seed):
    environment = os.environ | {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.slow
def test_processes_agree_whatever_the_hash_seed(tmp_path):
    cold = [in_a_process(tmp_path / seed, seed) for seed in ("0", "12345")]
    warm = in_a_process(tmp_path / "0", "777")
    assert cold[0] == cold[1] == warm


def test_equal_bodies_are_planned_once(tmp_path, monkeypatch):
    asked = []
    enumerate_candidates = choice.enumerate_candidates
    monkeypatch.setattr(
        choice, "enumerate_candidates", lambda graph, built: asked.append(graph) or enumerate_candidates(graph, built)
    )

    def loops(x):
        for _ in range(3):
            x = jax.lax.fori_loop(0, 3, lambda k, y: jax.nn.softmax(y * k), jnp.sort(x, axis=0))
        return x

    chosen = Options(device="h200", cache_dir=str(tmp_path))
    report = jaxorch.explain(jaxorch.optimize(loops, options=chosen), SPECS[0])
    assert len(report.bodies) == 3
    assert len(asked) == 2


class _Forgets(dict):
    """Kernels that are offered, and never found."""

    def get(self, key, default=None):
        return default


def test_a_kernel_that_is_kept_is_what_triton_would_have_made(tmp_path, monkeypatch):
    kept_ones = exported(tmp_path)
    asked = []
    compiled = handover._compiled
    monkeypatch.setattr(handover, "_offered", _Forgets())
    monkeypatch.setattr(handover, "_compiled", lambda *args: asked.append(args) or compiled(*args))
    monkeypatch.setattr(source, "_functions", {})  # and with them what jax-triton remembers of them
    triton_ones = exported(tmp_path)
    assert asked
    assert [line for line in triton_ones.splitlines() if not line.startswith("#loc")] == [
        line for line in kept_ones.splitlines() if not line.startswith("#loc")
    ]


def test_a_full_disk_costs_what_is_found_and_nothing_else(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "_write", full)
    with pytest.warns(jaxorch.JaxorchWarning, match="No space left on device") as caught:
        report = explained(tmp_path)
    assert len(report.kernels) >= 3
    assert len(caught) == 1
    assert any("kept in memory" in problem for problem in report.problems)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_that_may_only_be_read_serves_what_it_has(tmp_path, monkeypatch, request):
    first = explained(tmp_path)

    def refused(path, content):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store_module, "_write", refused)
    request.getfixturevalue("no_search")
    assert explained(tmp_path).to_json() == first.to_json()
