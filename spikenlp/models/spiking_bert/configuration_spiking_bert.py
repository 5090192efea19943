"""Configuration of the spiking BERT."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from spikenlp.models.checkpoint import SpikingConfig
from spikenlp.neurons.modules import LARGEST_BURST

ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "default": {"num_timesteps": 4, "neuron": "rounding", "ternary": True, "gradient": "bptt"},
    "spikingbert": {"num_timesteps": 100, "neuron": "if", "ternary": False, "gradient": "implicit"},
}
"""What a field is where it is not given."""
SIZES = (
    "num_timesteps",
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


@strict
class SpikingBertConfig(SpikingConfig):
    """BERT's fields, and what makes it spike.

    Args:
        num_timesteps: T >= 1; 4, and 100 for "spikingbert". It may be changed on a loaded model
            (`model.config.num_timesteps`); amplitudes are calibrated for the T that they were
            calibrated with.
        architecture: "default": a float residual stream with post-LayerNorm; every weight matrix of
            the encoder reads spikes, and keys, values and the attention context are spikes too.
            "spikingbert": layers send spikes only, residuals included (Bal & Sengupta, AAAI 2024;
            `spikenlp.models.spiking_bert.equilibrium`).
        neuron: "rounding" (`RoundingIF`), or the classic "if", "lif", "plif"; "if" alone for
            "spikingbert".
        ternary: spikes {-1, 0, 1}, else {0, 1}; True, and False for "spikingbert".
        burst: the most spikes of a rounding neuron in one time step, in [1, 16]: with more than one it makes up for
            spikes that came too late, and with ternary spikes and running means the model over time approaches its
            collapsed twin. Amplitudes do not depend on it: a checkpoint may be loaded with another
            (`from_pretrained(path, burst=3)`); of a loaded model it stays what it is.
        nonlinearity: "running": softmax attention, GELU, LayerNorm and tanh act on the running mean
            of their input; "step": on each step. See `spikenlp.models.over_time`.
        gradient: "bptt": through the unrolled time steps. "implicit" ("spikingbert" alone, and its
            default): the time steps run without a graph, in memory that does not grow with T, and
            the gradient is that of the equilibrium of the average spiking rates.
        settle_tolerance: with "implicit", a sample runs no further once no population's rates at
            step t differ by more than this from those at t / 2, on average over its real tokens
            (looked at for t = 2, 4, 6, 8, 12, ..., 48, 64, 96, ...). None: all T steps.
        collapsed: each rounding neuron becomes its (2T + 1)-level rounding, and there is no time
            axis. About the cost of a dense BERT; not spiking.
        beta: decay of "lif", initial decay of "plif".
        surrogate: surrogate gradient of the classic neurons.
        attention_probs_dropout_prob: 0 with "running", where each step would draw another mask and
            the differences between steps would amplify it. `hidden_dropout_prob` draws one mask for
            all steps.

    Raises:
        ValueError: a field outside the above.
    """

    model_type = "spiking_bert"
    keys_to_ignore_at_inference = [
        *("timestep_logits", "timestep_start_logits", "timestep_end_logits"),
        *("hidden_states", "attentions", "attention_scores"),
    ]
    never_left_out: ClassVar[tuple[str, ...]] = (
        *SpikingConfig.never_left_out,
        "num_attention_heads",
        "burst",
        "nonlinearity",
        "ternary",
    )

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True

    num_timesteps: int | None = None
    architecture: Literal["default", "spikingbert"] = "default"
    neuron: Literal["rounding", "if", "lif", "plif"] | None = None
    ternary: bool | None = None
    burst: int = 1
    gradient: Literal["bptt", "implicit"] | None = None
    settle_tolerance: float | int | None = None
    nonlinearity: Literal["running", "step"] = "running"
    collapsed: bool = False
    beta: float | int = 0.5
    surrogate: Literal["triangle", "rectangle", "sigmoid", "arctan"] = "triangle"

    def __post_init__(self, **kwargs):
        for name, value in ARCHITECTURE_DEFAULTS[self.architecture].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    def validate_spiking(self):
        """Run by `@strict` when a config is built or loaded."""
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.collapsed and self.neuron != "rounding":
            raise ValueError(
                f"collapsed=True replaces rounding neurons, but neuron={self.neuron!r}: set "
                "neuron='rounding' or collapsed=False"
            )
        if not 1 <= self.burst <= LARGEST_BURST:
            raise ValueError(f"burst must be in [1, {LARGEST_BURST}], got {self.burst}")
        if self.burst > 1 and self.neuron != "rounding":
            raise ValueError(f"burst={self.burst} is for rounding neurons, not {self.neuron!r}")
        if self.nonlinearity == "running" and self.attention_probs_dropout_prob:
            raise ValueError(
                "attention_probs_dropout_prob must be 0 with nonlinearity='running' (got "
                f"{self.attention_probs_dropout_prob}): use hidden_dropout_prob"
            )
        self._validate_architecture()
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be in (0, 1], got {self.beta}")

    def _validate_architecture(self):
        if self.architecture == "spikingbert":
            if self.neuron != "if":
                raise ValueError(
                    "architecture='spikingbert' has integrate-and-fire neurons: neuron must be 'if' "
                    f"(its default there), got {self.neuron!r}"
                )
        elif self.gradient != "bptt":
            raise ValueError(
                f"gradient={self.gradient!r} needs architecture='spikingbert', whose rates have an "
                f"equilibrium; architecture={self.architecture!r} takes gradient='bptt'"
            )
        if self.settle_tolerance is not None:
            if self.gradient != "implicit":
                raise ValueError(
                    "settle_tolerance stops the time steps of gradient='implicit'; with gradient="
                    f"{self.gradient!r} it must be None, got {self.settle_tolerance}"
                )
            if self.settle_tolerance <= 0:
                raise ValueError(
                    f"settle_tolerance must be > 0 or None, got {self.settle_tolerance}"
                )


__all__ = ["SpikingBertConfig"]
