"""ValueLedger: what images were given so far, so that calls of one image each meet a target together, in one process or many."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from livo.pipelines.allocation import Shares, share_out
from livo.utils.arguments import strict
from livo.utils.files import alive, replacing
from livo.utils.logs import warn_once

logger = logging.getLogger(__name__)

ACROSS = ("prompt", "principle")
LEASE = 3600.0  # seconds after which a reservation of a process that cannot be seen counts as abandoned
_WAIT = 60.0  # seconds to wait for another process that writes
_MARK = 0x4C69564F  # "LiVO": tells a ledger from any other SQLite database
_TABLES = (
    "CREATE TABLE about (across TEXT)",
    "CREATE TABLE given (key TEXT, class TEXT, images INTEGER, PRIMARY KEY (key, class))",
    "CREATE TABLE reserved (call TEXT, host TEXT, process INTEGER, since REAL, key TEXT, class TEXT, images INTEGER)",
)
_ADD = "INSERT INTO given VALUES (?, ?, ?) ON CONFLICT (key, class) DO UPDATE SET images = images + excluded.images"

Key = tuple[str, str]  # a prompt and the principle's id, or the statement, that acts on it


class ValueLedger:
    """Remembers which classes images were given, so that successive calls together meet the target.

    A hundred calls of one image each then come out as one call of a hundred images would. With a path, worker processes share the
    ledger: each opens the same file, or is sent the ledger itself. A call reserves its shares before it draws and counts them once
    its images are there. Shares of a call that failed, or of a process that died, are given to later calls. Counts belong to the
    shares that they were collected for: with another target, or after a calibration, balancing starts again.

    Args:
        path: A file on a local disk, made where there is none. None keeps the counts in memory, for one process.
        across: "prompt" balances the images of each prompt. "principle" balances all images that a principle is asked for, which
            suits many prompts with one image each. None takes what the file says, or "prompt".

    Raises:
        ValueError: `across` is neither of the two or differs from the file's; the file is not a ledger.
        OSError: the file cannot be opened or locked.
    """

    @strict
    def __init__(self, path: str | Path | None = None, across: str | None = None):
        if across not in (*ACROSS, None):
            raise ValueError(f"across is {across!r}: choose one of {', '.join(ACROSS)}")
        self.path = None if path is None else Path(path).absolute()
        self._lock, self._process, self._warned = RLock(), os.getpid(), False
        self._memory = None if path is not None else sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with self._transaction() as database:
            if not database.execute("SELECT name FROM sqlite_master").fetchone():
                for table in _TABLES:
                    database.execute(table)
                database.execute("INSERT INTO about VALUES (?)", (across or "prompt",))
                database.execute(f"PRAGMA application_id = {_MARK}")
            if database.execute("PRAGMA application_id").fetchone() != (_MARK,):
                raise ValueError(f"{self.path}: a database, but not a ledger: name another file")
            (self.across,) = database.execute("SELECT across FROM about").fetchone()
        if across not in (self.across, None):
            raise ValueError(f"{self.path}: this ledger balances across {self.across!r}, not {across!r}: name another file")

    def __reduce__(self):
        if self.path is None:
            raise TypeError("a ledger in memory cannot be sent to another process: give it a file, ValueLedger(path)")
        return ValueLedger, (self.path, self.across)

    @strict
    def counts(self, value: str, prompt: str | None = None) -> dict[Hashable, int]:
        """Images that each class of a principle's id (or of a statement) was given: of one prompt, or of all.

        The plain token has the classes True (with the token) and False.
        """
        found: Counter = Counter()
        with self._transaction() as database:
            for key, name, images in database.execute("SELECT * FROM given"):
                text, of, _ = json.loads(key)
                if of == value and prompt in (None, text):
                    found[json.loads(name)] += images
        return dict(found)

    @contextmanager
    def reserving(self) -> Iterator[Reservation]:
        """The shares of one call: counted when the block ends, given back when it raises."""
        reservation = Reservation(self)
        try:
            yield reservation
        except BaseException:
            self._settle(reservation, made=False)
            raise
        self._settle(reservation, made=True)

    def save(self, path: str | Path) -> None:
        """Write the counts to a new file, which `ValueLedger(path)` opens.

        Raises:
            FileExistsError: the file is there already.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} is there already: add to it with ValueLedger({str(path)!r}).merge(ledger)")
        with replacing(path) as temporary:
            ValueLedger(temporary, self.across).merge(self)

    def merge(self, other: ValueLedger) -> None:
        """Add the counts of another ledger.

        Raises:
            ValueError: it is this ledger, or no ledger, or it balances across something else.
        """
        if not isinstance(other, ValueLedger):
            raise ValueError(f"{other!r} is not a ledger: open the file first, as in ledger.merge(ValueLedger({str(other)!r}))")
        if other is self or (self.path is not None and self.path == other.path):
            raise ValueError(f"{self.path or 'a ledger in memory'}: a ledger cannot be merged with itself")
        if other.across != self.across:
            raise ValueError(f"a ledger across {other.across!r} cannot be merged into one across {self.across!r}")
        with other._transaction() as database:
            rows = database.execute("SELECT * FROM given").fetchall()
        with self._transaction() as database:
            database.executemany(_ADD, rows)

    def _key(self, key: Key, shares: Shares) -> str:
        prompt = unicodedata.normalize("NFC", key[0]) if self.across == "prompt" else None
        return json.dumps([prompt, key[1], sorted([json.dumps(name), round(share, 6)] for name, share in shares.items())])

    def _reserve(
        self, call: str, number: int, targets: Sequence[Shares], seed: Sequence[int], keys: Sequence[Key | None]
    ) -> tuple[list[tuple], Counter]:
        """The classes of the next images, and what was reserved: (key, class) and its images."""
        names = [None if key is None else self._key(key, shares) for key, shares in zip(keys, targets, strict=True)]
        with self._transaction() as database:
            self._drop_abandoned(database)
            before = [{} if name is None else _taken(database, name) for name in names]
            for key, name, given in zip(keys, names, before, strict=True):
                if key is not None and not given:
                    self._warn_of_other_shares(database, key[1], name)
            rows = share_out(number, targets, seed, before)
            taken = Counter((name, json.dumps(row[i])) for row in rows for i, name in enumerate(names) if name is not None)
            owner = (call, socket.gethostname(), os.getpid(), time.time())
            database.executemany(
                "INSERT INTO reserved VALUES (?, ?, ?, ?, ?, ?, ?)", [(*owner, *what, images) for what, images in taken.items()]
            )
        return rows, taken

    def _settle(self, reservation: Reservation, made: bool) -> None:
        with self._transaction() as database:
            database.execute("DELETE FROM reserved WHERE call = ?", (reservation.call,))
            if made:
                database.executemany(_ADD, [(*what, images) for what, images in reservation.taken.items()])

    def _warn_of_other_shares(self, database: sqlite3.Connection, value: str, key: str) -> None:
        head = key[: key.rindex(", [[")]
        other = database.execute("SELECT 1 FROM given WHERE key > ? AND key < ?", (head, head + "\uffff")).fetchone()
        if other and not self._warned:
            self._warned = True
            warn_once(logger, "%s: the ledger's counts are of other shares, so balancing starts again with those of now", value)

    def _drop_abandoned(self, database: sqlite3.Connection) -> None:
        here = socket.gethostname()
        for call, host, process, since in database.execute("SELECT DISTINCT call, host, process, since FROM reserved").fetchall():
            if time.time() - since > LEASE or (host == here and not alive(process)):
                database.execute("DELETE FROM reserved WHERE call = ?", (call,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, locked against other processes and threads; changed as a whole or not at all."""
        if self._memory is not None and self._process != os.getpid():
            raise OSError("a ledger in memory was made in another process, which does not see what is counted here: give it a file")
        with self._lock:
            database = None
            try:  # a connection must not cross a fork, so a file is opened for each transaction
                database = self._memory or sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
            except sqlite3.Error as error:
                raise _explained(self.path, error) from None
            finally:
                if database is not None and database.in_transaction:
                    database.execute("ROLLBACK")
                if database is not None and database is not self._memory:
                    database.close()


class Reservation:
    """What one call takes from a ledger; `ValueLedger.reserving` makes it."""

    def __init__(self, ledger: ValueLedger):
        self._ledger = ledger
        self.call = uuid.uuid4().hex
        self.taken: Counter = Counter()

    def share_out(self, number: int, targets: Sequence[Shares], seed: Sequence[int], keys: Sequence[Key | None]) -> list[tuple]:
        """As `livo.pipelines.allocation.share_out`, balanced with all that was given and reserved before.

        Args:
            keys: For each target the prompt and the value; None for a target that the ledger does not count.
        """
        rows, taken = self._ledger._reserve(self.call, number, targets, seed, keys)
        self.taken.update(taken)
        return rows


def _taken(database: sqlite3.Connection, key: str) -> Mapping[Hashable, int]:
    """Images given and reserved, by class."""
    found: Counter = Counter()
    for table in ("given", "reserved"):
        for name, images in database.execute(f"SELECT class, images FROM {table} WHERE key = ?", (key,)):
            found[json.loads(name)] += images
    return found


def _explained(path: Path | None, error: sqlite3.Error) -> Exception:
    what = str(error)
    if "not a database" in what:
        return ValueError(f"{path}: not a ledger, nor any SQLite database: name another file")
    if "locked" in what or "busy" in what:
        return OSError(
            f"{path}: another process held the ledger for {_WAIT:.0f} s, or the file system cannot lock (NFS): keep it on a local disk"
        )
    return OSError(
        f"{path}: the ledger cannot be used ({what}): name a file in a folder that exists, can be written and is not full"
    )
