"""PyTorch's fused attention on one device: forward and backward by precision, against eager attention.

    python benchmarks/attention.py --output results/benchmarks/attention_cpu.json

Queries, keys and values [rows, 12 heads, L, 32] without a mask; rows are T times B. "in float32" is what the
spiking BERT does while it is trained in half precision on a CPU (`spikenlp/models/spiking_bert/parts.py`): bfloat16 in
and out, float32 inside. On CPU freed memory is kept for the next call, as the recipes do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import arguments, finish, table, time_in_turn
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.bert.modeling_bert import eager_attention_forward

from spikenlp.models.spiking_bert.parts import in_float32
from spikenlp.training.cpu import keep_freed_memory

HEADS, SIZE = 12, 32
SHAPES = [(32, 12), (32, 48), (128, 12), (128, 48), (128, 128)]


def rows(count: int, length: int, device: str) -> dict[str, Callable[[], None]]:
    module = nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]

    def trained(attention: Callable[..., tuple[Tensor, Tensor | None]], dtype: torch.dtype):
        shape = (count, length, HEADS, SIZE)
        heads = [
            torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3)
        ]
        gradient = torch.randn(shape, dtype=dtype, device=device)

        def run() -> None:
            query, key, value = (x.transpose(1, 2) for x in heads)
            context, _ = attention(
                module, query, key, value, None, dropout=0.0, scaling=SIZE**-0.5, is_causal=False
            )
            torch.autograd.grad(context, heads, gradient)

        return run

    return {
        "fused, float32": trained(sdpa_attention_forward, torch.float32),
        "fused, bfloat16": trained(sdpa_attention_forward, torch.bfloat16),
        "in float32": trained(in_float32(sdpa_attention_forward), torch.bfloat16),
        "eager, bfloat16": trained(eager_attention_forward, torch.bfloat16),
    }


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.manual_seed(0)
    if options.device == "cpu":
        keep_freed_memory()
    found = {
        f"{count} x {length}": time_in_turn(rows(count, length, options.device), options.rounds)
        for count, length in SHAPES
    }
    names = list(next(iter(found.values())))
    cells = [
        [shape, *(f"{seconds[name]['median'] * 1e3:.1f}" for name in names)]
        for shape, seconds in found.items()
    ]
    print(table(["rows x L, ms", *names], cells))
    finish({"threads": torch.get_num_threads(), "seconds": found}, options.output)


if __name__ == "__main__":
    main()
