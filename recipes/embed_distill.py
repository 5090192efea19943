"""From a dense sentence encoder to a spiking one, with text alone.

    python recipes/embed_distill.py --model_name_or_path path/to/all-MiniLM-L6-v2 --data_dir glue \\
        --output_dir outputs/embeddings

Phases, each in a folder of its own under `--output_dir`, in this order:

    dense      evaluates the dense encoder, which is the teacher
    converted  the student: its spiking twin, calibrated, not trained (or `--student`, a spiking encoder of
               an earlier run, calibrated anew for another T: of T = 4, say, for T = 8)
    collapsed  trains the student without the time loop, at about the cost of a dense one
    unrolled   trains it over T time steps, on its embedding after each of them; the usual options
               (`--max_steps`, `--learning_rate`, ...) are those of this phase

The student learns hidden states, embeddings and similarities within the batch from the teacher, on the
sentences of GLUE's tasks (`--text_tasks`; labels are not read) and of `--corpus_files`. Sentences that occur
in the evaluation are left out: STS-B's validation split, and the questions of QQP's validation pairs, among
which duplicates are looked for. results.json holds, after each phase and by time step, correlation with
people's similarities, recall@10 of duplicates, spikes and energy, and what ranking after few steps and
refining the best (`--rank_first`, `--rank_top`) finds and spends. Each phase leaves a folder that
sentence-transformers loads: `import spikenlp; SentenceTransformer("outputs/embeddings/unrolled")`.

A phase that is done is not repeated, and one that was stopped goes on from its last checkpoint, when the same
command is given again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import phases
import torch
import transformers
from common import base_model, parse_arguments, prepare
from corpus import CorpusArguments
from phases import CollapsedArguments, Job, PhaseArguments, finish
from student import CALIBRATION_BATCH, StudentArguments, check_tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from spikenlp import SpikingBertModel, watchdogs
from spikenlp.analysis import energy_by_step, microjoules
from spikenlp.data import DuplicateQuestions, distinct_sentences, get_task, load_task
from spikenlp.embeddings import (
    AnytimeIndex,
    SentenceEncoder,
    embed_in_batches,
    mean_pool,
    read_modules,
    tokenize,
)
from spikenlp.metrics import accuracy_at, nearest, recall_at, similarity_correlation
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate, load_dense_bert
from spikenlp.training import EmbeddingDistillationArguments, EmbeddingDistillationTrainer

ENERGY_SAMPLES = 32
EVALUATED = ("stsb", "qqp")


class Dense(phases.Phase):
    """Evaluates the dense encoder."""

    name = "dense"
    makes_student = False
    job: EncoderDistillation

    def source(self) -> str | Path:
        return self.job.dense

    def run(self) -> dict[str, Any]:
        job = self.job
        self.announce("nothing")
        teacher, device = job.load_teacher().to(job.args.device), job.args.device

        def embed(batch: dict[str, Tensor]) -> Tensor:
            inputs = {k: v.to(device) for k, v in batch.items()}
            return mean_pool(teacher(**inputs).last_hidden_state, inputs["attention_mask"])[:, None]

        with job.precision(), torch.no_grad():
            embeddings = embed_in_batches(
                embed,
                job.tokenizer,
                job.evaluation.sentences,
                job.modules["max_seq_length"],
                job.args.per_device_eval_batch_size,
            )
        return job.evaluation.measure(embeddings)


class Converted(phases.Converted):
    job: EncoderDistillation

    def source(self) -> str | Path:
        return self.job.options.student or self.job.dense

    def run(self) -> dict[str, Any]:
        job, options = self.job, self.job.options
        anew = options.student is None or options.spikes_otherwise(options.student)
        self.announce(options.created() if anew else "nothing")
        fields = options.spiking_fields()
        sentences = job.text[: CALIBRATION_BATCH * options.calibration_batches]
        if options.student is None:
            encoder = SentenceEncoder.from_dense(
                job.dense,
                calibration=sentences,
                reconstruct=options.reconstruct,
                spike_cost=options.spike_cost,
                **fields,
            )
        else:
            options.check_reconstruct(f"{options.student} is spiking")
            check_tokenizer(options.student, job.tokenizer, job.dense)
            encoder = SentenceEncoder.from_pretrained(options.student, **fields)
            if anew:
                batches = tokenize(
                    job.tokenizer, sentences, job.text_args.max_seq_length, CALIBRATION_BATCH
                )
                calibrate(encoder.model, batches, options.spike_cost)
        if job.args.process_index == 0:
            encoder.save_pretrained(self.folder)
        return job.measure(encoder.model)


class Taught(phases.Training):
    """Trains the student towards the dense encoder."""

    job: EncoderDistillation

    def models(self) -> dict[str, str | Path]:
        return {**super().models(), "teacher": self.job.dense}

    def run(self) -> dict[str, Any]:
        job, args = self.job, self.arguments()
        self.announce("nothing")
        model = AutoModel.from_pretrained(self.source())
        trainer = EmbeddingDistillationTrainer(
            model,
            args,
            teacher=job.load_teacher(),
            callbacks=watchdogs(model, args),
            train_dataset=job.tokenised(),
            data_collator=DataCollatorWithPadding(job.tokenizer, pad_to_multiple_of=8),
            processing_class=job.tokenizer,
        )
        training = self.fit(trainer)
        training["sentences"] = len(trainer.train_dataset)
        if args.process_index == 0:
            job.encoder(model).save_modules(str(self.folder))
        return {**job.measure(model), "training": training}


class Collapsed(Taught, phases.Collapsed):
    pass


class Unrolled(Taught, phases.Unrolled):
    pass


KINDS = (Dense, Converted, Collapsed, Unrolled)
PHASES = tuple(kind.name for kind in KINDS)


@dataclass
class EncoderArguments(StudentArguments, CollapsedArguments, PhaseArguments):
    phases: list[str] = field(
        default_factory=lambda: list(PHASES),
        metadata={"help": f"Phases to run, of {', '.join(PHASES)}.", "choices": PHASES},
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "Spiking encoder to start from in place of the converted one, calibrated anew if it is "
            "to spike otherwise, say at another T."
        },
    )
    collapsed_learning_rate: float = field(
        default=1e-4, metadata={"help": "Of the phase collapsed."}
    )
    rank_first: int = field(
        default=2, metadata={"help": "Time steps after which the whole corpus is ranked."}
    )
    rank_top: list[int] = field(
        default_factory=lambda: [20, 100],
        metadata={"help": "How many of the best are refined with all time steps; one record each."},
    )


@dataclass
class SentenceArguments(CorpusArguments):
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that holds GLUE's folders, STS-B and QQP among them."},
    )
    text_tasks: list[str] = field(
        default_factory=lambda: ["qqp", "stsb", "mnli", "mrpc"],
        metadata={
            "help": "GLUE tasks whose sentences are trained on: their train split, and of those that "
            "are not evaluated the others, too."
        },
    )
    max_seq_length: int = field(
        default=64, metadata={"help": "Longer sentences of the training text are truncated."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many sentences, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only so many pairs of each evaluation."}
    )


class Evaluation:
    """STS-B's pairs and the duplicates among QQP's questions, both of the validation split."""

    def __init__(self, data_dir: str, limit: int | None):
        pairs = {}
        for name in EVALUATED:
            split = load_task(name, data_dir=data_dir)["validation"]
            pairs[name] = split if limit is None else split.select(range(min(limit, len(split))))
        self.sts = pairs["stsb"]
        self.duplicates = DuplicateQuestions.from_pairs(
            pairs["qqp"]["question1"], pairs["qqp"]["question2"], pairs["qqp"]["label"]
        )
        sentences = [*self.sts["sentence1"], *self.sts["sentence2"], *self.duplicates.questions]
        self.sentences = list(dict.fromkeys(sentences))

    def measure(self, embeddings: Tensor) -> dict[str, Any]:
        """Of the embeddings [N, T, D] of `sentences`, each figure a list by time step."""
        row = {sentence: i for i, sentence in enumerate(self.sentences)}
        first, second = (
            [row[sentence] for sentence in self.sts[side]] for side in ("sentence1", "sentence2")
        )
        questions = embeddings[[row[question] for question in self.duplicates.questions]]
        queries, relevant = zip(*self.duplicates.relevant.items(), strict=True)
        found: dict[str, Any] = {"sts-b": {"pairs": len(first)}, "duplicates": {}}
        found["duplicates"] |= {"questions": len(questions), "queries": len(queries)}
        scores = [
            similarity_correlation(at_step[first], at_step[second], self.sts["label"])
            for at_step in embeddings.unbind(1)
        ]
        found["sts-b"] |= {name: [at_step[name] for at_step in scores] for name in scores[0]}
        rankings = [nearest(at_step, queries) for at_step in questions.unbind(1)]
        found["duplicates"]["recall@10"] = [recall_at(ranking, relevant) for ranking in rankings]
        found["duplicates"]["accuracy@1"] = [accuracy_at(ranking, relevant) for ranking in rankings]
        return found

    def rank_anytime(
        self, embeddings: Tensor, first: int, top: int, energy: Sequence[float]
    ) -> dict[str, Any]:
        """Duplicates found after `first` steps and T for the `top`, and the microjoules it takes.

        Args:
            energy: microjoules of a sentence after each step.
        """
        row = {sentence: i for i, sentence in enumerate(self.sentences)}

        def embed(sentences: Sequence[str], steps: Sequence[int]) -> Tensor:
            rows = embeddings[[row[sentence] for sentence in sentences]]
            return rows[:, [step - 1 for step in steps]]

        questions, last = self.duplicates.questions, embeddings.shape[1]
        index = AnytimeIndex(embed, questions, first=first, refine=last)
        rankings = []
        for query in self.duplicates.relevant:
            ranking, _ = index.rank(questions[query], top=top)
            rankings.append([i for i in ranking[: 10 + 1].tolist() if i != query])
        relevant = [*self.duplicates.relevant.values()]
        corpus, queries = len(questions), len(rankings)
        few, all_steps, refined = energy[first - 1], energy[last - 1], len(index.refined)
        return {
            "first": first,
            "refine": last,
            "top": top,
            "recall@10": recall_at(rankings, relevant),
            "accuracy@1": accuracy_at(rankings, relevant),
            "refined_by_all_queries": refined,
            "microjoules, one query": corpus * few + min(top, corpus) * all_steps + all_steps,
            "microjoules, one query, all steps": corpus * all_steps + all_steps,
            "microjoules, one query, first steps": corpus * few + few,
            "microjoules, all queries": corpus * few + (refined + queries) * all_steps,
            "microjoules, all queries, all steps": (corpus + queries) * all_steps,
            "microjoules, all queries, first steps": (corpus + queries) * few,
        }


class EncoderDistillation(Job):
    """The phases of one encoder."""

    kinds = KINDS
    recorded = (
        "learning_rate",
        "neuron_learning_rate",
        "per_device_train_batch_size",
        "hidden_weight",
        "embedding_weight",
        "similarity_weight",
        "similarity_temperature",
        "collapsed_timesteps",
        "seed",
    )

    def __init__(
        self,
        options: EncoderArguments,
        text_args: SentenceArguments,
        args: EmbeddingDistillationArguments,
        text: list[str],
        evaluation: Evaluation,
    ):
        super().__init__(options, args, options.phases, [text_args])
        self.text_args, self.text, self.evaluation = text_args, text, evaluation
        self.dense = str(options.model_name_or_path)
        self.modules = read_modules(self.dense)
        self.tokenizer = AutoTokenizer.from_pretrained(self.dense)

    def measure(self, model: SpikingBertModel) -> dict[str, Any]:
        """Figures by step, spikes and energy by step, and anytime ranking."""
        encoder, options = self.encoder(model.to(self.args.device)), self.options
        batch_size = self.args.per_device_eval_batch_size
        with self.precision():
            embeddings = encoder.encode(
                self.evaluation.sentences, by_step=True, batch_size=batch_size
            )
        found = self.evaluation.measure(embeddings)
        questions = sorted(self.evaluation.duplicates.questions, key=len)
        samples = min(ENERGY_SAMPLES, len(questions))
        chosen = [questions[i * len(questions) // samples] for i in range(samples)]
        (batch,) = tokenize(self.tokenizer, chosen, encoder.max_seq_length, samples)
        with self.precision(), torch.no_grad():
            reports = energy_by_step(model, {k: v.to(self.args.device) for k, v in batch.items()})
        energies = microjoules(reports)
        found["energy_samples"] = samples
        found["energy_microjoules"] = energies
        found["spikes_per_neuron"] = [report.spikes_per_neuron for report in reports]
        if options.rank_first < len(reports):
            found["anytime"] = [
                self.evaluation.rank_anytime(
                    embeddings, options.rank_first, top, energies["spiking, float32"]
                )
                for top in options.rank_top
            ]
        return found

    def encoder(self, model: SpikingBertModel) -> SentenceEncoder:
        return SentenceEncoder(model, self.tokenizer, **self.modules)

    def load_teacher(self) -> PreTrainedModel:
        return load_dense_bert(str(self.dense), SpikingBertModel)[0].eval()

    def tokenised(self) -> datasets.Dataset:
        length = self.text_args.max_seq_length
        return datasets.Dataset.from_dict(
            dict(self.tokenizer(self.text, truncation=True, max_length=length))
        )

    def precision(self) -> Any:
        """That of training, in which is evaluated, too."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)


