"""recipes/general_distill.py as a user runs it, and what its encoders are good for."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from spikenlp import SpikingBertConfig, SpikingBertModel
from spikenlp.data import demo_question_pairs, pack, wordpiece_tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import distill  # noqa: E402
import general_distill  # noqa: E402
import glue_tmc  # noqa: E402

from tests.metrics.test_alignment import by_kernels  # noqa: E402
from tests.recipes.running import run_here  # noqa: E402

SMALL = "--use_cpu True --disable_tqdm True --save_steps 2 --num_timesteps 3 --max_seq_length 16"
SMALL += " --per_device_train_batch_size 8 --max_train_samples 64 --max_eval_samples 8"
SMALL += " --learning_rate 3e-3 --collapsed_learning_rate 3e-3 --attention_weight 0.05"
SHAPE = {"num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text, a dense encoder of 3 layers of 32, one of 2 layers of 16 and their tokenizer."""
    folder = tmp_path_factory.mktemp("general")
    pairs = demo_question_pairs()["train"]
    questions = list(dict.fromkeys([*pairs["question1"], *pairs["question2"]]))
    (folder / "text.txt").write_text("\n".join(questions))
    tokenizer = wordpiece_tokenizer(questions)
    for name, layers, width in (("dense", 3, 32), ("small", 2, 16)):
        torch.manual_seed(0)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        config = BertConfig(vocab_size=len(tokenizer), **sizes, **SHAPE)
        BertModel(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def options(folder, steps=4, **further):
    usual = {"model_name_or_path": folder / "dense", "corpus_files": folder / "text.txt"}
    usual |= {"collapsed_steps": steps, "max_steps": steps}
    return [*SMALL.split(), *(f"--{k}={v}" for k, v in (usual | further).items())]


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    return out, run_here(general_distill, *options(folder, 40), "--output_dir", out)


def test_the_student_comes_nearer_to_its_teacher_phase_by_phase(done):
    out, printed = done
    found = json.loads((out / "results.json").read_text())
    assert (found["base_model"], found["text"]) == ("dense", "text.txt")
    assert found["blocks"] == {"train": 64, "validation": 8}
    phases = [found[name] for name in ("converted", "collapsed", "unrolled")]
    assert all(len(phase["cka"]) == 3 for phase in phases)
    assert phases[1]["cka_collapsed"] > phases[0]["cka_collapsed"]
    assert phases[2]["cka"][-1] > phases[0]["cka"][-1]
    assert [phase.get("training", {}).get("steps") for phase in phases] == [None, 40, 40]
    assert phases[2]["training"]["attention_weight"] == 0.05
    assert printed.count("CKA") == 3


def test_the_figures_are_those_of_the_saved_encoder_on_held_out_text(done, folder):
    out, _ = done
    model = AutoModel.from_pretrained(out / "unrolled")
    assert type(model) is SpikingBertModel
    tokenizer = AutoTokenizer.from_pretrained(out / "unrolled")
    args = general_distill.BlockArguments(corpus_files=[str(folder / "text.txt")])
    corpus, _ = args.load_corpus()
    blocks = pack(corpus["validation"], tokenizer, 16).shuffle(seed=0)[:8]["input_ids"]
    assert {len(block) for block in blocks} == {16}
    ids = torch.tensor(blocks)
    with torch.no_grad():
        wanted = BertModel.from_pretrained(folder / "dense").eval()(ids).last_hidden_state
        sent = model.eval()(ids, output_timesteps=True).timestep_hidden_state
    found = json.loads((out / "unrolled" / "results.json").read_text())["cka"]
    for t in (1, 2, 3):
        state = sent[:, :t].mean(1).flatten(0, 1).double()
        assert found[t - 1] == pytest.approx(by_kernels(state, wanted.flatten(0, 1).double()), 1e-4)


def test_a_narrower_student_of_fewer_layers_learns_through_projections(folder, tmp_path):
    small = options(folder, 2, student=folder / "small", output_dir=tmp_path / "out")
    printed = run_here(general_distill, *small)
    assert printed.count("creates 3 projections of hidden states; drops the projections") == 2
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["student"] == "small"
    config = AutoModel.from_pretrained(tmp_path / "out" / "unrolled").config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 16)


def test_other_recipes_go_on_from_the_encoder(done, folder, tmp_path):
    out, _ = done
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    for row in demo_question_pairs()["validation"].select(range(32)):
        lines.append(f"0\t1\t2\t{row['question1']}\t{row['question2']}\t{row['label']}")
    (tmp_path / "QQP").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "QQP" / name).write_text("\n".join(lines) + "\n")
    data = ["--task_name", "qqp", "--data_dir", tmp_path, "--use_cpu", "True"]
    data += ["--max_seq_length", "16", "--disable_tqdm", "True", "--max_steps", "1"]
    printed = run_here(
        distill,
        *(*data, "--model_name_or_path", folder / "dense", "--student", out / "unrolled"),
        *("--teacher_epochs", 1, "--phases", "teacher", "converted", "unrolled"),
        *("--output_dir", tmp_path / "distilled"),
    )
    assert f"loads {out / 'unrolled'}; creates classifier; drops nothing" in printed
    run_here(
        glue_tmc,
        *(*data, "--model_name_or_path", out / "unrolled", "--output_dir", tmp_path / "tuned"),
    )
    assert AutoModel.from_pretrained(tmp_path / "tuned").config.num_timesteps == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logit_weight": 0.5}, "--logit_weight does nothing here"),
        ({"temporal_loss": "tmc"}, "--temporal_loss does nothing here"),
        ({"max_seq_length": 64}, "--max_seq_length 64 exceeds the model's 32 positions"),
        ({"corpus_validation_share": 0}, "nothing to evaluate on"),
        ({"model_name_or_path": "{spiking}"}, "give a dense BERT"),
        ({"model_name_or_path": "{small}", "student": "{dense}"}, "3 layers"),
        ({"student": "{spiking}"}, "the tokenizer at"),
        ({"neuron": "lif"}, "the phase collapsed needs rounding neurons"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(given, message, folder, tmp_path):
    spiking = tmp_path / "spiking"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, **SHAPE}
    tokenizer = wordpiece_tokenizer(["a few words of another kind"])
    SpikingBertModel(SpikingBertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(spiking)
    tokenizer.save_pretrained(spiking)
    paths = {"{spiking}": spiking, "{small}": folder / "small", "{dense}": folder / "dense"}
    given = {name: paths.get(value, value) for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        run_here(general_distill, *options(folder, output_dir=tmp_path / "out", **given))
    assert not (tmp_path / "out" / "converted").exists()
