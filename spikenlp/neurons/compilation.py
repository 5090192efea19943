"""Runs the neuron loops through `torch.compile`, from the same source that eager mode runs.

Inductor makes vectorised C++ of them on CPU and Triton on CUDA. Small tensors, many time steps and
the inside of a compiled model run the plain function: there the loop costs little, compiling it too
much, or it is compiled with its surroundings. `torch.compiler.set_stance("force_eager")` or
`TORCH_COMPILE_DISABLE=1` switch compilation off.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config

MIN_COMPILED_NUMEL = 1 << 18
"""Tensors with fewer elements run eagerly: compiling takes seconds, the loop over them does not."""

MAX_COMPILED_STEPS = 32
"""Loops over more steps run eagerly: compiling unrolls them, which for 100 steps takes many minutes."""

# Steps are stacked by writing each where it belongs: one elementwise kernel over all of them, which
# Inductor prefers on a GPU for few, would run the whole loop once for each of them.
_OPTIONS: dict[str, Any] = {
    name: 1
    for name in ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    if hasattr(torch._inductor.config, name)
}

_compiler_works = True


def run_compiled(
    function: Callable[..., Any],
    first: torch.Tensor,
    *rest: torch.Tensor | None,
    loop_steps: int,
    **static: Any,
) -> Any:
    """`function(first, *rest, **static)`, compiled where the first tensor is large enough to gain.
    Dtypes are the loop's own: autocast, which would not stack a bfloat16 state in float16, is off in it.

    The first tensor is [T, ...]; `loop_steps` is how often `function` loops, 1 without a loop; `static`
    holds the Python values (flags, dtypes) that it is specialised for. Batch and sequence lengths stay
    symbolic: they cause no recompilation, but for a length of 1 (the first token alone) and under
    `torch.inference_mode`, which are one more each. A call for which Dynamo would keep more versions of
    one loop than it does runs eagerly.
    """
    with torch.autocast(first.device.type, enabled=False):
        return _run(function, first, *rest, loop_steps=loop_steps, **static)


def _run(
    function: Callable[..., Any],
    first: torch.Tensor,
    *rest: torch.Tensor | None,
    loop_steps: int,
    **static: Any,
) -> Any:
    global _compiler_works
    if (
        torch.compiler.is_compiling()
        or torch._dynamo.config.disable  # TORCH_COMPILE_DISABLE=1
        or first.numel() < MIN_COMPILED_NUMEL
        or loop_steps > MAX_COMPILED_STEPS
        or not _compiler_works
    ):
        return function(first, *rest, **static)
    # Other memory layouts and dtypes would each be a recompilation, and so would views, parameters
    # and tensors with a gradient: make the former one, detach the latter, and give every combination
    # of dtypes and flags a compiled function of its own.
    tensors = [x if x is None else x.contiguous().detach() for x in (first, *rest)]
    ones = [None if x is None else tuple(size == 1 for size in x.shape) for x in tensors]
    signature = tuple(
        None if x is None else (x.dtype, one, x.device)
        for x, one in zip(tensors, ones, strict=True)
    )
    mode = torch.is_inference_mode_enabled()
    try:
        compiled = _compiled(
            function, first.shape[0], signature, mode, tuple(sorted(static.items()))
        )
        return compiled(*tensors, **static)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        _compiler_works = False
        warnings.warn(
            "torch.compile found no working compiler for the neuron loops, which now run in eager "
            "mode: same results, several times slower. Install a C++ compiler (CPU) or Triton "
            f"(CUDA) to change that. The compiler said: {str(error).splitlines()[0]}",
            stacklevel=2,
        )
        return function(*tensors, **static)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        # More kinds of surroundings (numbers of threads, torch function modes) than Dynamo keeps.
        return function(*tensors, **static)


@functools.cache
def _compiled(function: Any, *specialisation: Any) -> Callable[..., Any]:
    # A code object of its own for each specialisation: Dynamo limits recompilations per code object.
    copy = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(copy, dynamic=True, fullgraph=True, options=_OPTIONS)
