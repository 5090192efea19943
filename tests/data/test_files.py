import pytest

from spikenlp.data.files import write_whole


def test_a_write_that_breaks_off_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "record.json"
    write_whole(path, lambda file: file.write(b"whole"))

    def break_off(file):
        file.write(b"ha")
        file.flush()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, break_off)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
