"""The input is a snapshot: what is read, what is new, what left and came back, and that no string changes its number."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.identity import uuid_of
from pipeline.tables.snapshot import Work
from tests.tools import HEADER, Catalogue, record_texts

Row = tuple[str, str, str]
ROWS: list[Row] = [
    ("r1", "Bach", "Fugue"),
    ("r2", "Telemann", "Suite"),
    ("r3", "Bach", "Suite"),
    ("r4", "", "Fugue"),
]
FIELDS = {"person": "person", "title": "title"}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    return made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that the local service was asked for."""
    return record_texts(monkeypatch)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the input was read."""
    times: list[int] = []
    real = Work.take

    def take(*arguments: object) -> None:
        times.append(len(times) + 1)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Work, "take", take)
    return times


def runs(catalogue: Catalogue, *arguments: str) -> str:
    ran = catalogue.run(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


def stops(catalogue: Catalogue, *words: str, arguments: Sequence[str] = ()) -> None:
    """It stops with exit code 2 and these words, and nothing was changed."""
    before = catalogue.state()
    ran = catalogue.run("--quiet", *arguments)
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.err
    assert catalogue.state() == before


def frequencies(catalogue: Catalogue, field: str, scope: str = "full") -> dict[str, int]:
    texts = catalogue.strings(field)
    return {texts[row["row"]]: row["frequency"] for row in catalogue.table("frequencies", scope, field)}


def in_the_index(catalogue: Catalogue, text: str, field: str) -> int | None:
    """The frequency that a search shows for a text of a field; None when the index does not have it."""
    results = catalogue.run("--search", text, "--field", field, "--top", "100", "--json").document["results"]
    found = [result["frequency"] for result in results if result["text"] == text]
    return found[0] if found else None


def pending(catalogue: Catalogue) -> int:
    count = catalogue.run("--status", "--json").document["pending"]
    assert isinstance(count, int)
    return count


# What is read


def test_records_strings_occurrences_and_frequencies(catalogue: Catalogue) -> None:
    runs(catalogue, "--end", "preprocessing")
    assert catalogue.table("records", "full") == [
        {"record": place, "id": row[0], "file": "records.csv", "row": place + 2} for place, row in enumerate(ROWS)
    ]
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: ""}
    assert catalogue.strings("title") == {0: "Fugue", 1: "Suite"}
    assert [(row["record"], row["row"]) for row in catalogue.table("occurrences", "full", "person")] == [
        (0, 0),
        (1, 1),
        (2, 0),
        (3, 2),
    ]
    assert [(row["record"], row["row"]) for row in catalogue.table("occurrences", "full", "title")] == [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 0),
    ]
    assert frequencies(catalogue, "person") == {"Bach": 2, "Telemann": 1, "": 1}
    assert frequencies(catalogue, "title") == {"Fugue": 2, "Suite": 2}


def test_a_string_carries_the_uuid_of_its_field_and_text(catalogue: Catalogue) -> None:
    odd = ["Bach", "bach", "Bach ", "Dvo\u0159\u00e1k", "Dvor\u030c\u00e1k", "a:b", "\U0001d11e\n\u2028", "'; --"]
    catalogue.write([(str(place), text, text) for place, text in enumerate(odd)])
    runs(catalogue, "--end", "preprocessing")
    for field in FIELDS:
        rows = catalogue.table("strings", field=field)
        assert [(row["row"], row["text"], row["uuid"]) for row in rows] == [
            (place, text, uuid_of(field, text)) for place, text in enumerate(odd)
        ]


def test_many_strings_are_the_same_in_files_of_some_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [[(f"r{n}", f"person {n % 7}", f"title {n}") for n in range(count)] for count in (11, 23)]
    found = []
    for size in (1 << 20, 4):
        monkeypatch.setattr("pipeline.preprocessing._STRINGS_A_FILE", size)
        catalogue = Catalogue(tmp_path / str(size))
        catalogue.folder.mkdir()
        catalogue.configure()
        for rows in readings:
            catalogue.write(rows)
            runs(catalogue)
        with catalogue.ledger() as ledger:
            files = [(file.first_row, file.past_row, file.rows) for file in ledger.files("strings", field="title")]
        expected = (
            [(0, 11, 11), (11, 23, 12)] if size > 23 else [(0, 4, 4), (4, 8, 4), (8, 11, 3), (11, 15, 4), (15, 19, 4), (19, 23, 4)]
        )
        assert files == expected
        found.append([catalogue.table(table, field=field) for table in ("strings", "frequencies") for field in FIELDS])
        for path in catalogue.checkpoint.glob("ledger.sqlite*"):
            path.unlink()
        runs(catalogue, "--restore-ledger")
        assert "30 vectors compared, all equal" in runs(catalogue, "--verify")
        found[-1] += [catalogue.table("strings", field=field) for field in FIELDS]
    assert found[0] == found[1]


def test_a_text_that_is_both_person_and_title_is_two_strings(catalogue: Catalogue, sent: list[str]) -> None:
    catalogue.write([("r1", "Faust", "Faust"), ("r2", "Goethe", "Faust")])
    runs(catalogue)
    assert (catalogue.strings("person"), catalogue.strings("title")) == ({0: "Faust", 1: "Goethe"}, {0: "Faust"})
    assert sorted(sent) == ["Faust", "Faust", "Goethe"]
    assert (in_the_index(catalogue, "Faust", "person"), in_the_index(catalogue, "Faust", "title")) == (1, 2)


def test_an_empty_text_is_a_string_that_is_never_sent(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    assert "" not in sent
    assert sorted(sent) == ["Bach", "Fugue", "Suite", "Telemann"]
    assert pending(catalogue) == 0
    assert '"empty"' in (catalogue.checkpoint / "failures.csv").read_text(encoding="utf-8")


def test_a_template_leaves_out_the_lines_whose_columns_say_nothing(catalogue: Catalogue) -> None:
    catalogue.configure(
        fields={"both": "Who: {person} ({id})\nWhat: {title}\n", "braces": "{{{person}}}: {title}", "fixed": "A\n{title}"}
    )
    catalogue.write([("1", "Bach", "Fugue"), ("2", "", "Suite"), ("3", "Bach", " \t"), ("4", "", "")])
    runs(catalogue, "--end", "preprocessing")
    assert list(catalogue.strings("both").values()) == [
        "Who: Bach (1)\nWhat: Fugue",
        "Who:  (2)\nWhat: Suite",
        "Who: Bach (3)",
        "Who:  (4)",
    ]
    assert list(catalogue.strings("braces").values()) == ["{Bach}: Fugue", "{}: Suite", "{Bach}:  \t", ""]
    assert list(catalogue.strings("fixed").values()) == ["A\nFugue", "A\nSuite", ""]


# Reading again


def test_an_unchanged_input_is_not_read_again(catalogue: Catalogue, readings: list[int], sent: list[str]) -> None:
    runs(catalogue)
    before = catalogue.state()
    sent.clear()
    assert "is unchanged; 4 records" in runs(catalogue)
    assert (readings, sent) == ([1], [])
    assert catalogue.state() == before


def test_another_way_of_reading_reads_again(catalogue: Catalogue, readings: list[int]) -> None:
    runs(catalogue, "--end", "preprocessing")
    catalogue.configure(input_encoding="cp1252")
    runs(catalogue, "--end", "preprocessing")
    assert len(readings) == 2


def test_nothing_of_a_reading_is_left_in_scratch(catalogue: Catalogue) -> None:
    runs(catalogue, "--end", "preprocessing")
    assert [path for path in (catalogue.checkpoint / "scratch").rglob("*") if path.is_file()] == []


def test_added_rows_get_the_next_numbers_and_only_they_are_embedded(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    sent.clear()
    # In front of the others: the order of numbers is that of first records only within one reading.
    catalogue.write([("r0", "Finck", "Suite"), ("r9", "Isaac", "Motet"), *ROWS])
    runs(catalogue)
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: "", 3: "Finck", 4: "Isaac"}
    assert catalogue.strings("title") == {0: "Fugue", 1: "Suite", 2: "Motet"}
    assert sorted(sent) == ["Finck", "Isaac", "Motet"]
    assert frequencies(catalogue, "title") == {"Fugue": 2, "Suite": 3, "Motet": 1}
    assert catalogue.ids() == ["r0", "r9", "r1", "r2", "r3", "r4"]


def test_what_left_is_absent_and_keeps_its_number_and_vector(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    everything = {field: catalogue.strings(field) for field in FIELDS}
    catalogue.write([row for row in ROWS if row[0] != "r2"])
    sent.clear()
    runs(catalogue)
    assert {field: catalogue.strings(field) for field in FIELDS} == everything
    assert catalogue.present("person") == ["Bach", ""]
    assert catalogue.embedded("person") == ["Bach", "Telemann"]
    status = catalogue.run("--status", "--json").document["fields"]["person"]
    assert (status["present"], status["absent"], status["embedded"]) == (2, 1, 2)
    assert "Telemann" not in frequencies(catalogue, "person")
    assert sent == []

    catalogue.write(ROWS)
    runs(catalogue)
    assert {field: catalogue.strings(field) for field in FIELDS} == everything
    assert catalogue.present("person") == ["Bach", "Telemann", ""]
    assert sent == [], "what comes back is not paid for again"
    assert in_the_index(catalogue, "Telemann", "person") == 1


def test_a_changed_record_gives_its_new_string_the_next_number(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    sent.clear()
    catalogue.write([("r1", "Bach, J. S.", "Fugue"), *ROWS[1:]])
    runs(catalogue)
    assert catalogue.strings("person")[3] == "Bach, J. S."
    assert sent == ["Bach, J. S."]


def test_frequencies_follow_in_the_index_without_an_embedding(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    assert (in_the_index(catalogue, "Bach", "person"), in_the_index(catalogue, "Telemann", "person")) == (2, 1)
    sent.clear()
    catalogue.write([*[row for row in ROWS if row[1] != "Telemann"], ("r8", "Bach", "Suite"), ("r9", "Bach", "Fugue")])
    runs(catalogue)
    assert sent == []
    assert in_the_index(catalogue, "Bach", "person") == 4
    assert in_the_index(catalogue, "Telemann", "person") == 0
    assert (in_the_index(catalogue, "Fugue", "title"), in_the_index(catalogue, "Suite", "title")) == (3, 2)


def test_frequencies_follow_from_a_trial_to_the_whole(catalogue: Catalogue) -> None:
    runs(catalogue, "--limit", "2")
    assert (in_the_index(catalogue, "Bach", "person"), in_the_index(catalogue, "Suite", "title")) == (1, 1)
    runs(catalogue)
    assert (in_the_index(catalogue, "Bach", "person"), in_the_index(catalogue, "Suite", "title")) == (2, 2)


def test_resetting_preprocessing_reads_again_and_renumbers_nothing(
    catalogue: Catalogue, readings: list[int], sent: list[str]
) -> None:
    runs(catalogue)
    catalogue.write(list(reversed(ROWS)))
    runs(catalogue)
    everything = {field: catalogue.table("strings", field=field) for field in FIELDS}
    sent.clear()
    runs(catalogue, "--reset", "preprocessing")
    assert catalogue.run("--status", "--json").document["input"]["must_be_read_again"]
    runs(catalogue)
    assert len(readings) == 3
    assert {field: catalogue.table("strings", field=field) for field in FIELDS} == everything
    assert sent == []


# Another catalogue, other definitions


def test_fewer_than_half_of_the_known_ids_stop_the_run(catalogue: Catalogue) -> None:
    runs(catalogue)
    catalogue.write([ROWS[0], *((f"x{number}", "Finck", "Lied") for number in range(10))])
    stops(catalogue, "1 of 4 known records", "'records.csv'", "checkpoint_dir", "--accept-new-input")
    runs(catalogue, "--accept-new-input")
    assert len(catalogue.ids()) == 11
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: "", 3: "Finck"}
    assert "is unchanged" in runs(catalogue), "it is accepted once and for all"


def test_half_of_them_are_enough(catalogue: Catalogue) -> None:
    runs(catalogue)
    catalogue.write([*ROWS[:2], *((f"x{number}", "Finck", "Lied") for number in range(10))])
    runs(catalogue)
    assert len(catalogue.ids()) == 12


def test_a_changed_definition_of_embedded_strings_stops_and_names_both(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    catalogue.configure(fields={"person": "title", "title": "title"})
    stops(catalogue, "config.yml", "'person' was 'person' and is now 'title'", "--accept-new-input")
    stops(catalogue, "'person' was 'person'", arguments=["--dry-run"])
    sent.clear()
    runs(catalogue, "--accept-new-input")
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: "", 3: "Fugue", 4: "Suite"}
    assert catalogue.present("person") == ["Fugue", "Suite"]
    assert sorted(sent) == ["Fugue", "Suite"]
    assert "is unchanged" in runs(catalogue)


def test_another_template_with_the_same_texts_embeds_nothing_again(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    catalogue.configure(fields={"person": "{person}", "title": "title"})
    stops(catalogue, "'person' was 'person' and is now '{person}'")
    sent.clear()
    runs(catalogue, "--accept-new-input")
    assert sent == []
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: ""}


def test_a_changed_id_column_stops_and_names_both(catalogue: Catalogue, sent: list[str]) -> None:
    header = (*HEADER, "shelf")
    rows = [(*row, f"s{place}") for place, row in enumerate(ROWS)]
    catalogue.write(rows, header)
    runs(catalogue)
    catalogue.configure(id_column="shelf")
    stops(catalogue, "config.yml", "id_column was 'id' and is now 'shelf'", "--accept-new-input")
    sent.clear()
    runs(catalogue, "--accept-new-input")
    assert catalogue.ids() == ["s0", "s1", "s2", "s3"]
    assert sent == []
    assert "is unchanged" in runs(catalogue)


def test_before_anything_was_embedded_definitions_may_change_freely(catalogue: Catalogue) -> None:
    catalogue.write([(*row, f"s{place}") for place, row in enumerate(ROWS)], (*HEADER, "shelf"))
    runs(catalogue, "--end", "preprocessing")
    catalogue.configure(id_column="shelf", fields={"person": "By {person}", "title": "title"})
    runs(catalogue)
    assert catalogue.ids() == ["s0", "s1", "s2", "s3"]
    assert catalogue.present("person") == ["", "By Bach", "By Telemann"]
    assert sorted(catalogue.embedded("person")) == ["By Bach", "By Telemann"]


def test_a_field_whose_strings_are_not_embedded_may_change_although_others_are(catalogue: Catalogue) -> None:
    runs(catalogue, "--fields", "title")
    catalogue.configure(fields={"person": "By {person}", "title": "title"})
    runs(catalogue)
    assert sorted(catalogue.embedded("person")) == ["By Bach", "By Telemann"]


def test_a_new_field_is_read_and_embedded_and_the_others_are_not_touched(catalogue: Catalogue, sent: list[str]) -> None:
    catalogue.configure(fields={"person": "person"})
    runs(catalogue)
    assert sorted(sent) == ["Bach", "Telemann"]
    sent.clear()
    catalogue.configure(fields=FIELDS)
    runs(catalogue)
    assert sorted(sent) == ["Fugue", "Suite"]
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: ""}


def test_a_field_that_is_left_out_is_kept_and_comes_back_for_nothing(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    sent.clear()
    catalogue.configure(fields={"title": "title"})
    catalogue.write([*ROWS, ("r5", "Bach", "Motet")])
    runs(catalogue)
    assert sent == ["Motet"]
    assert catalogue.embedded("person") == ["Bach", "Telemann"]
    assert in_the_index(catalogue, "Fugue", "title") == 2
    catalogue.configure(fields=FIELDS)
    runs(catalogue)
    assert sent == ["Motet"]
    assert catalogue.present("person") == ["Bach", "Telemann", ""]
    assert in_the_index(catalogue, "Bach", "person") == 3
    assert catalogue.run("--verify", "--quiet").code == 0


def test_a_fourth_field_comes_by_config_alone(catalogue: Catalogue, sent: list[str]) -> None:
    catalogue.configure(fields={**FIELDS, "composite": "Contributor: {person}\nTitle: {title}"})
    runs(catalogue)
    sent.clear()
    catalogue.configure(
        fields={**FIELDS, "composite": "Contributor: {person}\nTitle: {title}", "what_by_whom": "{title} by {person}"}
    )
    runs(catalogue)
    assert sorted(sent) == ["Fugue by ", "Fugue by Bach", "Suite by Bach", "Suite by Telemann"]
    found = catalogue.run("--search", "Suite by Telemann", "--json").document["results"][0]
    assert (found["field"], found["text"], found["frequency"]) == ("what_by_whom", "Suite by Telemann", 1)
    assert found["first_record_ids"] == ["r2"]
    assert found["similarity"] == pytest.approx(1.0, abs=1e-5)


# Trials


def test_a_trial_marks_nothing_absent_and_a_full_run_does_the_rest(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue, "--limit", "2")
    assert sorted(sent) == ["Bach", "Fugue", "Suite", "Telemann"]
    assert catalogue.present("person", "trial") == ["Bach", "Telemann"]
    catalogue.write([*ROWS, ("r5", "Finck", "Lied")])
    sent.clear()
    runs(catalogue, "--limit", "2")
    assert sent == []
    runs(catalogue)
    assert sorted(sent) == ["Finck", "Lied"]
    assert catalogue.ids() == ["r1", "r2", "r3", "r4", "r5"]
    assert catalogue.strings("person") == {0: "Bach", 1: "Telemann", 2: "", 3: "Finck"}
    assert catalogue.rows("present", "trial", "person") == []
    assert pending(catalogue) == 0


def test_a_trial_after_the_whole_reads_nothing_and_is_about_its_first_records(
    catalogue: Catalogue, readings: list[int], sent: list[str]
) -> None:
    runs(catalogue, "--end", "preprocessing")
    before = catalogue.run("--status", "--json").document["fields"]
    runs(catalogue, "--limit", "1")
    assert (len(readings), sorted(sent)) == (1, ["Bach", "Fugue"])
    after = catalogue.run("--status", "--json").document
    assert {name: field["present"] for name, field in after["fields"].items()} == {
        name: field["present"] for name, field in before.items()
    }
    assert all(field["absent"] == 0 for field in after["fields"].values())
    sent.clear()
    runs(catalogue)
    assert (len(readings), sorted(sent)) == (1, ["Suite", "Telemann"])


def test_a_trial_is_no_change_of_the_input(catalogue: Catalogue, readings: list[int], sent: list[str]) -> None:
    runs(catalogue)
    before = catalogue.state()
    sent.clear()
    runs(catalogue, "--limit", "1")
    runs(catalogue)
    assert (len(readings), sent) == (1, [])
    assert catalogue.state() == before


def test_a_trial_of_a_changed_input_leaves_the_whole_as_it_was_read(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue)
    sent.clear()
    catalogue.write([("r0", "Finck", "Lied"), *ROWS, ("r5", "Isaac", "Motet")])
    runs(catalogue, "--limit", "2")
    assert sorted(sent) == ["Finck", "Lied"]
    assert catalogue.present("person") == ["Bach", "Telemann", ""]
    assert catalogue.present("person", "trial") == ["Bach", "Finck"]
    runs(catalogue)
    assert sorted(sent) == ["Finck", "Isaac", "Lied", "Motet"]
    assert catalogue.present("person") == ["Bach", "Telemann", "", "Finck", "Isaac"]
    assert [in_the_index(catalogue, name, "person") for name in ("Bach", "Finck", "Isaac")] == [2, 1, 1]


def test_a_larger_trial_goes_on_from_a_smaller_one(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue, "--limit", "1")
    runs(catalogue, "--limit", "3")
    assert sorted(sent) == ["Bach", "Fugue", "Suite", "Telemann"]
    assert catalogue.ids("trial") == ["r1", "r2", "r3"]


def test_a_trial_of_more_than_there_is_is_the_whole(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue, "--limit", "1000")
    assert catalogue.ids("trial") == ["r1", "r2", "r3", "r4"]
    sent.clear()
    runs(catalogue)
    assert sent == []
    assert catalogue.ids() == ["r1", "r2", "r3", "r4"]


def test_only_the_fields_that_are_asked_for_are_embedded(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue, "--fields", "title")
    assert sorted(sent) == ["Fugue", "Suite"]
    assert catalogue.present("person") == ["Bach", "Telemann", ""], "all are read"
    assert catalogue.embedded("person") == []
    runs(catalogue, "--fields", "title, person")
    assert sorted(sent) == ["Bach", "Fugue", "Suite", "Telemann"]
    assert pending(catalogue) == 0


def test_limit_and_fields_go_together(catalogue: Catalogue, sent: list[str]) -> None:
    runs(catalogue, "--limit", "1", "--fields", "person")
    assert sent == ["Bach"]


# Any history of snapshots

TEXTS = st.sampled_from(["", " ", "a", "A", "a ", "b", "c", "d:e", "é", "e\u0301", "\n", "🎻"])
IDS = st.sampled_from([f"id {number}" for number in range(6)])
SNAPSHOTS = st.lists(st.lists(st.tuples(IDS, TEXTS, TEXTS), min_size=1, max_size=6), min_size=1, max_size=4)


def kept(rows: Sequence[Row]) -> list[Row]:
    """The first row of each id: what the records are."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row[0], row)
    return list(first.values())


