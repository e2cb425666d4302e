"""Lists of names in messages."""

import random

import pytest

from llama_convert.text import listed, natural_key


def test_numbers_sort_by_value_and_text_by_letter() -> None:
    names = [
        "consolidated.00.pth",
        "consolidated.10.pth",
        "layers.2.attention.wk.weight",
        "layers.2.attention.wq.weight",
        "layers.10.attention.wk.weight",
        "norm.weight",
    ]
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural_key) == names


@pytest.mark.parametrize("name", ["", "7", "a7", "7a", "٣", "²", "9" * 5000])
def test_any_name_compares_with_any_other(name: str) -> None:
    assert sorted([name, "layers.2", "2", ""], key=natural_key)


def test_a_short_list_is_whole_and_in_natural_order() -> None:
    assert listed([]) == ""
    assert listed(["b10", "b9"]) == "b9, b10"
    assert listed(f"n{number}" for number in range(5, 0, -1)) == "n1, n2, n3, n4, n5"


def test_a_long_list_ends_in_a_count() -> None:
    assert listed(f"layers.{number}" for number in range(7)) == (
        "layers.0, layers.1, layers.2, layers.3, layers.4 and 2 more"
    )
    assert listed(map(str, range(2000)), limit=1) == "0 and 1,999 more"