def training_text(text_args: SentenceArguments, evaluation: Evaluation, seed: int) -> list[str]:
    """Different sentences in a random order, those of the evaluation left out."""
    found: list[str] = []
    for given in text_args.text_tasks:
        name = get_task(given).name
        splits = load_task(name, data_dir=text_args.data_dir)
        used = [split for key, split in splits.items() if key == "train" or name not in EVALUATED]
        found += distinct_sentences(name, used, without=evaluation.sentences)
    if text_args.corpus_files or text_args.corpus_dataset:
        held_out = {sentence.lower() for sentence in evaluation.sentences}
        corpus = text_args.load_corpus()[0]["train"]["text"]
        found += [text for text in corpus if text.lower() not in held_out]
    found = list(dict.fromkeys(found))
    random.Random(seed).shuffle(found)
    if not found:
        raise ValueError("no text to train on: give --text_tasks or --corpus_files")
    return found[: text_args.max_train_samples]


def summary(results: dict[str, Any]) -> str:
    """A row a model and figure, by step."""
    lines = []
    for phase, found in results.items():
        figures = {
            "STS-B Spearman": (found["sts-b"]["spearman"], 1),
            "STS-B Pearson": (found["sts-b"]["pearson"], 1),
            "duplicates recall@10": (found["duplicates"]["recall@10"], 1),
            "duplicates accuracy@1": (found["duplicates"]["accuracy@1"], 1),
            "microjoules": (found.get("energy_microjoules", {}).get("spiking, float32", []), 0),
        }
        for name, (by_step, digits) in figures.items():
            shown = " / ".join(f"{value:.{digits}f}" for value in by_step)
            lines.append(f"{phase:10} {name:22} {shown}")
    return "\n".join(lines)


def distill_encoder(argv: list[str]) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    kinds = (EncoderArguments, SentenceArguments, EmbeddingDistillationArguments)
    options, text_args, args = parse_arguments(argv, kinds, output_dir="outputs/embeddings")
    if options.model_name_or_path is None or text_args.data_dir is None:
        raise ValueError(
            "give --model_name_or_path, a dense sentence encoder, and --data_dir, a folder with GLUE's"
        )
    prepare(args)
    with args.main_process_first(desc="data"):
        evaluation = Evaluation(text_args.data_dir, text_args.max_eval_samples)
        text = training_text(text_args, evaluation, args.seed)
    found = EncoderDistillation(options, text_args, args, text, evaluation).run()
    record = {
        "base_model": base_model(options.model_name_or_path),
        "text": {"tasks": text_args.text_tasks, "sentences": len(text)},
        "seed": args.seed,
        "config": options.spiking_fields(),
        **found,
    }
    return finish(args, record, summary(found))


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    distill_encoder(sys.argv[1:])


if __name__ == "__main__":
    main()
