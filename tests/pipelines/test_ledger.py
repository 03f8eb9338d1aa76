"""What calls of one image are given together: within a prompt or a principle, in memory or in a file that processes share."""

import multiprocessing
import os
import pickle
import sqlite3
from collections import Counter

import pytest

from livo import ValueLedger
from livo.pipelines import ledger as ledger_module
from livo.pipelines.allocation import share_out, text_seed

TARGETS = [(0.5, 0.5), (0.2,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05), (1.0, 0.0), (1 / 3,) * 3, (0.123, 0.877)]
EVEN = {"he": 0.5, "she": 0.5}
TONES = dict.fromkeys("abcde", 0.2)


def named(shares):
    return dict(zip("abcdefgh", shares, strict=False))


def call(ledger, targets=(EVEN,), number=1, seed=0, prompt="a doctor", values=("gender", "race")):
    keys = [(prompt, value) for value, _ in zip(values, targets, strict=False)]
    with ledger.reserving() as reservation:
        return reservation.share_out(number, list(targets), (seed, text_seed(prompt)), keys)


@pytest.mark.parametrize("shares", TARGETS)
@pytest.mark.parametrize("sizes", [[1] * 100, [3] * 33 + [1], [50, 1, 49], [7, 13, 80]])
def test_calls_with_a_ledger_meet_the_target_as_one_call_would(shares, sizes):
    names, ledger, given = named(shares), ValueLedger(), Counter()
    for i, number in enumerate(sizes):
        given.update(row[0] for row in call(ledger, [names], number, i))
        total = given.total()
        assert all(abs(given[name] - share * total) <= 1 + 1e-6 for name, share in names.items())
    assert ledger.counts("gender") == {name: n for name, n in given.items() if n}


def test_a_first_call_is_the_draw_without_a_ledger():
    for seed in range(20):
        alone = share_out(3, [EVEN, TONES], (seed, text_seed("a doctor")))
        assert call(ValueLedger(), [EVEN, TONES], 3, seed) == alone


def test_across_prompts_each_prompt_is_balanced_by_itself():
    ledger = ValueLedger()
    for i in range(4):
        call(ledger, seed=i, prompt="a doctor")
    assert ledger.counts("gender", "a doctor") == {"he": 2, "she": 2} and ledger.counts("gender", "a nurse") == {}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05)])
def test_across_a_principle_single_images_of_many_prompts_meet_the_target(shares):
    names, ledger = named(shares), ValueLedger(across="principle")
    for i in range(200):
        call(ledger, [names, EVEN], prompt=f"prompt {i}")
        given = ledger.counts("gender")
        assert all(abs(given.get(name, 0) - share * (i + 1)) <= 1 + 1e-6 for name, share in names.items())
    assert ledger.counts("race") == {"he": 100, "she": 100}


def test_the_plain_token_is_balanced_at_its_rate():
    ledger = ValueLedger(across="principle")
    for i in range(100):
        call(ledger, [{True: 0.3, False: 0.7}], prompt=f"prompt {i}")
    assert ledger.counts("gender") == {True: 30, False: 70}


def test_a_call_that_fails_is_not_counted_and_its_share_is_given_later(tmp_path):
    for ledger in (ValueLedger(), ValueLedger(tmp_path / "shares.sqlite")):
        for i in range(10):
            with pytest.raises(RuntimeError), ledger.reserving() as reservation:
                reservation.share_out(1, [EVEN], (i,), [("a doctor", "gender")])
                raise RuntimeError("no images")
            assert ledger.counts("gender").get("he", 0) + ledger.counts("gender").get("she", 0) == i
            call(ledger, seed=i)
        assert ledger.counts("gender") == {"he": 5, "she": 5}


def test_calls_under_way_do_not_take_the_same_share(tmp_path):
    for ledger in (ValueLedger(), ValueLedger(tmp_path / "shares.sqlite")):
        for i in range(20):
            with ledger.reserving() as one, ledger.reserving() as two:
                rows = [r.share_out(1, [EVEN], (i, 1), [("a doctor", "gender")]) for r in (one, two)]
            assert sorted(row[0][0] for row in rows) == ["he", "she"]


def test_what_is_not_counted_leaves_the_ledger_as_it_was():
    ledger = ValueLedger()
    with ledger.reserving() as reservation:
        rows = reservation.share_out(4, [EVEN, TONES], (0,), [("a doctor", "gender"), None])
    assert len(rows) == 4 and ledger.counts("gender") == {"he": 2, "she": 2} and ledger.counts("race") == {}


def test_another_target_is_balanced_from_its_own_start_with_a_warning(caplog):
    ledger = ValueLedger(across="principle")
    for i in range(20):
        call(ledger, prompt=f"prompt {i}")
    assert not caplog.text
    for i in range(20):
        call(ledger, [{"he": 0.1, "she": 0.9}], prompt=f"prompt {i}")
    assert ledger.counts("gender") == {"he": 12, "she": 28}
    assert caplog.text.count("gender: the ledger's counts are of other shares") == 1


def test_the_order_of_the_classes_and_unicode_forms_make_no_difference():
    ledger = ValueLedger()
    call(ledger, [EVEN], prompt="un caf\u00e9")
    call(ledger, [{"she": 0.5, "he": 0.5}], prompt="un cafe\u0301")
    assert ledger.counts("gender") == {"he": 1, "she": 1}


