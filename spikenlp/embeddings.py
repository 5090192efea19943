"""Spiking sentence embeddings: a dense sentence encoder made spiking, and ranking that may stop early.

    p_t = mean over real tokens of the last hidden state, meant over steps 1 ... t
    e_t = p_t / |p_t|                         the embedding after step t; similarity is their cosine

A folder that `SentenceEncoder.save_pretrained` writes is one of sentence-transformers (its modules
Transformer, Pooling and Normalize, which it loads as they are); sentence-transformers is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from spikenlp.models.checkpoint import HUB_OPTIONS
from spikenlp.models.modes import exclusive
from spikenlp.models.over_time import running_mean
from spikenlp.models.spiking_bert import SpikingBertModel
from spikenlp.models.spiking_bert.roberta import FAMILY, bert_config

MODULES = {
    "Transformer": ("", "sentence_transformers.models.Transformer"),
    "Pooling": ("1_Pooling", "sentence_transformers.models.Pooling"),
    "Normalize": ("2_Normalize", "sentence_transformers.models.Normalize"),
}
"""Folder and type of each module, by the names that every release of sentence-transformers reads."""
MAX_SEQ_LENGTH = 256


def mean_pool(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean over real tokens: hidden [B, ..., L, D], attention_mask [B, L] -> float32 [B, ..., D].

    >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    if attention_mask is None:
        return hidden.float().mean(-2)
    real = attention_mask.bool().view(len(hidden), *[1] * (hidden.dim() - 3), -1, 1)
    # Where, and not times 0: what stands at padding may be infinite.
    return hidden.float().where(real, 0).sum(-2) / real.sum(-2).clamp_min(1)


def pooled_by_step(outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
    """p_t of the outputs of a spiking base model, float32 [B, T, D].

    Args:
        outputs: of a forward with `output_timesteps=True`; of a collapsed model, which has no time
            steps, T = 1.
        attention_mask: [B, L], 0 at padding.
    """
    by_step = outputs.timestep_hidden_state
    if by_step is None:
        return mean_pool(outputs.last_hidden_state, attention_mask)[:, None]
    return running_mean(mean_pool(by_step, attention_mask).transpose(0, 1)).transpose(0, 1)


class SentenceEncoder:
    """A spiking BERT with mean pooling.

    Args:
        model: a `SpikingBertModel`; it is put into eval mode.
        tokenizer: its tokenizer.
        max_seq_length: longer sentences are cut to so many tokens.
        normalize: whether embeddings have length 1.

    Raises:
        ValueError: a model of another kind; a length that the model has no positions for.

    >>> encoder = SentenceEncoder.from_dense("path/to/all-MiniLM-L6-v2", calibration=sentences)
    >>> encoder.encode(["How do I learn chess?"], by_step=True).shape  # T = 4
    torch.Size([1, 4, 384])
    >>> encoder.save_pretrained("chess")  # and SentenceTransformer("chess") loads it
    """

    def __init__(
        self,
        model: SpikingBertModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_seq_length: int = MAX_SEQ_LENGTH,
        normalize: bool = True,
    ):
        if not isinstance(model, SpikingBertModel):
            raise ValueError(
                f"model must be a SpikingBertModel, got {type(model).__name__}: make one of a dense "
                "sentence encoder with SentenceEncoder.from_dense(path, calibration=sentences)"
            )
        _check_length(max_seq_length, model.config.max_position_embeddings)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_seq_length, self.normalize = max_seq_length, normalize

    @classmethod
    def from_dense(
        cls,
        path: str | Path,
        *,
        calibration: Sequence[str] | None = None,
        reconstruct: bool = False,
        spike_cost: float = 0.0,
        max_seq_length: int | None = None,
        **config_overrides: Any,
    ) -> SentenceEncoder:
        """The spiking twin of a dense sentence encoder with mean pooling, without training.

        Args:
            path: folder or Hub id of a sentence-transformers model whose Transformer is a BERT.
            calibration: a few hundred sentences that amplitudes are fitted to. Without them they come
                from the weights alone, and a warning says so.
            reconstruct, spike_cost: as in `SpikingBertModel.from_dense`.
            max_seq_length: default: that of the dense encoder.
            config_overrides: fields of `SpikingBertConfig`, e.g. `num_timesteps=8`.

        Raises:
            ValueError: no sentence encoder, another pooling, no BERT; see `SpikingBertModel.from_dense`.
        """
        found = read_modules(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        length = found["max_seq_length"] if max_seq_length is None else max_seq_length
        _check_length(length, _positions(path))
        batches = None
        if calibration is not None:
            batches = tokenize(tokenizer, calibration, length, batch_size=32)
        model = SpikingBertModel.from_dense(
            str(path),
            calibration=batches,
            reconstruct=reconstruct,
            spike_cost=spike_cost,
            **{"hidden_dropout_prob": 0.0, **config_overrides},
        )
        return cls(model, tokenizer, max_seq_length=length, normalize=found["normalize"])

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> SentenceEncoder:
        """What `save_pretrained` wrote, or a push of it; `options` are those of the model's loading, of which
        the Hub's (`revision`, `token`, ...) hold for every file.

        Raises:
            ValueError: no sentence encoder, another pooling, a dense encoder (`from_dense` converts it).
        """
        of_hub = {name: options[name] for name in (*HUB_OPTIONS, "token") if name in options}
        found = read_modules(path, **of_hub)
        model = AutoModel.from_pretrained(path, **options)
        return cls(model, AutoTokenizer.from_pretrained(path, **of_hub), **found)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes model, tokenizer and sentence-transformers' files into the folder `path`."""
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        self.save_modules(path)

    def save_modules(self, path: str | Path) -> None:
        """Writes what makes a saved model and tokenizer a folder of sentence-transformers."""
        root, names = Path(path), [*MODULES][: 3 if self.normalize else 2]
        modules = [
            {"idx": i, "name": str(i), "path": MODULES[name][0], "type": MODULES[name][1]}
            for i, name in enumerate(names)
        ]
        pooling = {
            "word_embedding_dimension": self.model.config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        length = {"max_seq_length": self.max_seq_length, "do_lower_case": False}
        files: dict[str, Any] = {
            "modules.json": modules,
            "sentence_bert_config.json": length,
            f"{MODULES['Pooling'][0]}/config.json": pooling,
        }
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps(content, indent=2) + "\n")

    @torch.no_grad()
    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        num_timesteps: int | None = None,
        by_step: bool = False,
        batch_size: int = 32,
    ) -> Tensor:
        """Embeddings in the order of `sentences`, float32 on the CPU. Threads wait for each other.

        Args:
            num_timesteps: stop after so many steps (default: the config's).
            by_step: also after each step before.
            batch_size: sentences a forward; they are sorted by length, so that little is padded.

        Returns:
            [N, D], or [N, T, D] with `by_step`; of a single string [D] or [T, D].

        Raises:
            ValueError: no sentence; steps or a batch size below 1; a collapsed model.
        """
        if isinstance(sentences, str):
            options: dict[str, Any] = {"num_timesteps": num_timesteps, "by_step": by_step}
            return self.encode([sentences], **options)[0]
        sentences = list(sentences)
        if not sentences:
            raise ValueError("sentences is empty: give at least one")
        config = self.model.config
        if config.collapsed:
            raise ValueError("a collapsed model has no time steps: set config.collapsed = False")
        with exclusive(self.model):
            saved = config.num_timesteps
            steps = saved if num_timesteps is None else num_timesteps
            if steps < 1 or batch_size < 1:
                raise ValueError(
                    f"num_timesteps and batch_size must be >= 1, got {steps} and {batch_size}"
                )
            config.num_timesteps = steps
            try:
                return embed_in_batches(
                    lambda batch: self._embed(batch, by_step),
                    self.tokenizer,
                    sentences,
                    self.max_seq_length,
                    batch_size,
                )
            finally:
                config.num_timesteps = saved

    def _embed(self, batch: dict[str, Tensor], by_step: bool) -> Tensor:
        inputs = {k: v.to(self.model.device) for k, v in batch.items()}
        mask = inputs["attention_mask"]
        outputs = self.model(**inputs, output_timesteps=by_step)
        if by_step:
            pooled = pooled_by_step(outputs, mask)
        else:
            pooled = mean_pool(outputs.last_hidden_state, mask)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def rank(
        self,
        query: str,
        corpus: Sequence[str],
        *,
        first: int = 2,
        refine: int = 8,
        top: int = 100,
    ) -> tuple[Tensor, Tensor]:
        """Ranks `corpus` after `first` steps and then its `top` best anew after `refine` steps.

        Several queries share an `AnytimeIndex`.

        Returns:
            Indices into `corpus` from the most similar, int64 [N], and similarities [N]: of the
            refined ones, which come first, after `refine` steps, of the others after `first`.

        Raises:
            ValueError: a query that is no string, `top` < 1; see `AnytimeIndex`.
        """
        return AnytimeIndex(self.embed_at, corpus, first=first, refine=refine).rank(query, top=top)

    def embed_at(self, sentences: Sequence[str], steps: Sequence[int]) -> Tensor:
        """Embeddings [N, len(steps), D] after each of `steps`, from one run of as many as the last."""
        found = self.encode(sentences, num_timesteps=max(steps), by_step=True)
        return found[:, [step - 1 for step in steps]]


