"""The file of chosen indices."""

import pytest

from common.errors import InputError
from common.subset_file import read_subset_ids


def test_indices_come_in_the_order_of_the_file(tmp_path):
    (tmp_path / "s.json").write_text("[29, 0, 11]\n")
    assert read_subset_ids(tmp_path / "s.json", 30) == [29, 0, 11]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a JSON list of whole numbers"),
        ("[1, 2.5]", "is not a JSON list of whole numbers"),
        ("[true]", "is not a JSON list of whole numbers"),
        ("[1, 2", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is empty"),
        ("[3, 4, 3]", "holds 3 2 times"),
        ("[0, 30]", "holds 30, but the pool has images 0 to 29"),
        ("[-1]", "holds -1"),
    ],
)
def test_an_unusable_subset_file_is_one_clear_line(content, message, tmp_path):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_subset_ids(str(tmp_path / "s.json"), 30)


def test_a_missing_subset_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read the --subset_ids file .*gone.json"):
        read_subset_ids(str(tmp_path / "gone.json"), 30)


def test_an_error_names_the_option_that_the_file_came_with(tmp_path):
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(InputError, match="^--exclude_ids .*s.json is empty"):
        read_subset_ids(tmp_path / "s.json", 30, option="--exclude_ids")
