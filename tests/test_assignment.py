from collections import Counter

import numpy as np
import pytest

from livo.assignment import ValueLedger, share_out, token_shares

TARGETS = [(0.5, 0.5), (0.2,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05), (1.0, 0.0), (1 / 3,) * 3, (0.123, 0.877)]


def named(shares):
    return dict(zip("abcdefgh", shares, strict=False))


def counted(rows, names, place=0):
    return [sum(row[place] == name for row in rows) for name in names]


@pytest.mark.parametrize("shares", TARGETS)
def test_counts_are_by_largest_remainder_for_every_number_of_images(shares):
    names = named(shares)
    for number in range(1, 201):
        counts = counted(share_out(number, [names], (number, 0)), names)
        assert sum(counts) == number
        floors = [int(share * number + 1e-9) for share in shares]
        rest = [share * number - floor for share, floor in zip(shares, floors, strict=True)]
        assert all(count - floor in (0, 1) for count, floor in zip(counts, floors, strict=True))
        raised = [r for r, c, f in zip(rest, counts, floors, strict=True) if c > f]
        left = [r for r, c, f in zip(rest, counts, floors, strict=True) if c == f]
        assert not raised or not left or max(left) <= min(raised) + 1e-5


def test_the_seed_repeats_everything_and_gives_ties_and_order():
    names = named((0.2,) * 5)
    assert share_out(50, [names], (1, 2)) == share_out(50, [names], (1, 2))
    singles = Counter(share_out(1, [names], (seed, 0))[0][0] for seed in range(500))
    assert all(70 < singles[name] < 130 for name in "abcde")
    assert len({tuple(share_out(5, [names], (seed, 0))) for seed in range(50)}) > 20


@pytest.mark.parametrize("number", [10, 20, 50, 7, 13, 1, 200])
def test_two_targets_are_exact_each_and_their_cells_as_even_as_they_can_be(number):
    pins, tones = {"he": 0.5, "she": 0.5}, named((0.2,) * 5)
    for seed in range(20):
        rows = share_out(number, [pins, tones], (seed, number))
        for place, shares in enumerate((pins, tones)):
            counts = counted(rows, shares, place)
            assert all(abs(c - s * number) < 1 for c, s in zip(counts, shares.values(), strict=True))
        cells = Counter(rows)
        assert all(abs(cells[pin, tone] - number / 10) < 1.5 for pin in pins for tone in tones)
        if number % 10 == 0:
            assert set(cells.values()) == {number // 10}


def test_three_targets_are_exact_each():
    targets = [{"x": 0.5, "y": 0.5}, named((0.2,) * 5), {True: 0.25, False: 0.75}]
    rows = share_out(40, targets, (0, 0))
    assert [counted(rows, shares, i) for i, shares in enumerate(targets)] == [[20, 20], [8] * 5, [10, 30]]


@pytest.mark.parametrize("rate", [0.0, 0.1, 1 / 3, 0.5, 0.8, 1.0])
def test_the_plain_tokens_share_is_exact_for_every_number_of_images(rate):
    for number in range(1, 201):
        hits = counted(share_out(number, [token_shares(rate, number, (7, number))], (7, number)), [True])[0]
        assert abs(hits - number * rate) < 1
        if abs(number * rate - round(number * rate)) < 1e-9:
            assert hits == round(number * rate)


def test_single_images_receive_the_plain_token_at_the_rate_in_the_long_run():
    hits = [share_out(1, [token_shares(0.3, 1, (seed, 0))], (seed, 0))[0][0] for seed in range(4000)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("shares", TARGETS)
@pytest.mark.parametrize("sizes", [[1] * 100, [3] * 33 + [1], [50, 1, 49], [7, 13, 80]])
def test_calls_with_a_ledger_meet_the_target_as_one_call_would(shares, sizes):
    names, ledger, rows = named(shares), ValueLedger(), []
    for i, number in enumerate(sizes):
        new = share_out(number, [names], (i, 0), ledger, ["a prompt"])
        ledger.add("a prompt", [row[0] for row in new])
        rows += new
        counts = counted(rows, names)
        assert all(abs(c - s * len(rows)) <= 1 + 1e-6 for c, s in zip(counts, shares, strict=True))


def test_a_ledger_keeps_prompts_apart():
    ledger, names = ValueLedger(), named((0.5, 0.5))
    for i in range(4):
        ledger.add("doctor", share_out(1, [names], (i, 0), ledger, ["doctor"])[0])
    assert sum(ledger.given["doctor"].values()) == 4 and "nurse" not in ledger.given
