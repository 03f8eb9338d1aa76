import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from livo.pipelines.allocation import share_out, text_seed

TARGETS = [(0.5, 0.5), (0.2,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05), (1.0, 0.0), (1 / 3,) * 3, (0.123, 0.877)]


def named(shares):
    return dict(zip("abcdefgh", shares, strict=False))


def counted(rows, names, place=0):
    return [sum(row[place] == name for row in rows) for name in names]


@pytest.mark.parametrize("shares", TARGETS)
def test_every_class_gets_its_share_rounded_down_or_up(shares):
    names = named(shares)
    for number in range(1, 201):
        counts = counted(share_out(number, [names], (number, 0)), names)
        assert sum(counts) == number
        assert all(abs(count - share * number) < 1 for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize("shares", TARGETS)
@pytest.mark.parametrize("number", [1, 3, 7])
def test_over_many_seeds_every_class_gets_exactly_its_share(shares, number):
    names = named(shares)
    rows = [row for seed in range(1000) for row in share_out(number, [names], (seed, 5))]
    wanted = [len(rows) * share for share in shares]
    counts = counted(rows, names)
    assert all(abs(c - w) <= 4 * (max(w, 1) * (1 - w / len(rows))) ** 0.5 for c, w in zip(counts, wanted, strict=True))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05)])
def test_one_seed_spreads_many_prompts_as_the_target_says(shares):
    texts = [f"a photo of a {word} {i}" for i in range(100) for word in ("doctor", "nurse", "pilot", "chef")]
    names, other = named(shares), {"he": 0.5, "she": 0.5}
    rows = [share_out(1, [names, other], (12345, 0, text_seed(text)))[0] for text in texts]
    assert chisquare(counted(rows, names), [400 * share for share in shares]).pvalue > 0.01
    table = [[rows.count((name, one)) for one in other] for name in names]
    assert chi2_contingency(table).pvalue > 0.01  # the principles are independent of each other


def test_one_prompt_is_spread_over_seeds_and_neighbours_are_not_alike():
    names = named((0.2,) * 5)
    draws = [share_out(1, [names], (seed, 0, text_seed("a doctor")))[0][0] for seed in range(500)]
    assert chisquare([draws.count(name) for name in names]).pvalue > 0.01
    table = [[sum(pair == (a, b) for pair in itertools.pairwise(draws)) for b in names] for a in names]
    assert chi2_contingency(table).pvalue > 0.01


def test_the_texts_seed_is_stable_and_blind_to_unicode_forms():
    assert text_seed("a doctor") == 17140139966648273595
    assert text_seed("caf\u00e9") == text_seed("cafe\u0301") != text_seed("cafe")
    assert text_seed("half a pair \ud83d") != text_seed("half a pair")


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
        hits = counted(share_out(number, [{True: rate, False: 1 - rate}], (7, number)), [True])[0]
        assert abs(hits - number * rate) < 1
        if abs(number * rate - round(number * rate)) < 1e-9:
            assert hits == round(number * rate)


def test_single_images_receive_the_plain_token_at_the_rate_in_the_long_run():
    hits = [share_out(1, [{True: 0.3, False: 0.7}], (seed, 0))[0][0] for seed in range(4000)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.03)
