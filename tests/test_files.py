import os

import pytest

from secateur.errors import InputError, reason
from secateur.files import member, read_as, read_object, read_text


def test_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is not a file"):
            read_text(path)


def test_no_more_is_read_than_stated(tmp_path):
    (tmp_path / "long").write_text("x" * 11)
    assert read_text(tmp_path / "long", 11) == "x" * 11
    with pytest.raises(InputError, match="has more than"):
        read_text(tmp_path / "long", 10)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 99_999, b'{"a":' * 99_999, b"1" * 9999]
)
def test_what_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    for read in (read_object, lambda path: read_as(dict[str, int], path)):
        with pytest.raises(InputError, match=r"file\.json is damaged"):
            read(tmp_path / "file.json")


def test_a_reason_is_short():
    assert len(reason(ValueError("x" * 1000))) < 310
    assert reason(ValueError("a\nb\nc")) == "a b"
    assert reason(KeyError("nope")) == "KeyError: 'nope'"
    assert reason(MemoryError()) == "MemoryError"


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    assert member(tmp_path, "x" * 1000) is None
    assert member(tmp_path, "a\x00b") is None