@settings(max_examples=25, deadline=None)
@given(SNAPSHOTS, st.data())
def test_after_any_history_the_strings_are_those_of_the_last_snapshot_and_none_was_renumbered(
    snapshots: list[list[Row]], data: st.DataObject
) -> None:
    expected: dict[str, list[str]] = {field: [] for field in FIELDS}  # texts by row number, as a plain list would have them
    with tempfile.TemporaryDirectory() as name:
        catalogue = Catalogue(Path(name))
        catalogue.configure()
        for rows in snapshots:
            catalogue.write(rows)
            if data.draw(st.booleans(), label="a trial first"):
                limit = data.draw(st.integers(1, 3), label="limit")
                runs(catalogue, "--end", "preprocessing", "--accept-new-input", "--quiet", "--limit", str(limit))
                number(expected, kept(rows[:limit]))
            runs(catalogue, "--end", "preprocessing", "--accept-new-input", "--quiet")
            number(expected, kept(rows))
            for place, field in enumerate(FIELDS, start=1):
                texts = [row[place] for row in kept(rows)]
                assert list(catalogue.strings(field).items()) == list(enumerate(expected[field]))
                assert sorted(catalogue.present(field)) == sorted(set(texts)), "a fresh catalogue would have the same"
                assert frequencies(catalogue, field) == {text: texts.count(text) for text in texts}
                mentions = catalogue.table("occurrences", "full", field)
                assert [expected[field][mention["row"]] for mention in mentions] == texts
            assert catalogue.ids() == [row[0] for row in kept(rows)]


def number(expected: dict[str, list[str]], rows: Sequence[Row]) -> None:
    """New texts go to the end, in the order of their first record."""
    for place, field in enumerate(FIELDS, start=1):
        expected[field] += [text for text in dict.fromkeys(row[place] for row in rows) if text not in expected[field]]
