"""The state file: what is in it survives, and what is wrong with it is said."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import Refusal, StateFileError
from cdc.state.ledger import TROUBLE, Ledger
from cdc.state.state_file import StateFile
from cdc.store.entry_columns import GONE, EntryColumns
from cdc.store.store import Store
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = b"secret-key-0123456789"


def write(path: Path, rows: list[dict[str, bytes | None]]) -> Store:
    """Publish batches to a store with a file, and close the file."""
    store, file = Store(), StateFile(path)
    for number, row in enumerate(rows, start=1):
        batch = store.prepare(row.items(), number * 10)
        file.append(batch, position=number * 10, seen=number * 11)
        store.publish(batch, consistent=True, position=number * 10)
    file.close()
    return store


def reopened(path: Path) -> Store:
    file = StateFile(path)
    store = Store()
    store.restore(file.kept.entries, file.kept.head, forgotten=file.kept.forgotten)
    file.close()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pads-cdc.state"


def test_a_restart_keeps_revisions_positions_tombstones_and_the_epoch(path: Path) -> None:
    before = write(path, [{"a": KEY, "b": KEY, "é": KEY}, {"a": b"2"}, {"b": None}, {"é": KEY}])
    file = StateFile(path)
    epoch, kept = file.kept.epoch, file.kept
    assert (kept.head, kept.position, kept.seen) == (3, 40, 44)
    store = Store()
    store.restore(kept.entries, kept.head)
    assert {(entry.id, entry.revision, entry.position) for entry in store.log} == {
        (entry.id, entry.revision, entry.position) for entry in before.entries.values()
    }
    assert list(store.tombstones) == ["b"]
    batch = store.prepare([("a", b"2"), ("é", KEY)], 50, named=False)
    assert not batch.changed, "what did not change while we were down is not published again"
    file.close()
    assert StateFile(path).kept.epoch == epoch


def test_no_key_and_no_payload_is_in_it_and_only_we_may_read_it(path: Path) -> None:
    write(path, [{"a": KEY}])
    assert KEY not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_process_is_refused(path: Path) -> None:
    file = StateFile(path)
    script = (
        "from pathlib import Path; from cdc.state.state_file import StateFile;"
        f" StateFile(Path({str(path)!r}))"
    )
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "Refusal" in second.stderr
    assert "in use by another process" in second.stderr
    with pytest.raises(Refusal):
        StateFile(path)
    file.close()


def test_kill_in_the_middle_of_writing_keeps_whole_batches(path: Path) -> None:
    """Each batch deletes one id and adds the next: with whole batches exactly one is alive."""
    script = textwrap.dedent(f"""
        from pathlib import Path
        from cdc.state.state_file import StateFile
        from cdc.store.store import Store
        store, file = Store(), StateFile(Path({str(path)!r}))
        for number in range(1_000_000):
            batch = store.prepare([(f"app_{{number - 1}}", None), (f"app_{{number}}", b"x")], number)
            file.append(batch, position=number, seen=number)
            store.publish(batch, consistent=True)
            if number == 500: print("going", flush=True)
    """)
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "going\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    file = StateFile(path)
    alive = [entry.id for entry in file.kept.entries if entry.digest != GONE]
    assert alive == [f"app_{file.kept.head - 1}"]
    assert file.kept.head > 500
    file.close()


@pytest.mark.parametrize("damage", ["truncated", "zeros", "garbage", "version", "checksum", "cluster"])
def test_an_unusable_file_is_set_aside_and_started_anew(path: Path, damage: str) -> None:
    write(path, [{f"app_{number}": KEY for number in range(500)}])
    old = StateFile(path)
    epoch = old.kept.epoch
    old.note(system="another" if damage == "cluster" else "ours")
    old.close()
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "garbage":
        path.write_bytes(path.read_bytes()[:100] + b"not a database" * 1000)
    elif damage == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    elif damage != "cluster":
        with sqlite3.connect(path) as database:
            database.execute(
                "UPDATE facts SET value = 99 WHERE name = 'version'"
                if damage == "version"
                else "UPDATE batches SET digests = zeroblob(length(digests))"
            )
        database.close()
    file = StateFile(path, "ours")
    assert file.set_aside is not None
    assert file.set_aside.exists()
    assert file.kept.fresh
    assert file.kept.epoch != epoch
    assert not file.kept.entries
    file.close()


@pytest.mark.parametrize("content", ["text", "database"])
def test_a_file_of_somebody_else_is_left_alone(path: Path, content: str) -> None:
    """A slip in STATE_FILE must cost nobody a file: not the password's, not another program's database."""
    if content == "text":
        path.write_text("host=db.internal password=s3cr3t\n")
    else:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE dashboards (id INT)")
        database.close()
    before = path.read_bytes()
    with pytest.raises(StateFileError, match="is not a state file, and was left as it is; name another file"):
        StateFile(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_is_no_file_is_left_alone(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(StateFileError, match="it is not a state file"):
        StateFile(path)
    assert path.is_fifo()


def test_a_file_that_cannot_be_written_says_so(path: Path) -> None:
    with pytest.raises(StateFileError, match="no-such-folder"):
        StateFile(path.parent / "no-such-folder" / "state")


def test_after_an_unclean_reboot_the_epoch_is_a_new_one(path: Path) -> None:
    write(path, [{"a": KEY}])
    first = StateFile(path)
    epoch = first.kept.epoch
    first.note(boot="another-boot")  # as if the machine had been another one, and `close` never called
    first._db.close()
    again = StateFile(path)
    assert again.kept.epoch != epoch
    assert [entry.id for entry in again.kept.entries] == ["a"], (
        "tombstones and revisions are kept all the same"
    )
    again.close()


def test_folding_keeps_the_newest_of_each(path: Path) -> None:
    store, file = Store(), StateFile(path)
    for number in range(60):
        batch = store.prepare([(f"app_{index}", bytes([number])) for index in range(1000)], number)
        file.append(batch, position=number, seen=number)
        store.publish(batch, consistent=True)
    steps = 0
    while file.fold(store.entries):
        steps += 1
    assert steps > 10
    assert not file.fold(store.entries), "it is not due again"
    assert file._rows < 1_100
    file.close()
    again = reopened(path)
    assert again.head == store.head
    assert len(again) == 1000
    assert not again.prepare([(e.id, e.payload) for e in store.live()], 99, named=False).changed


def test_a_file_that_grows_without_a_pause_is_folded_all_the_same(path: Path) -> None:
    """One commit follows the other, or one hangs for hours: there is never nothing else to do."""
    ledger, store = Ledger(path, "", Listener()), Store()
    most = 0
    for number in range(300):
        batch = store.prepare([(f"app_{index}", number.to_bytes(2)) for index in range(2_000)], number)
        ledger.append(batch, position=number, seen=number)
        store.publish(batch, consistent=True)
        if ledger.overgrown(store):
            ledger.tend(store)
        assert ledger._file is not None
        most = max(most, ledger._file._rows)
    assert most < 4 * 2_000 + 2 * 50_000 + 3 * 2_000
    ledger.close()
    assert len(reopened(path)) == 2_000


def _removed(path: Path) -> None:
    path.unlink()


def _journal_removed(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def _put_back(path: Path) -> None:
    """Somebody restores an old copy, as a tool for backups does."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def _folder_moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.mkdir()


