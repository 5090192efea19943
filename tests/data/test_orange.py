"""Orange's .tab files: headers, quotes, blank rows, the column of the text, and what is refused."""

import pytest

from spikenlp.data import read_tab
from tests.data.tab_files import TOPIC_HEADER

QUOTED = (
    "Author\tLikes\tContent\tTitle\n"
    "Ann Bob\tcontinuous\tstring\tstring\n"
    "class\t\tmeta include=True title=True\tmeta\n"
    'Ann\t3.0\t"She said ""no"",\ttwice.\nThen left."\tA\n'
    '\tNA\tHe said "yes".\tnull\n'
)


def write(tmp_path, text):
    path = tmp_path / "corpus.tab"
    path.write_text(text, encoding="utf-8")
    return path


def test_quotes_tabs_and_line_breaks_belong_to_the_text(tmp_path):
    tab = read_tab(write(tmp_path, QUOTED))
    assert tab["Content"] == ['She said "no",\ttwice.\nThen left.', 'He said "yes".']
    assert tab["Author"] == ["Ann", ""]
    assert tab["Likes"] == ["3.0", "NA"]
    assert tab["Title"] == ["A", "null"]
    assert tab.types["Content"] == "string"
    assert tab.roles["Content"] == {"meta", "include=True", "title=True"}


def test_the_text_is_what_is_marked_or_the_only_one(tmp_path):
    assert read_tab(write(tmp_path, QUOTED)).text_column() == "Content"
    assert read_tab(write(tmp_path, TOPIC_HEADER + "earn\tup\n")).text_column() == "Text"
    unmarked = write(tmp_path, QUOTED.replace(" include=True", ""))
    with pytest.raises(ValueError, match=r"2 columns .*'Content', 'Title'"):
        read_tab(unmarked).text_column()


@pytest.mark.parametrize("blank", ["\n", "\t\n"])
def test_blank_rows_are_no_documents(blank, tmp_path):
    rows = f"Category\tText\nd\tstring\nclass\t\n{blank}earn\tup\n{blank}{blank}acq\tdown\n"
    tab = read_tab(write(tmp_path, rows))
    assert tab["Category"] == ["earn", "acq"]
    assert tab["Text"] == ["up", "down"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Category\tText\nearn\tprofit\nacq\tsold\n", r"three rows .*\['earn', 'profit'\]"),
        ("Category\tText\n", "three rows"),
        ("", "three rows"),
        ("Text\nstring\nclass\tmeta\n", "three rows"),
        (
            TOPIC_HEADER + "earn\tup\nacq\n",
            r"\['acq'\] has 1 cells, expected 2: \['Category', 'Text'\]",
        ),
        (TOPIC_HEADER + "earn\tup\tdown\n", "has 3 cells, expected 2"),
        (TOPIC_HEADER + 'earn\t"open\n', "not one of Orange's"),
    ],
)
def test_another_format_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tab(write(tmp_path, text))


def test_long_documents_are_read_whole(tmp_path):
    text = "word " * 100_000
    assert read_tab(write(tmp_path, f"{TOPIC_HEADER}earn\t{text}\n"))["Text"] == [text]


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'Topic': found \['Category', 'Text'\]"):
        read_tab(write(tmp_path, TOPIC_HEADER + "earn\tup\n"))["Topic"]
