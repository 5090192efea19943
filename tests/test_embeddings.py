"""A dense sentence encoder made spiking: embeddings by step, its folder, ranking after few steps."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from spikenlp import SpikingBertModel
from spikenlp.data import wordpiece_tokenizer
from spikenlp.embeddings import (
    AnytimeIndex,
    SentenceEncoder,
    mean_pool,
    pooled_by_step,
    read_modules,
    tokenize,
)
from spikenlp.hub.publish import stage
from tests.conftest import TINY_DENSE
from tests.hub_cache import write_cache

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = [
    "how do i learn chess",
    "chess",
    "what is the best way to learn the game of chess quickly",
    "is tea good",
    "what is the capital of france and of spain",
]


def write_dense(folder, *, modules=None, pooling=None):
    """A dense encoder as older releases of sentence-transformers wrote it."""
    tokenizer = wordpiece_tokenizer(SENTENCES * 3)
    torch.manual_seed(0)
    config = BertConfig(**{**TINY_DENSE, "vocab_size": len(tokenizer)})
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = ["Transformer", "Pooling", "Normalize"] if modules is None else modules
    listed = [
        {"path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    numbered = [{"idx": i, "name": str(i), **module} for i, module in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(numbered))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    modes = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or modes))
    return folder


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    return write_dense(tmp_path_factory.mktemp("encoder") / "dense")


@pytest.fixture
def encoder(dense_folder):
    return SentenceEncoder.from_dense(dense_folder, calibration=SENTENCES, num_timesteps=4)


def by_hand(encoder, sentence, steps):
    """The embedding after `steps` steps: one sentence, a run of so many steps, a loop over tokens."""
    inputs = encoder.tokenizer(sentence, return_tensors="pt")
    saved, encoder.model.config.num_timesteps = encoder.model.config.num_timesteps, steps
    with torch.no_grad():
        hidden = encoder.model(**inputs).last_hidden_state[0].double()
    encoder.model.config.num_timesteps = saved
    total = torch.zeros(hidden.shape[1], dtype=torch.float64)
    for token in hidden:
        total += token
    total /= len(hidden)
    return total / total.square().sum().sqrt() if encoder.normalize else total


@pytest.mark.parametrize("nonlinearity", ["running", "step"])
def test_the_embedding_after_each_step_is_that_of_a_run_of_so_many(dense_folder, nonlinearity):
    encoder = SentenceEncoder.from_dense(
        dense_folder, calibration=SENTENCES, num_timesteps=4, nonlinearity=nonlinearity
    )
    found = encoder.encode(SENTENCES, by_step=True, batch_size=3)
    assert found.shape == (5, 4, 32)
    assert found.dtype == torch.float32
    for row, sentence in zip(found, SENTENCES, strict=True):
        for step in range(4):
            expected = by_hand(encoder, sentence, step + 1).float()
            torch.testing.assert_close(row[step], expected, atol=2e-5, rtol=1e-4)
    assert (found[:, 0] - found[:, 3]).abs().max() > 1e-2


def test_stopping_early_gives_the_first_steps_and_leaves_the_model_as_it_was(encoder):
    by_step = encoder.encode(SENTENCES, by_step=True)
    torch.testing.assert_close(encoder.encode(SENTENCES, num_timesteps=2), by_step[:, 1])
    torch.testing.assert_close(encoder.encode(SENTENCES[0], by_step=True), by_step[0])
    torch.testing.assert_close(encoder.encode(SENTENCES[0]), by_step[0, -1])
    assert encoder.model.config.num_timesteps == 4


def test_threads_with_other_numbers_of_steps_do_not_meet(encoder):
    expected = {steps: encoder.encode(SENTENCES, num_timesteps=steps) for steps in (1, 2, 4, None)}
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (n, pool.submit(encoder.encode, SENTENCES, num_timesteps=n)) for n in [*expected] * 8
        ]
        for steps, job in jobs:
            torch.testing.assert_close(job.result(), expected[steps])
    assert encoder.model.config.num_timesteps == 4


def test_every_file_is_of_the_revision_that_is_asked_for(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "main")
    encoder.max_seq_length, encoder.normalize = 30, False
    encoder.save_pretrained(tmp_path / "v2")
    write_cache(tmp_path / "cache", "ann/encoder", {n: tmp_path / n for n in ("main", "v2")})
    options = {"cache_dir": tmp_path / "cache"}
    first = SentenceEncoder.from_pretrained("ann/encoder", **options)
    second = SentenceEncoder.from_pretrained("ann/encoder", revision="v2", **options)
    assert (first.max_seq_length, first.normalize) == (20, True)
    assert (second.max_seq_length, second.normalize) == (30, False)


def test_small_letters_that_only_sentence_transformers_makes_are_not_lost_in_silence(tmp_path):
    folder = write_dense(tmp_path / "dense")
    options = {"max_seq_length": 20, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="do_lower_case"):
        SentenceEncoder.from_dense(folder, calibration=SENTENCES)


def test_a_prompt_before_every_sentence_is_not_lost_in_silence(tmp_path):
    folder = write_dense(tmp_path / "dense")
    usual = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(usual))
    with pytest.raises(ValueError, match="puts the prompt 'query' before every sentence"):
        SentenceEncoder.from_dense(folder, calibration=SENTENCES)
    for name in (None, "none"):
        file.write_text(json.dumps(usual | {"default_prompt_name": name}))
        assert read_modules(folder)["max_seq_length"] == 20


def test_many_steps_give_the_dense_embedding(dense_folder):
    encoder = SentenceEncoder.from_dense(dense_folder, calibration=SENTENCES, num_timesteps=64)
    teacher = BertModel.from_pretrained(dense_folder).eval()
    inputs = encoder.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = teacher(**inputs).last_hidden_state
    expected = F.normalize(mean_pool(hidden, inputs["attention_mask"]), dim=-1)
    cosine = (encoder.encode(SENTENCES) * expected).sum(-1)
    assert cosine.min() > 0.99
    assert (encoder.encode(SENTENCES, num_timesteps=1) * expected).sum(-1).max() < 0.9


def test_padding_takes_no_part_in_the_mean_even_where_it_is_infinite():
    hidden = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    hidden[0, :, 2:] = torch.inf
    found = mean_pool(hidden, mask)
    torch.testing.assert_close(found[0], hidden[0, :, :2].mean(1))
    torch.testing.assert_close(found[1], hidden[1].mean(1))
    torch.testing.assert_close(mean_pool(hidden[1:]), hidden[1:].mean(2))


def test_a_collapsed_model_has_one_embedding_a_sentence(encoder):
    encoder.model.config.collapsed = True
    inputs = encoder.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    pooled = pooled_by_step(encoder.model(**inputs), inputs["attention_mask"])
    assert pooled.shape == (5, 1, 32)
    with pytest.raises(ValueError, match="collapsed"):
        encoder.encode(SENTENCES)


def test_a_saved_encoder_loads_with_the_same_embeddings_and_settings(encoder, tmp_path):
    encoder.normalize, encoder.max_seq_length = False, 12
    encoder.save_pretrained(tmp_path)
    assert read_modules(tmp_path) == {"max_seq_length": 12, "normalize": False}
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert (again.max_seq_length, again.normalize) == (12, False)
    found = again.encode(SENTENCES)
    torch.testing.assert_close(found, encoder.encode(SENTENCES), atol=0, rtol=0)
    assert (found.norm(dim=-1) - 1).abs().min() > 0.01


def test_a_push_takes_all_that_makes_a_sentence_encoder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "saved")
    stage(tmp_path / "saved", tmp_path / "pushed")
    again = SentenceEncoder.from_pretrained(tmp_path / "pushed")
    torch.testing.assert_close(again.encode(SENTENCES), encoder.encode(SENTENCES), atol=0, rtol=0)
    assert again.max_seq_length == 20


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_loads_the_folder_as_it_is(encoder, tmp_path, normalize):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder.normalize = normalize
    encoder.save_pretrained(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert isinstance(model[0].auto_model, SpikingBertModel)
    assert model.max_seq_length == 20
    found = model.encode(SENTENCES, convert_to_tensor=True)
    torch.testing.assert_close(found, encoder.encode(SENTENCES), atol=1e-5, rtol=1e-5)
    model[0].auto_model.config.num_timesteps = 2
    found = model.encode(SENTENCES, convert_to_tensor=True)
    torch.testing.assert_close(
        found, encoder.encode(SENTENCES, num_timesteps=2), atol=1e-5, rtol=1e-5
    )
    model.save(str(tmp_path / "again"))
    assert read_modules(tmp_path / "again") == {"max_seq_length": 20, "normalize": normalize}


@pytest.mark.slow
def test_who_did_not_import_spikenlp_loads_it_by_trust_remote_code(encoder, tmp_path):
    pytest.importorskip("sentence_transformers")
    encoder.save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "assert 'spikenlp' not in sys.modules\n"
        "model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device='cpu')\n"
        "print(type(model[0].auto_model).__name__, model.encode('chess').tolist()[:4])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    name, _, values = done.stdout.partition(" ")
    assert name == "SpikingBertModel"
    expected = encoder.encode("chess")[:4]
    torch.testing.assert_close(torch.tensor(json.loads(values)), expected, atol=1e-5, rtol=1e-5)


def ranked_by_loops(embeddings, query, first, refine, top):
    """embeddings [N, T, D] and query [T, D]: the order of N, with lists and sorted()."""

    def cosine(i, step):
        a, b = embeddings[i, step - 1].double(), query[step - 1].double()
        return float(a @ b / (a.norm() * b.norm()))

    order = sorted(range(len(embeddings)), key=lambda i: -cosine(i, first))
    best = sorted(order[:top], key=lambda i: -cosine(i, refine))
    scores = [cosine(i, refine) for i in best] + [cosine(i, first) for i in order[top:]]
    return best + order[top:], scores


def test_ranking_refines_the_best_after_more_steps():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(12, 8, 3, generator=generator)
    names = [f"s{i}" for i in range(12)]
    calls = []

    def embed(sentences, steps):
        calls.append((list(sentences), list(steps)))
        rows = torch.stack([embeddings[names.index(sentence)] for sentence in sentences])
        return rows[:, [step - 1 for step in steps]]

    index = AnytimeIndex(embed, names[:10], first=2, refine=8)
    assert calls == [(names[:10], [2])]
    for query in (10, 11, 10):
        found, scores = index.rank(names[query], top=4)
        order, similarities = ranked_by_loops(embeddings[:10], embeddings[query], 2, 8, 4)
        assert found.tolist() == order
        torch.testing.assert_close(scores, torch.tensor(similarities), atol=1e-6, rtol=1e-5)
    refined = [sentence for sentences, steps in calls if steps == [8] for sentence in sentences]
    assert len(refined) == len(set(refined)) == len(index.refined)
    assert 4 <= len(refined) <= 8
    found, _ = index.rank(names[10], top=1000)
    assert found.tolist() == ranked_by_loops(embeddings[:10], embeddings[10], 2, 8, 1000)[0]


def test_an_encoder_ranks_a_corpus(encoder):
    corpus, query = SENTENCES[1:], SENTENCES[0]
    found, scores = encoder.rank(query, corpus, first=1, refine=4, top=2)
    by_step = encoder.encode(corpus, by_step=True)
    order, similarities = ranked_by_loops(by_step, encoder.encode(query, by_step=True), 1, 4, 2)
    assert found.tolist() == order
    torch.testing.assert_close(scores, torch.tensor(similarities), atol=1e-5, rtol=1e-5)


def test_other_encoders_are_refused(tmp_path, encoder):
    bare = tmp_path / "bare"
    encoder.model.save_pretrained(bare)
    with pytest.raises(ValueError, match=r"no modules\.json"):
        SentenceEncoder.from_pretrained(bare)
    for name, modules, pooling, message in (
        ("cls", None, {"pooling_mode_cls_token": True}, "pools by.*cls"),
        ("new", None, {"pooling_mode": "max"}, "pools by.*max"),
        ("dense", ["Transformer", "Pooling", "Dense"], None, "modules.*Dense"),
    ):
        folder = write_dense(tmp_path / name, modules=modules, pooling=pooling)
        with pytest.raises(ValueError, match=message):
            SentenceEncoder.from_dense(folder, calibration=SENTENCES)


def test_the_form_of_newer_releases_is_read(tmp_path):
    folder = write_dense(
        tmp_path / "new", pooling={"embedding_dimension": 32, "pooling_mode": "mean"}
    )
    (folder / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for given, read in ((20, 20), (10**30, 40)):  # the model has 40 positions
        settings["model_max_length"] = given
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        assert read_modules(folder)["max_seq_length"] == read
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert read_modules(folder) == {"max_seq_length": 20, "normalize": True}


def test_a_roberta_encoder_has_fewer_positions_than_its_table(tmp_path):
    folder = write_dense(tmp_path / "roberta")
    config = RobertaConfig(**{**TINY_DENSE, "max_position_embeddings": 42, "pad_token_id": 1})
    RobertaModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 10**30
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = SentenceEncoder.from_dense(folder, calibration=SENTENCES)
    assert encoder.max_seq_length == 40
    assert encoder.encode(["chess " * 100]).shape == (1, 32)
    with pytest.raises(ValueError, match=r"max_seq_length must be in \[3, 40\].* got 41"):
        SentenceEncoder.from_dense(folder, calibration=["chess " * 100], max_seq_length=41)


def test_a_dense_encoder_is_not_taken_for_a_spiking_one(dense_folder):
    with pytest.raises(ValueError, match=r"SpikingBertModel.*from_dense"):
        SentenceEncoder.from_pretrained(dense_folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.encode([]), "sentences is empty"),
        (lambda e: e.encode(SENTENCES, num_timesteps=0), "num_timesteps and batch_size.*0 and 32"),
        (lambda e: e.encode(SENTENCES, batch_size=0), "num_timesteps and batch_size.*4 and 0"),
        (lambda e: e.rank("a", []), "corpus is empty"),
        (lambda e: e.rank("a", SENTENCES, first=4, refine=4), "first=4 and refine=4"),
        (lambda e: e.rank("a", SENTENCES, first=0, refine=4), "first=0"),
        (lambda e: e.rank("a", SENTENCES, refine=4, top=0), "top must be >= 1, got 0"),
        (lambda e: SentenceEncoder(e.model, e.tokenizer, max_seq_length=41), r"\[3, 40\].*41"),
    ],
)
def test_bad_input_is_named(encoder, call, message):
    with pytest.raises(ValueError, match=message):
        call(encoder)


def test_a_single_string_is_no_list_of_sentences():
    with pytest.raises(ValueError, match="a list of sentences, got the string 'chess'"):
        tokenize(None, "chess", 8, 4)


def test_sentences_may_be_a_column_of_a_table(encoder):
    column = pandas.Series(SENTENCES, index=range(7, 7 + len(SENTENCES)))
    assert torch.equal(encoder.encode(column), encoder.encode(SENTENCES))
    for found, expected in zip(
        encoder.rank("chess", column, top=2), encoder.rank("chess", SENTENCES, top=2), strict=True
    ):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="query must be one string"):
        encoder.rank(["chess"], SENTENCES)
