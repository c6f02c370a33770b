"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.number(0.09523), "0.0952"), (units.number(9.996), "10.0"), (units.number(1234.5), "1234"),
        (units.number(0), "0"), (units.number(0.1234567, 5), "0.12346"),
        (units.size(0), "0 B"), (units.size(999), "999 B"), (units.size(611_213), "611 kB"),
        (units.size(999_999), "1.00 MB"),
        (units.size(None), "–"), (units.count(3_020_000), "3.02 M"), (units.count(845), "845"),
        (units.milliseconds(0.0703), "0.0703 ms"), (units.milliseconds(1234.5), "1234 ms"),
        (units.seconds(0.42), "0.42 s"), (units.seconds(41.2), "41.2 s"), (units.seconds(125.4), "2 min 05 s"),
        (units.percent(0.975), "97.5 %"), (units.points(-0.014), "−1.4 points"), (units.points(0.0), "±0.0 points"),
        (units.points(0.1555), "+15.55 points"), (units.millijoules(4.213), "4.21 mJ"), (units.tick(2e6), "2 M"),
        (units.tick(250_000), "250 k"), (units.tick(0.05), "0.05"),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(1e-9, 1e15), st.integers(2, 8))
def test_number_keeps_its_value_and_never_uses_an_exponent(value: float, digits: int) -> None:
    text = units.number(value, digits)
    assert "e" not in text
    assert math.isclose(float(text), value, rel_tol=0.51 * 10.0 ** (1 - digits))


@given(st.integers(0, 10**17))
def test_sizes_keep_three_digits(value: int) -> None:
    text, unit = units.size(value).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert math.isclose(float(text) * factor, value, rel_tol=0.0051, abs_tol=0.5)
