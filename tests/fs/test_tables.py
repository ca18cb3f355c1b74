"""Inode numbers, the inode table, and what was learned: pure parts."""

from __future__ import annotations

import errno
import stat

import pytest

from s3vol.errors import PosixError
from s3vol.fs.inodes import Inode, Inodes
from s3vol.fs.learned import Learned
from s3vol.fs.numbers import Numbers
from s3vol.layout import stable_ino
from s3vol.types import ROOT_INO, Ino, ObjectInfo

FILE, DIR, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


class Notes(dict[str, str]):
    def record(self, key: str, value: str | None) -> None:
        if value is None:
            self.pop(key, None)
        else:
            self[key] = value


def table(notes: Notes | None = None) -> Inodes:
    notes = Notes() if notes is None else notes
    return Inodes(Numbers(dict(notes), notes.record), Inode(ROOT_INO, "", DIR, lookups=1))


def looked_up(inodes: Inodes, key: str, mode: int = FILE) -> Inode:
    inode, _ = inodes.ensure(key, mode)
    inodes.remember(inode)
    return inode


def test_a_number_is_the_same_at_every_mount() -> None:
    assert looked_up(table(), "a/b").ino == looked_up(table(), "a/b").ino == stable_ino("a/b")


def test_a_rename_keeps_the_number_and_so_does_a_remount() -> None:
    notes = Notes()
    inodes = table(notes)
    inode = looked_up(inodes, "a")
    inodes.move(inode, "b")
    assert inodes.at("b") is inode
    assert inodes.at("a") is None
    assert looked_up(table(notes), "b").ino == inode.ino


def test_a_new_file_under_a_renamed_files_old_name_gets_another_number() -> None:
    notes = Notes()
    inodes = table(notes)
    renamed = looked_up(inodes, "a")
    inodes.move(renamed, "b")
    new = looked_up(inodes, "a")
    assert new.ino != renamed.ino
    again = table(notes)
    assert (looked_up(again, "a").ino, looked_up(again, "b").ino) == (new.ino, renamed.ino)


def test_renaming_back_leaves_no_exception_behind() -> None:
    notes = Notes()
    inodes = table(notes)
    inode = looked_up(inodes, "a")
    inodes.move(inode, "b")
    inodes.move(inode, "a")
    assert notes == {}


def test_a_removed_files_exception_goes_with_it() -> None:
    notes = Notes()
    inodes = table(notes)
    inode = looked_up(inodes, "a")
    inodes.move(inode, "b")
    inodes.unname(inode)
    assert notes == {}


def test_another_type_under_the_same_name_is_another_inode_and_the_old_one_is_stale() -> None:
    inodes = table()
    old = looked_up(inodes, "a", FILE)
    new = looked_up(inodes, "a", LINK)
    assert new.ino != old.ino
    assert old.key is None
    assert inodes.get(old.ino) is old


def test_forget_takes_lookups_back_and_drops_the_inode_at_zero() -> None:
    inodes = table()
    inode = looked_up(inodes, "a")
    inodes.remember(inode)
    inodes.forget([(inode.ino, 1)])
    assert inodes.at("a") is inode
    inodes.forget([(inode.ino, 1)])
    with pytest.raises(PosixError) as caught:
        inodes.get(inode.ino)
    assert caught.value.errno == errno.ESTALE
    assert inodes.at("a") is None


def test_an_inode_that_is_open_survives_forget() -> None:
    inodes = table()
    inode = looked_up(inodes, "a")
    inode.pins += 1
    inodes.unname(inode)
    inodes.forget([(inode.ino, 1)])
    assert inodes.get(inode.ino) is inode
    assert inode.attr().nlink == 0


def test_the_root_is_never_dropped() -> None:
    inodes = table()
    inodes.forget([(ROOT_INO, 5)])
    assert inodes.get(ROOT_INO) is inodes.root


def test_a_name_made_again_gets_its_dead_inode_back_when_nobody_has_it_open() -> None:
    notes = Notes()
    inodes = table(notes)
    old = looked_up(inodes, "a")
    inodes.unname(old)
    new = looked_up(inodes, "a")
    assert new.ino == old.ino
    assert new.lookups == 2
    assert notes == {}


def test_a_name_made_again_while_the_old_file_is_open_gets_another_number() -> None:
    inodes = table()
    old = looked_up(inodes, "a")
    old.pins += 1
    inodes.unname(old)
    assert looked_up(inodes, "a").ino != old.ino


def test_moving_a_directory_moves_what_is_below_and_the_exceptions_of_what_is_not_here() -> None:
    notes = Notes()
    inodes = table(notes)
    top, inner = looked_up(inodes, "d/", DIR), looked_up(inodes, "d/x")
    other = looked_up(inodes, "dx")
    inodes.move(looked_up(inodes, "d/y"), "d/z")
    gone = inodes.at("d/z")
    assert gone is not None
    inodes.forget([(gone.ino, 1)])
    inodes.move_below("d/", "e/")
    assert (top.key, inner.key, other.key) == ("e/", "e/x", "dx")
    assert inodes.number("e/z", FILE) == gone.ino
    assert inodes.number("e/x", FILE) == inner.ino


def test_two_keys_that_share_a_hash_get_two_numbers() -> None:
    numbers = Numbers({}, lambda key, value: None)
    taken = {Ino(stable_ino("a"))}
    assert numbers.assign("a", taken.__contains__) not in taken


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def info(key: str) -> ObjectInfo:
    return ObjectInfo(key, 1, "e", 0, {})


def test_what_was_learned_is_believed_for_its_ttl_since_the_request_began() -> None:
    clock = Clock()
    learned = Learned(1.0, clock)
    with learned.asking() as ask:
        clock.now_s += 0.6
    learned.put("a", info("a"), ask)
    assert learned.get("a") is not None
    assert learned.left_s(ask.at_s) == pytest.approx(0.4)
    clock.now_s += 0.4
    assert learned.get("a") is None


def test_an_answer_older_than_a_local_change_is_not_kept() -> None:
    learned = Learned(1.0, Clock())
    with learned.asking() as ask:
        learned.changed("a")
        learned.changed_below("d/")
    learned.put("a", info("a"), ask)
    learned.put("d/x", info("d/x"), ask)
    learned.put("b", info("b"), ask)
    assert (learned.get("a"), learned.get("d/x")) == (None, None)
    assert learned.get("b") is not None


def test_absence_counts_once_and_not_after_a_local_change() -> None:
    learned = Learned(1.0, Clock())
    with learned.asking() as ask:
        pass
    learned.put_absent("a", ask)
    assert learned.take_absent("a")
    assert not learned.take_absent("a")
    learned.put_absent("d", ask)
    learned.changed("d/")
    assert not learned.take_absent("d")


def test_memory_of_what_was_learned_is_bounded() -> None:
    learned = Learned(1.0, Clock(), limit=100)
    with learned.asking() as ask:
        for number in range(1000):
            learned.put(f"f{number}", info(f"f{number}"), ask)
    assert len(learned) <= 100
    assert learned.get("f999") is not None


def test_an_answer_that_took_longer_than_it_may_be_believed_is_not_kept() -> None:
    clock = Clock()
    learned = Learned(1.0, clock)
    with learned.asking() as ask:
        clock.now_s += 2
        learned.put("a", None, ask)
    assert learned.get("a") is None
    assert len(learned) == 0