class AnytimeIndex:
    """A corpus embedded after few steps; what a query puts on top is embedded again after more of them.

    A refined sentence starts at its first step again: the state to go on from takes megabytes a
    sentence, which a corpus has no room for. It is kept once it is refined.

    Args:
        embed: (sentences, steps) -> [N, len(steps), D], as `SentenceEncoder.embed_at`.
        corpus: N sentences.
        first: steps of all of them, >= 1.
        refine: steps of the best ones, > `first`.

    Raises:
        ValueError: an empty corpus, or steps out of range.

    >>> index = AnytimeIndex(encoder.embed_at, corpus, first=2, refine=8)
    >>> found, similarity = index.rank("How do I learn chess?", top=50)
    >>> print(corpus[found[0]], len(index.refined))
    """

    def __init__(
        self,
        embed: Callable[[Sequence[str], Sequence[int]], Tensor],
        corpus: Sequence[str],
        *,
        first: int = 2,
        refine: int = 8,
    ):
        corpus = list(corpus)
        if not corpus:
            raise ValueError("corpus is empty: give at least one sentence")
        if not 1 <= first < refine:
            raise ValueError(
                f"first must be >= 1 and refine greater, got first={first} and refine={refine}"
            )
        self._embed, self.corpus, self.first, self.refine = embed, corpus, first, refine
        self._coarse = F.normalize(embed(corpus, [first])[:, 0], dim=-1)
        self.refined: dict[int, Tensor] = {}
        """Embedding after `refine` steps of each sentence that some query has put on top."""

    def rank(self, query: str, *, top: int = 100) -> tuple[Tensor, Tensor]:
        """See `SentenceEncoder.rank`, whose errors it raises."""
        if not isinstance(query, str):
            raise ValueError(f"query must be one string, got a {type(query).__name__}")
        if top < 1:
            raise ValueError(f"top must be >= 1, got {top}")
        both = F.normalize(self._embed([query], [self.first, self.refine])[0], dim=-1)
        coarse = self._coarse @ both[0]
        order = coarse.argsort(descending=True, stable=True)
        best = order[:top]
        wanted = [i for i in best.tolist() if i not in self.refined]
        if wanted:
            embedded = self._embed([self.corpus[i] for i in wanted], [self.refine])[:, 0]
            self.refined |= dict(zip(wanted, F.normalize(embedded, dim=-1), strict=True))
        fine = torch.stack([self.refined[i] for i in best.tolist()]) @ both[1]
        again = fine.argsort(descending=True, stable=True)
        rest = order[top:]
        return torch.cat([best[again], rest]), torch.cat([fine[again], coarse[rest]])


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_seq_length: int,
    batch_size: int,
) -> list[dict[str, Tensor]]:
    """Padded batches of `sentences`, in their order.

    Raises:
        ValueError: a single string, whose letters would be the sentences.
    """
    if isinstance(sentences, str):
        raise ValueError(f"give a list of sentences, got the string {sentences!r}")
    return [
        dict(
            tokenizer(
                list(sentences[i : i + batch_size]),
                truncation=True,
                max_length=max_seq_length,
                padding=True,
                return_tensors="pt",
            )
        )
        for i in range(0, len(sentences), batch_size)
    ]


