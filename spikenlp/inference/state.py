"""A spiking classifier one time step at a time: its state goes in and comes out.

The state holds all that a step needs of those before it: the float embedding, which is computed once,
the membrane potential of every neuron, with running means what each has received and sent, the
logits of each step so far. Nothing is left on the model. `advance` makes a new state and leaves the
old one as it was: two runs may go on from the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikenlp.models.over_time import NONLINEARITIES, next_increment
from spikenlp.models.spiking_bert.parts import INPUTS
from spikenlp.neurons import NeuronState, SpikingNeuron
from spikenlp.neurons.streaming import Carrier

if TYPE_CHECKING:
    from spikenlp.models.spiking_bert import SpikingBertForSequenceClassification


@dataclass(frozen=True)
class AnytimeState:
    """Everything that the steps after `step` need; `select` takes rows of it."""

    step: int
    """Steps done."""
    timestep_logits: Tensor
    """[B, step, C], as the model's output of that name."""
    energy: Tensor | None
    """Picojoules spent so far, float64 [B] on the CPU, or None where it is not counted."""
    embedding: Tensor
    """[B, L, D], the current that is injected at each step."""
    mask: Tensor | None
    """Of attention, [B, 1, 1 or L, L]."""
    real: Tensor
    """Positions that are not padding, bool [B, L]."""
    neurons: dict[str, NeuronState]
    """By the neuron's name; empty before the first step."""
    pooled: Tensor | None
    """t times the pooler's output [B, D], with running means."""

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def logits(self) -> Tensor:
        """[B, C], the mean over the steps done."""
        return self.timestep_logits.mean(1)

    def select(self, rows: Tensor) -> AnytimeState:
        """The state of some examples: `rows`, int64 indices in [0, B).

        Raises:
            ValueError: indices of another kind or out of range.
        """
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise ValueError(f"rows must be int64 [n], got {rows.dtype} {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(f"rows must lie in [0, {len(self)}), got {rows.tolist()}")

        def of(x: Tensor) -> Tensor:
            return x.index_select(0, rows.to(x.device))

        return AnytimeState(
            step=self.step,
            timestep_logits=of(self.timestep_logits),
            energy=None if self.energy is None else of(self.energy),
            embedding=of(self.embedding),
            mask=None if self.mask is None else of(self.mask),
            real=of(self.real),
            neurons={k: v.select(rows.to(self.embedding.device)) for k, v in self.neurons.items()},
            pooled=None if self.pooled is None else of(self.pooled),
        )


@torch.no_grad()
def start(
    model: SpikingBertForSequenceClassification,
    inputs: Mapping[str, Any],
    *,
    count_energy: bool = False,
) -> AnytimeState:
    """The state before the first step.

    Args:
        model: in eval mode.
        inputs: what `model(**inputs)` takes, of which what the base model reads is used.
        count_energy: count operations in every step, by the conventions of
            `spikenlp.analysis.energy`. It takes time, and while a step runs the model belongs to this
            thread alone.

    Raises:
        ValueError: a model in training mode, one that does not run step by step (`check_steps`), or
            no inputs; with `count_energy` a mask that is not [B, L], or is 0 at a first token.
    """
    _check_eval(model)
    check_steps(model)
    given = {k: v for k, v in inputs.items() if k in INPUTS}
    found = given.get("input_ids", given.get("inputs_embeds"))
    if found is None:
        raise ValueError(f"inputs must hold input_ids or inputs_embeds, got {sorted(inputs)}")
    real = found.new_ones(found.shape[:2], dtype=torch.bool)
    given_mask = given.get("attention_mask")
    if given_mask is not None and given_mask.dim() == 2:
        real = given_mask.bool()
    elif given_mask is not None and count_energy:
        raise ValueError(
            "to leave padding out of the energy, attention_mask must be [B, L], 0 at padding and 1 elsewhere, "
            f"got shape {tuple(given_mask.shape)}"
        )
    energy = None
    with ExitStack() as stack:
        if count_energy:
            seen = stack.enter_context(_record(model, real))
        embedding, mask = model.bert.embed(**given)
    if count_energy:
        energy = _energy(seen)
    return AnytimeState(
        step=0,
        timestep_logits=embedding.new_empty(len(embedding), 0, model.classifier.out_features),
        energy=energy,
        embedding=embedding,
        mask=mask,
        real=real,
        neurons={},
        pooled=None,
    )


@torch.no_grad()
def advance(model: SpikingBertForSequenceClassification, state: AnytimeState) -> AnytimeState:
    """One time step more.

    Raises:
        ValueError: a state of a model of another shape, of no rows, or whose parts are of different batches; a model
            in training mode, or one that does not run step by step (`check_steps`).
    """
    _check_eval(model)
    check_steps(model)
    modules = {k: m for k, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    _check(model, set(modules), state)
    before: dict[nn.Module, NeuronState] = {
        module: state.neurons.get(name, NeuronState()) for name, module in modules.items()
    }
    with ExitStack() as stack:
        if state.energy is not None:
            seen = stack.enter_context(_record(model, state.real))
        carrier = stack.enter_context(Carrier(before, state.embedding, state.real))
        stream = model.bert.encoder(state.embedding[None], state.mask, first_token_only=True)
        pooled = model.bert.pooler(stream)[0]
        current, pooled_sum = pooled, None
        if NONLINEARITIES[model.config.nonlinearity].running:
            current, pooled_sum = next_increment(pooled, state.step + 1, state.pooled)
        logits = model.classifier(current[:, None])
    return replace(
        state,
        step=state.step + 1,
        timestep_logits=torch.cat([state.timestep_logits.to(logits.dtype), logits], 1),
        energy=None if state.energy is None else state.energy + _energy(seen),
        neurons={k: carrier.after[module] for k, module in modules.items()},
        pooled=pooled_sum,
    )


def check_steps(model: SpikingBertForSequenceClassification) -> None:
    """Raises ValueError where `model` does not run step by step: of another family, collapsed, or of
    architecture="spikingbert"."""
    if model.config.model_type != "spiking_bert":
        raise ValueError(
            f"{type(model).__name__} does not run step by step: only SpikingBertForSequenceClassification "
            "does. Call the model, whose timestep_logits are of every step"
        )
    if model.config.collapsed:
        raise ValueError(
            "the model is collapsed, which has no time steps: set model.config.collapsed = False"
        )
    if model.config.architecture != "default":
        raise ValueError(
            f"a model of architecture={model.config.architecture!r} does not run step by step: only "
            "architecture='default' does. Call the model, whose timestep_logits are of every step"
        )


def _check_eval(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode, where dropout is drawn: call model.eval()")


def _check(
    model: SpikingBertForSequenceClassification, names: set[str], state: AnytimeState
) -> None:
    shape, width = tuple(state.embedding.shape), model.config.hidden_size
    if len(state) == 0:
        raise ValueError("the state has no rows left: stop when all have their answer")
    if shape[-1] != width:
        raise ValueError(
            f"the state is of a model of hidden_size {shape[-1]}, but this one has {width}: go on with "
            "the model that made it"
        )
    if state.timestep_logits.shape != (len(state), state.step, model.config.num_labels):
        raise ValueError(
            f"the state's timestep_logits must be [{len(state)}, {state.step}, "
            f"{model.config.num_labels}], got {tuple(state.timestep_logits.shape)}"
        )
    if state.step == 0:
        return
    if names != set(state.neurons):
        raise ValueError(
            f"the state holds {len(state.neurons)} neurons, which are not the {len(names)} of this "
            "model: go on with the model that made it"
        )
    running = NONLINEARITIES[model.config.nonlinearity].running
    bursts = {k: m.burst for k, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    of_first_token = (shape[0], 1)  # in the last layer, behind its keys and values
    for name, neuron in state.neurons.items():
        if neuron.membrane is None or neuron.membrane.shape[:2] not in (shape[:2], of_first_token):
            found = None if neuron.membrane is None else tuple(neuron.membrane.shape)
            raise ValueError(
                f"the state of {name} must be [{shape[0]}, {shape[1]}, ...], as its embedding, got "
                f"{found}: take rows of a state with its `select`"
            )
        of_bursts = (neuron.fired is not None) == (bursts[name] > 1)
        if (neuron.sent is not None) != running or neuron.step != state.step or not of_bursts:
            raise ValueError(
                f"the state of {name} is not of {state.step} steps with nonlinearity="
                f"{model.config.nonlinearity!r} and burst={bursts[name]}: go on with the model that made it"
            )


def _record(model: SpikingBertForSequenceClassification, real: Tensor):
    from spikenlp.analysis.tracing import record
    from spikenlp.analysis.watching import refuse_padded_first_token

    refuse_padded_first_token(model, real)
    return record(model, len(real), real)


def _energy(seen: Any) -> Tensor:
    from spikenlp.analysis.energy import spiking_energy

    return spiking_energy(seen)
