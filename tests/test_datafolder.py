"""What is large lies in a folder of its own: in the right one, or nothing is done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools import Catalogue

ROWS = [("r1", "Bach", "Fugue"), ("r2", "Telemann", "Suite"), ("r3", "Bach", "Suite")]
BATCH = {"use_batch_embeddings": True, "batch_poll_interval": 1}


def made(folder: Path, **keys: object) -> Catalogue:
    folder.mkdir(exist_ok=True)
    catalogue = Catalogue(folder)
    catalogue.configure(**keys)
    catalogue.write(ROWS)
    return catalogue


def taken(catalogue: Catalogue, *arguments: str) -> str:
    ran = catalogue.run(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


def refused(catalogue: Catalogue, *words: str, arguments: tuple[str, ...] = ()) -> None:
    before = catalogue.state()
    ran = catalogue.run(*arguments)
    assert ran.code != 0
    for word in words:
        assert word in ran.err
    assert catalogue.state() == before


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("keys", [{}, BATCH], ids=["real time", "batch"])
def test_what_is_large_lies_there_and_nothing_else_does(tmp_path: Path, keys: dict[str, object]) -> None:
    catalogue = made(tmp_path / "c", data_dir=str(tmp_path / "large"), **keys)
    taken(catalogue)
    jobs = {"batch_requests_0001.jsonl", "batch_results_0001.jsonl"} if keys else set()
    assert names(tmp_path / "large") == {"belongs_to.json", "lock", "tables", "store", "scratch"} | jobs
    assert not names(catalogue.checkpoint) & {"tables", "store", "scratch", *jobs}
    assert {"ledger.sqlite", "ledger.copy.sqlite", "lock", "spool"} <= names(catalogue.checkpoint)
    assert "Bach" in taken(catalogue, "--search", "Bach")
    assert "all equal" in taken(catalogue, "--verify")
    assert "data folder" in taken(catalogue, "--check")


def test_the_data_is_moved_by_hand_and_nothing_is_paid_again(tmp_path: Path) -> None:
    catalogue = made(tmp_path / "c", **BATCH)
    taken(catalogue)
    large = tmp_path / "large"
    catalogue.configure(data_dir=str(large), **BATCH)
    refused(catalogue, "other files are not in", str(catalogue.checkpoint.resolve()), "To move it:")
    assert not (large / "tables").exists()
    for path in [catalogue.checkpoint / name for name in ("tables", "store")] + list(catalogue.checkpoint.glob("batch_*.jsonl")):
        shutil.move(path, large / path.name)
    jobs = catalogue.run("--batch-status", "--json").document
    taken(catalogue)
    assert catalogue.run("--batch-status", "--json").document == jobs
    assert "all equal" in taken(catalogue, "--verify")
    # And back.
    for path in [large / name for name in ("tables", "store")] + list(large.glob("batch_*.jsonl")):
        target = catalogue.checkpoint / path.name
        if target.is_dir():
            target.rmdir()
        shutil.move(path, target)
    catalogue.configure(**BATCH)
    assert "all equal" in taken(catalogue, "--verify")


def test_a_disk_that_is_not_mounted_is_no_empty_catalogue(tmp_path: Path) -> None:
    large = tmp_path / "large"
    catalogue = made(tmp_path / "c", data_dir=str(large))
    taken(catalogue)
    large.rename(tmp_path / "unmounted")
    refused(catalogue, "Is the disk of", "mounted?")
    assert not large.exists()
    large.mkdir()
    refused(catalogue, "Is the disk of", "mounted?")
    assert "3 records" in taken(catalogue, "--status") or "3" in taken(catalogue, "--status")
    shutil.rmtree(large)
    (tmp_path / "unmounted").rename(large)
    assert "all equal" in taken(catalogue, "--verify")


def test_the_folder_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large"
    taken(made(tmp_path / "c", data_dir=str(large)))
    other = made(tmp_path / "other", data_dir=str(large))
    ran = other.run()
    assert ran.code != 0
    assert "is the data_dir of another catalogue" in ran.err
    assert len(list((large / "tables").glob("strings_*"))) == 2


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    (large / "thesis.odt").write_text("mine")
    ran = made(tmp_path / "c", data_dir=str(large)).run()
    assert ran.code != 0
    assert "holds 'thesis.odt'" in ran.err
    assert names(large) == {"thesis.odt", "lock"}


def test_a_copied_checkpoint_folder_does_not_sweep_the_tables_of_the_original(tmp_path: Path) -> None:
    large = tmp_path / "large"
    original = made(tmp_path / "c", data_dir=str(large))
    taken(original)
    shutil.copytree(original.folder, tmp_path / "copy")
    copy = Catalogue(tmp_path / "copy")
    refused(copy, "was moved or copied")
    taken(copy, "--take-over")
    assert "all equal" in taken(copy, "--verify")
    refused(original, "is the data_dir of", "was moved or copied")
    taken(original, "--take-over")
    assert "all equal" in taken(original, "--verify")


def test_a_lost_ledger_is_restored_beside_the_data(tmp_path: Path) -> None:
    large = tmp_path / "large"
    catalogue = made(tmp_path / "c", data_dir=str(large))
    taken(catalogue)
    for path in catalogue.checkpoint.glob("ledger.sqlite*"):
        path.unlink()
    large.rename(tmp_path / "unmounted")
    large.mkdir()
    ran = catalogue.run("--restore-ledger")
    assert ran.code != 0
    assert "Is the disk of" in ran.err
    shutil.rmtree(large)
    (tmp_path / "unmounted").rename(large)
    taken(catalogue, "--restore-ledger")
    assert "all equal" in taken(catalogue, "--verify")
