"""Raw text: where documents come from, which are held out, and how they are packed into blocks."""

import pytest
from datasets import Dataset, DatasetDict

from spikenlp.data import load_corpus, pack, wordpiece_tokenizer
from tests.data.tab_files import write_topics

DOCUMENTS = [f"the fox number {i} jumps over {i % 7} lazy dogs" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece_tokenizer(DOCUMENTS)


def all_texts(corpus):
    return sorted(text for split in corpus.values() for text in split["text"])


def test_lines_of_text_files_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS[:20]) + "\n\n  \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(DOCUMENTS[20:]), encoding="utf-8")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    corpus = load_corpus(files, validation_share=0)
    assert corpus["train"]["text"][:] == DOCUMENTS
    assert list(corpus) == ["train"]
    assert all_texts(load_corpus(tmp_path)) == sorted(DOCUMENTS)


def test_a_file_is_no_pattern(tmp_path):
    (tmp_path / "a[1].txt").write_text("this one\n")
    (tmp_path / "a1.txt").write_text("another\n")
    (tmp_path / "empty.txt").write_text("")
    files = [tmp_path / "a[1].txt", tmp_path / "empty.txt"]
    assert load_corpus(files, validation_share=0)["train"]["text"][:] == ["this one"]


def test_paragraphs_of_text_files_are_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n\n\n\nfour\nfive\n", encoding="utf-8")
    corpus = load_corpus(path, sample_by="paragraph", validation_share=0)
    assert corpus["train"]["text"][:] == ["one\ntwo", "three", "four\nfive"]


def test_tab_files_give_their_text_once(tmp_path):
    write_topics(tmp_path / "a.tab", [("earn", text) for text in DOCUMENTS])
    write_topics(tmp_path / "b.tab", [("acq", text) for text in [*DOCUMENTS[5:9], "new", " "]])
    corpus = load_corpus([tmp_path / "a.tab", tmp_path / "b.tab"], validation_share=0)
    assert corpus["train"]["text"][:] == [*DOCUMENTS, "new"]
    topics = load_corpus(tmp_path / "a.tab", column="Category", validation_share=0)
    assert topics["train"]["text"][:] == ["earn"]


def test_the_same_documents_are_held_out_in_any_order(tmp_path):
    for name, documents in (("a.txt", DOCUMENTS), ("b.txt", DOCUMENTS[::-1])):
        (tmp_path / name).write_text("\n".join(documents), encoding="utf-8")
    one, other = (load_corpus(tmp_path / n, validation_share=0.2) for n in ("a.txt", "b.txt"))
    assert len(one["validation"]) == 8
    assert set(one["validation"]["text"]) == set(other["validation"]["text"])
    assert all_texts(one) == sorted(DOCUMENTS)


def test_validation_files_are_the_validation_split(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS), encoding="utf-8")
    (tmp_path / "dev.txt").write_text("held out\n", encoding="utf-8")
    corpus = load_corpus(tmp_path / "a.txt", validation_files=tmp_path / "dev.txt")
    assert corpus["train"]["text"][:] == DOCUMENTS
    assert corpus["validation"]["text"][:] == ["held out"]


def save(folder, **splits):
    for name, columns in splits.items():
        Dataset.from_dict(columns).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return str(folder)


def test_a_data_set_in_the_hubs_layout(tmp_path):
    (tmp_path / "data").mkdir()
    page = {"page": ["one", " ", "two"], "number": [1, 2, 3]}
    corpus = load_corpus(dataset=save(tmp_path, train=page, validation=page, test=page))
    assert {name: split["text"][:] for name, split in corpus.items()} == {
        "train": ["one", "two"],
        "validation": ["one", "two"],
    }
    assert corpus["train"].column_names == ["text"]


def test_which_column_is_the_text_must_be_clear(tmp_path):
    (tmp_path / "data").mkdir()
    folder = save(tmp_path, train={"title": ["a"], "body": ["b"]})
    with pytest.raises(
        ValueError, match=r"no column 'text' of text: name one of \['title', 'body'\]"
    ):
        load_corpus(dataset=folder)
    chosen = load_corpus(dataset=folder, column="body", validation_share=0)
    assert chosen["train"]["text"][:] == ["b"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one source"),
        ({"files": "a.txt", "dataset": "b"}, ValueError, "exactly one source"),
        ({"files": "a.txt", "validation_share": 1}, ValueError, r"validation_share .*got 1"),
        ({"files": "a.txt", "sample_by": "word"}, ValueError, "sample_by .*got 'word'"),
        ({"files": "absent.txt"}, FileNotFoundError, "absent.txt"),
        ({"files": "empty.txt"}, ValueError, "no document of text for the train split"),
        ({"files": "folder"}, FileNotFoundError, "holds no .tab or .txt file"),
        ({"files": "a.csv"}, ValueError, "text files end in .tab or .txt"),
        ({"files": "a.txt", "column": "body"}, ValueError, "column='body' is of .tab files"),
        ({"files": "latin.txt"}, ValueError, "latin.txt is not UTF-8"),
        ({"files": "one.txt"}, ValueError, "no document of text for the validation split"),
    ],
)
def test_bad_sources_are_refused(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, text in (
        ("a.txt", "a\n" * 3),
        ("empty.txt", " \n"),
        ("a.csv", "a"),
        ("one.txt", "a"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1"))
    with pytest.raises(error, match=message):
        load_corpus(**options)


@pytest.mark.parametrize("length", [3, 16, 1000])
def test_blocks_hold_all_documents_in_their_order(length, tokenizer):
    blocks = pack(Dataset.from_dict({"text": DOCUMENTS}), tokenizer, length)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    content = []
    for block in blocks:
        ids = block["input_ids"]
        assert (ids[0], ids[-1]) == (cls, sep)
        assert block["special_tokens_mask"] == [int(i in (cls, sep)) for i in ids]
        content += ids[1:-1]
    assert all(len(ids) == length for ids in blocks["input_ids"][:-1])
    assert 2 < len(blocks["input_ids"][-1]) <= length
    expected = []
    for text in DOCUMENTS:
        expected += [*tokenizer(text)["input_ids"][1:-1], sep]
    assert content == expected[:-1]


def test_splits_are_packed_on_their_own(tokenizer):
    halves = DatasetDict(
        a=Dataset.from_dict({"text": DOCUMENTS[:20]}), b=Dataset.from_dict({"text": DOCUMENTS[20:]})
    )
    for name, first in (("a", 0), ("b", 20)):
        block = pack(halves[name], tokenizer, 32)[0]["input_ids"]
        start = tokenizer(DOCUMENTS[first])["input_ids"]
        assert block[: len(start)] == start


def test_a_tokenizer_must_have_the_tokens_of_a_block(tokenizer):
    corpus = Dataset.from_dict({"text": DOCUMENTS})
    with pytest.raises(ValueError, match="max_seq_length must be >= 3, got 2"):
        pack(corpus, tokenizer, 2)
    bare = wordpiece_tokenizer(DOCUMENTS)
    bare.cls_token = None
    with pytest.raises(ValueError, match="cls_token=None"):
        pack(corpus, bare, 16)
