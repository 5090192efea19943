"""The same results on a CUDA GPU as on CPU, without waiting for it; skipped where there is none."""

import pytest
import torch
from torch._dynamo.utils import counters

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.analysis import energy_report
from spikenlp.export.nir_graph import to_nir
from spikenlp.losses import get_temporal_loss
from spikenlp.neurons import IF, LIF, PLIF, RoundingIF

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

NEURONS = {
    "if": lambda **kw: IF(**kw),
    "lif, hard reset": lambda **kw: LIF(0.75, reset="hard", surrogate="arctan", **kw),
    "plif, ternary": lambda **kw: PLIF(ternary=True, learn_threshold=True, **kw),
    "rounding": lambda **kw: RoundingIF(**kw),
    "rounding, binary": lambda **kw: RoundingIF(ternary=False, **kw),
}
SHAPE = (4, 1100, 64)


def gradients(neuron, x, grad, **options):
    x = x.clone().requires_grad_()
    out = neuron(x, **options)
    parameters = {n: p for n, p in neuron.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(out, [x, *parameters.values()], grad)
    return out.detach(), dict(zip(["x", *parameters], found, strict=True))


@pytest.mark.filterwarnings("error:torch.compile found no")
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", NEURONS)
def test_kernels_agree_with_eager_mode_on_cpu(kind, dtype, running):
    generator = torch.Generator().manual_seed(0)
    neuron = NEURONS[kind](channels=SHAPE[-1])
    # Multiples of 1/64 add up exactly, whatever the order.
    x = ((torch.randn(SHAPE, generator=generator) * 64).round() / 64).to(dtype)
    grad = torch.randn(SHAPE, generator=generator).to(dtype)
    with torch.compiler.set_stance("force_eager"):
        out, expected = gradients(neuron, x, grad, running=running)
    on_gpu, found = gradients(neuron.cuda(), x.cuda(), grad.cuda(), running=running)
    assert (on_gpu.cpu() != out).float().mean() < 1e-4
    for name in expected:
        scale = expected[name].float().abs().max()
        error = (found[name].cpu().float() - expected[name].float()).abs()
        assert error.mean() < 2e-3 * scale, name


def test_batches_and_lengths_cause_no_recompilation():
    torch.compiler.reset()
    counters.clear()
    for batch, width in ((1100, 64), (1301, 65), (2000, 96)):
        neuron = RoundingIF(width).cuda()
        neuron(torch.randn(4, batch, width, device="cuda", requires_grad=True)).sum().backward()
    assert 1 <= counters["stats"]["unique_graphs"] <= 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = SpikingBertConfig(
        vocab_size=120,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return SpikingBertForSequenceClassification(config)


def batch(device):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (8, 24), generator=generator)
    mask = (torch.arange(24) < torch.randint(4, 25, (8, 1), generator=generator)).long()
    labels = torch.randint(2, (8,), generator=generator)
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}, labels.to(
        device
    )


def test_the_model_decides_as_on_cpu(model):
    inputs, _ = batch("cpu")
    with torch.no_grad():
        expected = model.eval()(**inputs).timestep_logits
        found = model.cuda()(**batch("cuda")[0]).timestep_logits.cpu()
    # Rounding can move a spike, and a spike some logits: most are the same.
    assert (found - expected).abs().median() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_never_waits_for_the_gpu(model, dtype):
    model.cuda().train()
    inputs, labels = batch("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(**inputs).timestep_logits
        loss = get_temporal_loss("tmc")(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step() for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_the_whole_model_compiles(model):
    model.cuda().eval()
    inputs, _ = batch("cuda")
    with torch.no_grad():
        expected = model(**inputs).logits
        found = torch.compile(model, fullgraph=True)(**inputs).logits
    assert (found - expected).abs().median() < 1e-3


def test_energy_and_nir_of_an_image_model_on_a_gpu():
    torch.manual_seed(0)
    config = SpikingVGGConfig(hidden_sizes=[4, 8], depths=[1, 1], image_size=8, num_channels=2)
    model = SpikingVGGForImageClassification(config).eval()
    batch = {"pixel_values": torch.rand(2, 2, 8, 8)}
    expected = energy_report(model, batch)
    found = energy_report(model.cuda(), {"pixel_values": batch["pixel_values"].cuda()})
    assert found.layers[0].dense_macs == expected.layers[0].dense_macs
    assert found.energies["dense, float32"] == expected.energies["dense, float32"]
    pytest.importorskip("nir")
    nodes = to_nir(model).nodes
    assert nodes["classifier"].weight.shape[0] == config.num_labels
