"""A case's program compiled by torch, and the callable that is timed.

What is compiled is the translation of the case's jaxpr (`benchmarks.translation`), called with the case's arguments,
weights included: arrays go over by DLPack, without a copy. A donated argument is overwritten: the program's last step
copies into it the output that takes its place, which torch's compiler turns into writing there. On a GPU float32
products run in TF32, as under JAX; where the program asks one of them for more, all run in float32.

What is timed on a GPU is the replay of a CUDA graph. Each argument set has a graph of its own, captured before, and a
call replays the next one: the compiled kernels, no argument copied, one launch. The graphs that torch makes by itself
(mode "reduce-overhead") copy all arguments into buffers of theirs at every call. The clock is that of every version
(`program_times`): CUPTI records the kernels of the process, torch's and XLA's alike. On the CPU a call runs the
compiled program.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import torch
from jax.extend import core
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.peers.flags import CONVOLUTIONS, PRODUCTS
from benchmarks.peers.parts import equations
from benchmarks.peers.peer import ArgumentSets, Built, Case
from benchmarks.translation.interpreter import Program

type Tensors = tuple[torch.Tensor, ...]


def build(case: Case, mode: str | None, arguments: Sequence[jax.Array]) -> Built:
    """Compile the case's program in `mode`, for arguments like `arguments`, and run it on these."""
    start = time.perf_counter()
    jaxpr = jax.make_jaxpr(case.function)(*case.specs)
    tensors, exact = borrowed(arguments, case.donated), asks_for_more(jaxpr)
    # The tables of what max-autotune timed are not printed.
    with _precision(exact), torch.no_grad(), torch._inductor.config.patch(autotune_num_choices_displayed=0):
        compiled = torch.compile(traced(jaxpr, tensors, case.donated), mode=mode, dynamic=False)
        first = compiled(*tensors)
        _wait(tensors)
    like = [torch.empty_like(out, device="meta") for out in first if out.is_floating_point()]
    del first
    seconds = time.perf_counter() - start

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        with _precision(exact), torch.no_grad():
            return compiled(*tensors)

    def outputs(*arguments: jax.Array) -> list[jax.Array]:
        tensors = borrowed(arguments, case.donated)
        _poison(like, tensors[0].device)
        found = run(*tensors)
        _wait(tensors)
        return [jnp.from_dlpack(out.contiguous()) for out in found]

    def timed(sets: ArgumentSets) -> Callable[..., object]:
        return Turns(run, [borrowed(arguments, case.donated) for arguments in sets], case.donated)

    return Built(seconds, lambda: _temp_bytes(run, tensors), outputs, timed)


def traced(jaxpr: core.Jaxpr, tensors: Tensors, donated: Sequence[int]) -> torch.fx.GraphModule:
    """The program as a graph of torch's operations, which returns its outputs and overwrites donated arguments."""
    program = Program(jaxpr, tensors[0].device)

    def function(*tensors: torch.Tensor) -> list[torch.Tensor]:
        outputs = program(*tensors)
        overwritten = {id(tensors[k]) for k in donated}
        outputs = [out.clone() if {id(out), id(out._base)} & overwritten else out for out in outputs]
        for argument, place in replaced(tensors, outputs, donated):
            outputs[place] = tensors[argument].copy_(outputs[place])
        return outputs

    # A tensor that is a constant of the program is no argument, so it is not made fake.
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)


def replaced(
    arguments: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], donated: Sequence[int]
) -> list[tuple[int, int]]:
    """For every donated argument the output that takes its place: the first unused one of its shape and dtype."""
    free = dict(enumerate(outputs))
    pairs = []
    for argument in sorted(donated):
        kind = (arguments[argument].shape, arguments[argument].dtype)
        place = next((k for k, out in free.items() if (out.shape, out.dtype) == kind), None)
        if place is not None:
            pairs.append((argument, place))
            del free[place]
    return pairs


class Turns:
    """The program on each argument set in turn, whatever it is called with.

    Returns what a caller waits for, and the donated arguments of the call, since it has not consumed those: `Rotation`
    takes them back for the next call.
    """

    def __init__(self, run: Callable[..., object], sets: Sequence[Tensors], donated: Sequence[int]):
        self._donated = sorted(donated)
        self._tensor = sets[0][0]
        calls = _captured(run, sets) if sets[0][0].is_cuda else [_later(run, tensors) for tensors in sets]
        self._calls = itertools.cycle(calls)

    def __call__(self, *arguments: jax.Array) -> object:
        next(self._calls)()
        return [arguments[k] for k in self._donated], Pending(self._tensor)


class Pending:
    """Work that was issued: `block_until_ready` returns when it is done, as that of a JAX array does."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def block_until_ready(self) -> None:
        _wait((self._tensor,))


def borrowed(arguments: Sequence[jax.Array], donated: Sequence[int]) -> Tensors:
    """Tensors over the memory of `arguments`; of the donated ones, which will be overwritten, copies."""
    jax.block_until_ready(arguments)
    shared = [torch.from_dlpack(argument) for argument in arguments]
    return tuple(tensor.clone() if k in donated else tensor for k, tensor in enumerate(shared))


def _poison(like: Sequence[torch.Tensor], device: torch.device) -> None:
    """As `correctness.poison`, in the memory of torch's allocator."""
    filled = [torch.full_like(out, math.nan, device=device) for out in like]
    del filled


def _later(run: Callable[..., object], tensors: Tensors) -> Callable[[], object]:
    return lambda: run(*tensors)


def _captured(run: Callable[..., object], sets: Sequence[Tensors]) -> list[Callable[[], object]]:
    # One pool: the graphs run one after the other, and none needs what another leaves.
    pool, replays = torch.cuda.graph_pool_handle(), []
    run(*sets[0])  # nothing is left to be set up while a graph is captured
    torch.cuda.synchronize()
    for tensors in sets:
        graph = torch.cuda.CUDAGraph()
        # JAX's threads may allocate meanwhile, which is no business of this graph's.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run(*tensors)
        replays.append(graph.replay)
    torch.cuda.synchronize()
    return replays


def _temp_bytes(run: Callable[..., Sequence[torch.Tensor]], tensors: Tensors) -> int | None:
    """What torch's allocator holds at most during a call, beside the arguments and the outputs."""
    if not tensors[0].is_cuda:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = run(*tensors)
    torch.cuda.synchronize()
    made = torch.cuda.memory_allocated() - before
    del outputs
    return torch.cuda.max_memory_allocated() - before - made


def _wait(tensors: Sequence[torch.Tensor]) -> None:
    if tensors[0].is_cuda:
        torch.cuda.synchronize()


@contextlib.contextmanager
def _precision(exact: bool) -> Iterator[None]:
    """Products and convolutions of float32 in float32 where `exact`, else in TF32."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def asks_for_more(jaxpr: core.Jaxpr) -> bool:
    """Whether a program asks any product of float32 for more than the default precision, TF32 on a GPU."""
    usual = (None, jax.lax.Precision.DEFAULT, jax.lax.DotAlgorithmPreset.TF32_TF32_F32)
    asked = [
        eqn.params["precision"]
        for eqn in equations(jaxpr)
        if eqn.primitive.name in PRODUCTS | CONVOLUTIONS and eqn.invars[0].aval.dtype == jnp.float32
    ]
    return any(p not in usual for each in asked for p in (each if isinstance(each, tuple) else (each,)))