def embed_in_batches(
    embed: Callable[[dict[str, Tensor]], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_seq_length: int,
    batch_size: int,
) -> Tensor:
    """What `embed` makes of batches of like length, in the order of `sentences`, on the CPU."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    batches = tokenize(tokenizer, [sentences[i] for i in order], max_seq_length, batch_size)
    found = torch.cat([embed(batch).cpu() for batch in batches])
    return found[torch.tensor(order).argsort()]


def read_modules(path: str | Path, **hub_options: Any) -> dict[str, Any]:
    """`max_seq_length` and `normalize` of a sentence-transformers folder or Hub id.

    Args:
        hub_options: `revision`, `token`, ...

    Raises:
        ValueError: no such folder, modules other than Transformer, mean Pooling and Normalize, a prompt
            that goes before every sentence, or do_lower_case.
    """
    modules = _read(path, "modules.json", **hub_options)
    if modules is None:
        raise ValueError(
            f"{path} has no modules.json: it is not a model of sentence-transformers. A BERT without "
            "one is converted by SpikingBertModel.from_dense and given to SentenceEncoder"
        )
    names = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if names not in ([*MODULES], [*MODULES][:2]):
        raise ValueError(
            f"{path} has the modules {names}: only Transformer, Pooling and perhaps Normalize, in "
            "this order, are converted"
        )
    if modules[0]["path"]:
        raise ValueError(
            f"{path} keeps its Transformer in the folder {modules[0]['path']!r}; it must be at the root"
        )
    pooling = _read(path, f"{modules[1]['path']}/config.json", **hub_options) or {}
    modes = {
        k.removeprefix("pooling_mode_").removesuffix("_tokens"): v
        for k, v in pooling.items()
        if k.startswith("pooling_mode_")
    }
    chosen = [k for k, v in modes.items() if v] or [pooling.get("pooling_mode")]
    if chosen != ["mean"]:
        raise ValueError(f"{path} pools by {chosen}: only the mean over tokens is converted")
    usual = _read(path, "config_sentence_transformers.json", **hub_options) or {}
    name = usual.get("default_prompt_name")
    if name is not None and (usual.get("prompts") or {}).get(name):
        raise ValueError(
            f"{path} puts the prompt {name!r} before every sentence, which would be lost here: take "
            "default_prompt_name out of its config_sentence_transformers.json, and put the prompt before "
            "your sentences"
        )
    of_text = _read(path, "sentence_bert_config.json", **hub_options) or {}
    if of_text.get("do_lower_case"):
        raise ValueError(
            f"{path} puts sentences into small letters before its tokenizer (do_lower_case), which would be lost "
            "here: take it out of its sentence_bert_config.json, and give its tokenizer a normalizer that does so, "
            "unless it has one"
        )
    return {
        "max_seq_length": _max_seq_length(path, **hub_options),
        "normalize": len(names) == 3,
    }


def _max_seq_length(path: str | Path, **hub_options: Any) -> int:
    """Older releases of sentence-transformers write it down, newer ones leave it to the tokenizer."""
    length = (_read(path, "sentence_bert_config.json", **hub_options) or {}).get("max_seq_length")
    if length is None:
        length = (_read(path, "tokenizer_config.json", **hub_options) or {}).get(
            "model_max_length", MAX_SEQ_LENGTH
        )
        length = min(length, _positions(path, **hub_options))
    return int(length)


def _positions(path: str | Path, **hub_options: Any) -> int:
    """Tokens that a dense or spiking encoder can read."""
    config = AutoConfig.from_pretrained(path, **hub_options)
    return (bert_config(config) if config.model_type in FAMILY else config).max_position_embeddings


def _check_length(length: int, positions: int) -> None:
    if not 2 < length <= positions:
        raise ValueError(
            f"max_seq_length must be in [3, {positions}], the model's positions, got {length}"
        )


def _read(path: str | Path, name: str, **hub_options: Any) -> Any:
    file = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False, **hub_options)
    return None if file is None else json.loads(Path(file).read_text())