@pytest.mark.parametrize("happens", [_removed, _journal_removed, _put_back, _folder_moved])
@pytest.mark.parametrize("idle", [False, True])
def test_a_file_that_vanishes_while_it_is_in_use_is_noticed_and_written_anew(
    tmp_path: Path, happens: Callable[[Path], None], *, idle: bool
) -> None:
    """SQLite goes on writing to a file that no restart would find, and reports no error."""
    told = Told()
    path, now = tmp_path / "folder" / "state", 0.0
    path.parent.mkdir()
    ledger, store = Ledger(path, "", told, clock=lambda: now), Store()

    def publish(number: int, row: dict[str, bytes | None]) -> None:
        batch = store.prepare(row.items(), number)
        ledger.append(batch, position=number, seen=number)
        store.publish(batch, consistent=True)

    publish(1, {"a": KEY, "b": KEY})
    store.loaded()
    epoch = ledger.epoch
    ledger.note(system="7", timeline=2, owed="17")
    happens(path)
    if idle:
        ledger.tend(store)
    else:
        publish(2, {"a": b"2"})
    assert len(told.errors) == 1
    assert "removed or replaced" in (told.standing or "")
    assert ledger.epoch != epoch, "a restart now would not know these revisions"
    publish(3, {"b": None})
    now = 5.0
    ledger.tend(store)
    assert told.standing is None
    publish(4, {"c": KEY})
    assert len(told.errors) == 1
    ledger.note(owed="")
    ledger.close()
    file = StateFile(path)
    assert (file.kept.system, file.kept.timeline, file.kept.owed) == ("7", 2, None), (
        "the next start needs them"
    )
    file.close()
    again = reopened(path)
    assert again.entries.keys() == {"a", "b", "c"}
    assert list(again.tombstones) == ["b"]


def test_what_keeps_a_new_file_from_being_written_is_said(path: Path) -> None:
    told, now = Told(), 0.0
    ledger, store = Ledger(path, "", told, clock=lambda: now), Store()
    store.publish(store.prepare([("a", KEY)], 1), consistent=True)
    store.loaded()
    path.unlink()
    path.mkdir()
    ledger.tend(store)
    assert "is not a file" in (told.standing or "")
    path.rmdir()
    path.write_text("another program's")
    now = 5.0
    ledger.tend(store)
    assert "it is not a state file" in (told.standing or "")
    assert path.read_text() == "another program's"
    assert len(told.errors) == 1, "an attempt is not another failure"