def test_a_ledger_is_saved_loaded_and_merged(tmp_path):
    one, two = ValueLedger(across="principle"), ValueLedger(across="principle")
    for ledger, calls in ((one, 3), (two, 4)):
        for i in range(calls):
            call(ledger, [EVEN, TONES], seed=i)
    one.save(tmp_path / "one.sqlite")
    loaded = ValueLedger(tmp_path / "one.sqlite")
    assert loaded.across == "principle" and loaded.counts("race") == one.counts("race")
    loaded.merge(two)
    assert Counter(loaded.counts("race")) == Counter(one.counts("race")) + Counter(two.counts("race"))
    assert ValueLedger(tmp_path / "one.sqlite").counts("gender") == loaded.counts("gender")  # it stands in the file
    assert list(tmp_path.iterdir()) == [tmp_path / "one.sqlite"]


def _single_images(path, worker, calls):
    ledger = ValueLedger(path)
    for i in range(calls):
        call(ledger, [EVEN, TONES], prompt=f"prompt {worker} {i}")


def _die_in_a_call(path):
    with ValueLedger(path).reserving() as reservation:
        reservation.share_out(5, [EVEN], (0,), [("a doctor", "gender")])
        os._exit(1)


def _wait(workers):
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_400_single_images_from_four_processes_meet_the_target_exactly(tmp_path):
    path, spawn = tmp_path / "shares.sqlite", multiprocessing.get_context("spawn")
    ledger = ValueLedger(path, across="principle")
    _wait([spawn.Process(target=_single_images, args=(path, worker, 100)) for worker in range(4)])
    assert ledger.counts("gender") == {"he": 200, "she": 200} and ledger.counts("race") == dict.fromkeys("abcde", 80)


def test_what_a_crashed_process_reserved_is_given_to_others(tmp_path):
    path = tmp_path / "shares.sqlite"
    ledger = ValueLedger(path)
    _wait([multiprocessing.get_context("spawn").Process(target=_die_in_a_call, args=(path,))])
    assert reserved(path) > 0
    call(ledger)
    assert reserved(path) == 0
    call(ledger)
    assert ledger.counts("gender") == {"he": 1, "she": 1}


def test_an_old_reservation_of_another_machine_runs_out(tmp_path, monkeypatch):
    path = tmp_path / "shares.sqlite"
    ledger = ValueLedger(path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(ledger_module.socket, "gethostname", lambda: "elsewhere")
        with ledger.reserving() as reservation:
            reservation.share_out(1, [EVEN], (0,), [("a doctor", "gender")])
            elsewhere.undo()
            call(ledger)
            assert reserved(path) == 1  # a call may take long
            monkeypatch.setattr(ledger_module, "LEASE", -1.0)
            call(ledger)
            assert reserved(path) == 0
    assert sum(ledger.counts("gender").values()) == 3  # its image is counted all the same


def reserved(path):
    with sqlite3.connect(path) as database:
        return database.execute("SELECT count(*) FROM reserved").fetchone()[0]


def test_a_ledger_in_a_file_can_be_sent_to_another_process_and_one_in_memory_cannot(tmp_path):
    ledger = ValueLedger(tmp_path / "shares.sqlite", across="principle")
    call(ledger)
    other = pickle.loads(pickle.dumps(ledger))
    assert other.counts("gender") == ledger.counts("gender") and other.across == "principle"
    with pytest.raises(TypeError, match="give it a file"):
        pickle.dumps(ValueLedger())


def test_a_ledger_in_memory_is_refused_in_a_forked_process(monkeypatch):
    ledger = ValueLedger()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(OSError, match="give it a file"):
        call(ledger)


def test_what_is_no_ledger_is_refused_with_a_clear_message(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="across is 'prompts': choose one of prompt, principle"):
        ValueLedger(across="prompts")
    (tmp_path / "a.txt").write_text("a doctor\n" * 200)
    with pytest.raises(ValueError, match="not a ledger, nor any SQLite database"):
        ValueLedger(tmp_path / "a.txt")
    with sqlite3.connect(tmp_path / "b.db") as database:
        database.execute("CREATE TABLE x (y)")
    with pytest.raises(ValueError, match="a database, but not a ledger"):
        ValueLedger(tmp_path / "b.db")
    with pytest.raises(OSError, match="name a file in a folder that exists"):
        ValueLedger(tmp_path / "absent" / "c.sqlite")
    mine = ValueLedger(tmp_path / "d.sqlite", across="principle")
    with pytest.raises(ValueError, match="balances across 'principle', not 'prompt'"):
        ValueLedger(tmp_path / "d.sqlite", across="prompt")
    with pytest.raises(ValueError, match="merged with itself"):
        mine.merge(ValueLedger(tmp_path / "d.sqlite"))
    with pytest.raises(ValueError, match="across 'prompt' cannot be merged into one across 'principle'"):
        mine.merge(ValueLedger())
    with pytest.raises(FileExistsError, match="add to it with ValueLedger"):
        ValueLedger().save(tmp_path / "d.sqlite")
    monkeypatch.setattr(ledger_module, "_WAIT", 0.0)
    with sqlite3.connect(tmp_path / "d.sqlite", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match="another process held the ledger"):
            call(mine)
