"""Another model in real time: built beside the first at its own price, read only when it is whole, and the old one dropped by name.

What was embedded is asked of the service; what a generation has is compared file by file.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forks import KILLED, Asked, Call, Fault, Forks
from tests.tools import Catalogue, Ran, files_of
from tests.wire import FaultyService

ROWS = [(str(number), f"Person {number} of some name", f"Title {number % 3}") for number in range(6)]
STRINGS = 6 + 3
FIRST, SECOND = "local-lexical-384", "local-lexical-384 (64 dimensions)"
LONG: dict[str, Any] = {"price_per_million": 1000}
SHORT: dict[str, Any] = {"price_per_million": 3000, "embedding_dimensions": 64}


class Priced(Catalogue):
    """A catalogue at a service by URL: one model, and the same in 64 dimensions at thrice the price."""

    def at(self, service: FaultyService, name: str = "ours", **keys: object) -> None:
        self.configure(
            embedding_service=service.base_url,
            service_name=name,
            embedding_model=FIRST,
            max_inputs_per_request=3,
            **keys,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = good(self.run("--status", "--json")).document
        return found

    def generations(self) -> dict[str, dict[str, Any]]:
        return {one["words"].split(" ", 1)[1]: one for one in self.status()["generations"]}

    def files(self, part: str) -> dict[str, str]:
        """What lies there of a generation or a job, byte by byte."""
        found = files_of(self.checkpoint)
        return {name: digest for name, digest in found.items() if part in name and not name.endswith(("-wal", "-shm"))}


@pytest.fixture
def service() -> Iterator[FaultyService]:
    with FaultyService() as started:
        yield started


@pytest.fixture
def done(tmp_path: Path, service: FaultyService) -> Priced:
    """After a run with the first model."""
    catalogue = Priced(tmp_path)
    catalogue.at(service, **LONG)
    catalogue.write(ROWS)
    good(catalogue.run())
    return catalogue


def good(ran: Ran) -> Ran:
    assert ran.code == 0, ran.out + ran.err
    return ran


def test_it_has_its_own_price_is_built_beside_and_read_when_it_is_whole(done: Priced, service: FaultyService) -> None:
    first = done.generations()[FIRST]
    texts, before = Counter(service.embedded), done.files(first["id"])
    done.at(service, **SHORT)
    dry = good(done.run("--dry-run", "--json")).document
    assert (dry["pending"], dry["generation_in_use"]) == (STRINGS, first["id"])
    assert dry["generation"] != first["id"]
    assert "is another model than the one in use, ours local-lexical-384, which stays in use" in done.run("--dry-run").out
    begun = good(done.run("--fields", "person"))
    assert "Another model: 6 strings to embed with ours local-lexical-384 (64 dimensions), for at most $" in begun.out
    assert "is in use" not in begun.out.replace("stays in use", "")
    # A part of it is there. Whoever searches, with either config, for a stored text or another, reads the first.
    for text in ("Person 1 of some name", "Title 2", "nobody at all"):
        found = good(done.run("--search", text, "--json")).document
        assert (found["generation"], len(found["results"])) == (first["id"], STRINGS)
    assert (
        "(64 dimensions) is not complete; until it is, ours local-lexical-384 is searched." in done.run("--search", "Title 2").out
    )
    assert "The index is well: 6 strings" in good(done.run("--verify")).out, "what there is of it"
    assert done.generations()[FIRST]["in_use"]
    rest = good(done.run())
    assert f"Verified: {STRINGS} strings in the index, {STRINGS} vectors compared, all equal. From now on" in rest.out
    second = done.generations()[SECOND]
    assert second["in_use"]
    assert second["embedded"] == second["indexed"] == STRINGS
    assert 2.5 * first["paid_usd"] < second["paid_usd"] <= 1.01 * dry["real_time_usd"], (
        "thrice the price, and never above what was shown"
    )
    assert good(done.run("--search", "Title 2", "--json")).document["generation"] == second["id"]
    assert f"The index is well: {STRINGS} strings" in good(done.run("--verify")).out
    assert done.files(first["id"]) == before
    assert service.embedded - texts == texts + Counter({"nobody at all": 1}), "each string once by each model"
    done.at(service, **LONG)  # and back again, at no cost
    assert "From now on ours local-lexical-384 is in use" in good(done.run()).out
    assert done.generations()[FIRST]["in_use"]


def test_a_text_that_only_the_model_in_use_could_embed_is_refused_with_the_way_out(done: Priced, service: FaultyService) -> None:
    done.at(service, name="theirs", **SHORT)
    requests = service.requests
    ran = done.run("--search", "nobody at all")
    assert ran.code == 2
    assert "Search for a stored string, or with the config of before." in ran.err
    assert service.requests == requests
    assert done.run("--search", "Title 1", "--json").document["results"][0]["text"] == "Title 1"


def test_it_does_not_take_over_before_it_has_an_index(done: Priced, service: FaultyService) -> None:
    first = done.generations()[FIRST]["id"]
    done.at(service, **SHORT, index_later=True)
    good(done.run())
    assert done.generations()[FIRST]["in_use"]
    assert done.run("--search", "Title 1", "--json").document["generation"] == first
    done.at(service, **SHORT)
    assert "From now on" in good(done.run()).out
    assert done.generations()[SECOND]["in_use"]


def test_an_old_one_is_dropped_by_its_name_and_the_other_stays_byte_for_byte(done: Priced, service: FaultyService) -> None:
    done.at(service, **SHORT)
    good(done.run())
    first, second = done.generations()[FIRST], done.generations()[SECOND]
    status = done.run("--status").out
    assert f"{first['id']:<12}" in status
    assert "python main.py --drop-embeddings NAME" in status
    kept, requests, before = done.files(second["id"]), service.requests, done.state()
    refused = {
        (second["id"],): f"{second['id']} ({STRINGS} strings of ours {SECOND}, for which $",
        ("no-such", "--yes"): f"there are: {first['id']} (ours {FIRST}), {second['id']} (ours {SECOND}). Nothing was dropped.",
        (
            first["id"],
        ): f"This would drop the embeddings of {STRINGS} strings of ours {FIRST}, for which ${first['paid_usd']:.4f} was",
    }
    for typed, said in refused.items():
        ran = done.run("--drop-embeddings", *typed)
        assert (ran.code, said in ran.err) == (2, True), ran.err
    assert done.run("--drop-embeddings", second["id"], "--yes").code == 2, "it is what is searched"
    assert done.state() == before
    dropped = good(done.run("--drop-embeddings", first["id"], "--yes", "--json")).document
    assert dropped == {"generation": first["id"], "dropped": STRINGS, "paid_usd": pytest.approx(first["paid_usd"])}
    assert done.files(first["id"]) == {}
    assert done.files(second["id"]) == kept
    assert list(done.generations()) == [SECOND]
    assert "Nothing was left to do" in good(done.run()).out
    assert service.requests == requests
    assert done.status()["spent_usd"] == pytest.approx(first["paid_usd"] + second["paid_usd"]), "what is paid is paid"


def test_answers_of_a_model_that_the_config_no_longer_names_are_booked_at_its_price(
    done: Priced, service: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = done.status()["spent_usd"]
    done.write([*ROWS, ("7", "somebody new", "")])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr("pipeline.embedding_and_indexing.collect", killed)
        assert done.run().code == 130
    done.at(service, name="theirs", **SHORT)
    good(done.run("--limit", "1"))
    price = done.generations()[FIRST]["paid_usd"] - paid
    assert price == pytest.approx(len("somebody new") / 4 * 1000 / 1e6)


CALLS: list[tuple[Call, int]] = [
    *(("commit", at) for at in (2, 4, 6)), *(("fsync", at) for at in (2, 4)), *(("unlink", at) for at in (2, 3, 5, 7)),
]  # fmt: skip


def test_killed_while_it_drops_and_typed_again_all_of_one_is_gone_and_nothing_of_the_other(tmp_path: Path) -> None:
    with Forks(tmp_path) as forks:
        catalogue, now = Priced(tmp_path / "catalogue"), 1_790_000_000.0
        for folder in ("catalogue", "service"):
            (tmp_path / folder).mkdir()
        catalogue.configure(use_batch_embeddings=True)
        catalogue.write(ROWS)

        def typed(*command: str, fault: Fault | None = None) -> int:
            nonlocal now
            words = ("main.py", "--config", str(catalogue.config), *command)
            ended = forks.run(Asked(words, str(tmp_path / "service"), now, fault=fault))
            assert "Traceback" not in ended.err, ended.err
            now = ended.now + 60
            return ended.code

        assert typed() == 0
        catalogue.configure(use_batch_embeddings=True, embedding_dimensions=64)
        assert typed() == 0
        first, second = (catalogue.generations()[name]["id"] for name in (FIRST, SECOND))
        kept = [catalogue.files(name) for name in (second, "_0002.jsonl")]
        shutil.copytree(catalogue.folder, tmp_path / "saved")
        killed = 0
        for number, (call, at) in enumerate(CALLS):
            shutil.rmtree(catalogue.folder)
            shutil.copytree(tmp_path / "saved", catalogue.folder)
            if typed("--drop-embeddings", first, "--yes", fault=Fault(call, at, "killed before")) != KILLED:
                continue
            killed += 1
            # The next run sweeps what no commit names; or the same is typed again.
            assert typed(*(("--drop-embeddings", first, "--yes") if number % 2 else ("--quiet",))) == 0
            is_there = FIRST in catalogue.generations()
            assert bool(catalogue.files(first)) == is_there, (call, at)
            assert (catalogue.checkpoint / "batch_results_0001.jsonl").exists() == is_there, (call, at)
            assert [catalogue.files(name) for name in (second, "_0002.jsonl")] == kept, (call, at)
        assert killed >= 6, "without kills it proves nothing"