class Told(Listener):
    """An observer that keeps what is said about the state file."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.standing: str | None = None

    def state_file_error(self, message: str) -> None:
        self.errors.append(message)

    def trouble(self, key: str, message: str | None) -> None:
        assert key == TROUBLE
        self.standing = message


def test_the_journal_shrinks_after_a_large_batch(path: Path) -> None:
    """A million entries are written as one transaction; the disk must not have them twice for ever."""
    store, file = Store(), StateFile(path)
    journal = path.with_name(f"{path.name}-wal")
    large = store.prepare([(f"app_{index:>0200}", b"x") for index in range(150_000)], 1)
    file.append(large, position=1, seen=1)
    store.publish(large, consistent=True)
    assert journal.stat().st_size > 16 * 2**20
    for number in range(2, 4):
        batch = store.prepare([("app", bytes([number]))], number)
        file.append(batch, position=number, seen=number)
        store.publish(batch, consistent=True)
    assert journal.stat().st_size <= 16 * 2**20
    file.close()


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_folding_step_by_step_between_batches_changes_nothing(seed: int, step: int) -> None:
    """Entries change, move, go and come back, and deletes are forgotten, step by step, while it is folded. It
    may be opened after any step.
    """
    choose = Random(seed)  # noqa: S311 - a history, not a secret
    with (
        TemporaryDirectory() as folder,
        patch.multiple("cdc.state.state_file", _CHUNK=0, _STEP=step),
        patch.object(Store, "_FORGET_STEP", choose.randint(1, 8)),
    ):
        path = Path(folder) / "state"
        store, file = Store(), StateFile(path)
        for number in range(1, choose.randint(2, 60)):
            ids = choose.sample([f"app_{one}" for one in range(12)], choose.randint(1, 6))
            rows = [(one, choose.choice((None, b"1", b"2", b"3"))) for one in ids]
            position = choose.choice((number, max(1, number - 3)))  # some is delivered again
            batch = store.prepare(rows, position, named=choose.random() < 0.7)
            file.append(batch, position=number, seen=number)
            store.publish(batch, consistent=True, position=number, seen=number)
            if choose.random() < 0.2:
                store.forget(choose.randint(store.forgotten, store.head))
                file.note(forgotten=store.forgotten)
            for _ in range(choose.randint(0, 3)):
                store.tend()
                file.fold(store.entries, store.forgotten)
        folding = choose.random() < 0.5
        while folding and file.fold(store.entries, store.forgotten):
            store.tend()
        file.close()
        kept = StateFile(path).kept
        assert kept.head == store.head or not store.log
        assert kept.forgotten == store.forgotten
        while store.tend():
            pass
        there = [row for row in kept.entries if row.digest != GONE or row.revision > kept.forgotten]
        assert {(row.id, row.revision, row.digest) for row in there} == {
            (entry.id, entry.revision, store.kept_digest(entry)) for entry in store.entries.values()
        }
        for row in there:
            assert row.position <= store.entries[row.id].position


def test_a_delete_that_is_removed_while_its_file_is_folded_brings_nothing_back(path: Path) -> None:
    """A million forgotten deletes are removed in steps, between those of folding."""
    store, file = Store(), StateFile(path)
    for number, payload in enumerate((b"1", b"2", None), 1):
        batch = store.prepare([("app", payload)], number)
        file.append(batch, position=number, seen=number)
        store.publish(batch, consistent=True)
    with patch.multiple("cdc.state.state_file", _CHUNK=0, _STEP=1):
        before = dict(store.entries)
        store.forget(store.head)
        file.note(forgotten=store.forgotten)
        assert file.fold(before, store.forgotten), "it has not been removed yet"
        while file.fold(store.entries, store.forgotten):
            pass
    file.close()
    assert not reopened(path).entries


def test_a_new_epoch_before_the_first_load_keeps_what_is_not_verified_yet(path: Path) -> None:
    """What was restored has no payload yet: that does not make it deleted."""
    write(path, [{"a": KEY, "b": KEY}, {"b": None}])
    ledger = Ledger(path, "", Listener())
    store = Store()
    store.restore(ledger.kept.entries, ledger.kept.head)
    ledger.new_epoch(store)
    ledger.close()
    again = reopened(path)
    assert list(again.tombstones) == ["b"]
    assert not again.prepare([("a", KEY)], 99, named=False).changed


@pytest.mark.parametrize("opened_again", [False, True])
def test_nothing_but_the_store_keeps_the_file_s_entries(path: Path, opened_again: bool) -> None:
    """Of a million entries they would be 100 MB."""
    write(path, [{"a": KEY, "b": KEY}])
    now = [0.0]
    ledger, store = Ledger(path, "", Listener(), lambda: now[0]), Store()
    ledger.restore(store)
    store.publish(store.prepare([("a", KEY), ("b", KEY)], 99, named=False), consistent=True, position=99)
    store.loaded()
    if opened_again:
        path.rename(path.with_name("moved"))
        ledger.tend(store)
        path.with_name("moved").rename(path)
        now[0] = 60.0
        ledger.tend(store)
        assert ledger.note(system="7")
    del store
    gc.collect()
    assert [each.ids for each in gc.get_objects() if type(each) is EntryColumns and each.ids] == []
    ledger.close()
