"""recipes/embed_distill.py as a user runs it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from spikenlp.data import demo_question_pairs, wordpiece_tokenizer
from spikenlp.embeddings import SentenceEncoder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import embed_distill  # noqa: E402

from tests.recipes.running import spike_cost_of  # noqa: E402

SMALL = "--use_cpu True --disable_tqdm True --save_steps 2 --num_timesteps 3 --collapsed_steps 4"
SMALL += " --max_steps 4 --per_device_train_batch_size 16 --max_train_samples 96 --rank_top 5"
SMALL += " --text_tasks qqp stsb --logging_steps 2"


def write_pairs(path, header, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """QQP and STS-B as GLUE's files, and a small dense sentence encoder."""
    folder = tmp_path_factory.mktemp("embed")
    pairs = demo_question_pairs()
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
        rows = pairs[split].select(range(80))
        both = [(row["question1"], row["question2"], row["label"]) for row in rows]
        header = ["question1", "question2", "is_duplicate"]
        write_pairs(folder / "QQP" / name, header, both)
        scored = [(f"{a} indeed", b, 5 * same) for a, b, same in both[:30]]
        write_pairs(folder / "STS-B" / name, ["sentence1", "sentence2", "score"], scored)
    questions = [*pairs["train"]["question1"], *pairs["train"]["question2"]]
    tokenizer = wordpiece_tokenizer([*questions, "indeed"])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    dense = folder / "dense"
    BertModel(config).save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    types = ["Transformer", "Pooling", "Normalize"]
    modules = [{"path": "", "type": f"sentence_transformers.models.{name}"} for name in types]
    modules[1]["path"] = "1_Pooling"
    (dense / "modules.json").write_text(json.dumps(modules))
    (dense / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    (dense / "1_Pooling").mkdir()
    (dense / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return ["--model_name_or_path", str(dense), "--data_dir", str(folder), *SMALL.split()]


def test_a_roberta_is_taught_by_the_same_roberta(options, tmp_path):
    """Its positions count from pad_token_id + 1; a BERT that reads its weights by name alone is another model."""
    dense = Path(options[1])
    for name in (
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((dense / name).read_bytes())
    torch.manual_seed(0)
    fields = {**BertConfig.from_pretrained(dense).to_dict(), "initializer_range": 0.5}
    fields = {k: v for k, v in fields.items() if k not in ("model_type", "architectures")}
    roberta = RobertaModel(RobertaConfig(**{**fields, "pad_token_id": 1})).eval()
    roberta.save_pretrained(tmp_path)
    job = SimpleNamespace(dense=tmp_path)
    teacher = embed_distill.EncoderDistillation.load_teacher(job)
    ids = torch.randint(5, 50, (2, 9))
    expected = roberta(input_ids=ids).last_hidden_state
    torch.testing.assert_close(teacher(input_ids=ids).last_hidden_state, expected)


@pytest.fixture(scope="module")
def done(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    return out, embed_distill.distill_encoder([*options, "--output_dir", str(out)])


@pytest.mark.slow
def test_every_phase_is_measured_by_step_and_loads_as_a_sentence_encoder(done):
    out, found = done
    assert json.loads((out / "results.json").read_text()) == found
    assert len(found["dense"]["sts-b"]["spearman"]) == 1
    for phase in ("converted", "collapsed", "unrolled"):
        record = found[phase]
        for figures in (record["sts-b"]["spearman"], record["duplicates"]["recall@10"]):
            assert len(figures) == 3
        energy = record["energy_microjoules"]["spiking, float32"]
        assert energy == sorted(energy)
        anytime = record["anytime"][0]
        assert (anytime["first"], anytime["refine"], anytime["top"]) == (2, 3, 5)
        spent = [v for k, v in anytime.items() if k.startswith("microjoules, one query")]
        assert spent[2] < spent[0] < spent[1]
        encoder = SentenceEncoder.from_pretrained(out / phase)
        assert encoder.max_seq_length == 40
        assert encoder.encode("why is that").shape == (32,)
    assert found["unrolled"]["training"]["steps"] == 4
    assert str(out.parent) not in json.dumps(found)


@pytest.mark.slow
def test_the_figures_are_those_of_the_saved_encoder(done, options):
    out, found = done
    evaluation = embed_distill.Evaluation(options[3], None)
    encoder = SentenceEncoder.from_pretrained(out / "unrolled")
    again = evaluation.measure(encoder.encode(evaluation.sentences, by_step=True))
    assert again["sts-b"]["spearman"] == pytest.approx(found["unrolled"]["sts-b"]["spearman"])
    assert again["duplicates"] == found["unrolled"]["duplicates"]
    # All refined: the ranking is that of all steps.
    embeddings = encoder.encode(evaluation.sentences, by_step=True)
    all_refined = evaluation.rank_anytime(embeddings, 1, 10_000, [1.0, 2.0, 3.0])
    assert all_refined["recall@10"] == pytest.approx(again["duplicates"]["recall@10"][-1])
    corpus, queries = (again["duplicates"][key] for key in ("questions", "queries"))
    assert all_refined["refined_by_all_queries"] == corpus
    assert all_refined["microjoules, one query"] == corpus * 1 + corpus * 3 + 3
    assert all_refined["microjoules, all queries"] == corpus * 1 + (corpus + queries) * 3
    assert all_refined["microjoules, all queries, all steps"] == (corpus + queries) * 3


@pytest.mark.slow
def test_a_stopped_phase_goes_on_and_ends_with_the_same_weights(done, options, tmp_path, capsys):
    whole, _ = done
    for phase in ("dense", "converted", "collapsed"):
        (tmp_path / phase).symlink_to(whole / phase)
    (tmp_path / "unrolled").mkdir()
    (tmp_path / "unrolled" / "checkpoint-2").symlink_to(whole / "unrolled" / "checkpoint-2")
    embed_distill.distill_encoder([*options, "--output_dir", str(tmp_path)])
    assert "phase collapsed" not in capsys.readouterr().out
    first, second = (
        load_file(folder / "unrolled" / "model.safetensors") for folder in (whole, tmp_path)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
def test_a_student_of_fewer_steps_is_calibrated_for_more(done, options, tmp_path):
    whole, _ = done
    more = ["--num_timesteps", "6", "--student", str(whole / "unrolled"), "--phases", "converted"]
    embed_distill.distill_encoder([*options, *more, "--output_dir", str(tmp_path)])
    weights = [
        load_file(f / "model.safetensors") for f in (whole / "unrolled", tmp_path / "converted")
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]) == ("amplitude" not in name), name
    assert SentenceEncoder.from_pretrained(tmp_path / "converted").model.config.num_timesteps == 6


def test_students_are_calibrated_at_the_spike_cost(options, tmp_path):
    argv = [*options, "--spike_cost", "0.3", "--phases", "converted", "--output_dir", str(tmp_path)]
    assert spike_cost_of(lambda: embed_distill.distill_encoder(argv)) == 0.3


def test_evaluated_sentences_are_not_trained_on(options):
    evaluation = embed_distill.Evaluation(options[3], None)
    arguments = embed_distill.SentenceArguments(data_dir=options[3], text_tasks=["qqp", "stsb"])
    text = embed_distill.training_text(arguments, evaluation, seed=1)
    assert len(text) == len(set(text)) > 50
    assert not {t.lower() for t in text} & {t.lower() for t in evaluation.sentences}
    train = embed_distill.load_task("stsb", data_dir=options[3])["train"]["sentence1"]
    assert set(train) & set(text)
    assert embed_distill.training_text(arguments, evaluation, seed=1) == text
    assert embed_distill.training_text(arguments, evaluation, seed=2) != text
    arguments.text_tasks = ["QQP", "STS-B"]
    assert embed_distill.training_text(arguments, evaluation, seed=1) == text


@pytest.mark.parametrize("leave_out", [0, 2])
def test_what_is_missing_is_named(options, leave_out):
    arguments = options[:leave_out] + options[leave_out + 2 :]
    with pytest.raises(ValueError, match=r"give --model_name_or_path.*--data_dir"):
        embed_distill.distill_encoder(arguments)
