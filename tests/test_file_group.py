"""`file_group`: a checkpoint folder that colleagues share, and one that is closed to all but its owner."""

from __future__ import annotations

import grp
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.commands import batch_manager, main
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.rights import set_rights
from tests.tools import Catalogue

ROOT = Path(__file__).resolve().parent.parent
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may run the product as two other users")
GROUP = 54_321 if IS_ROOT else max({os.getegid(), *os.getgroups()})
ANNA, BERT, EVE = 54_001, 54_002, 54_003
ROWS = [("1", "Bach", "Fugue"), ("2", "Mozart", "Mass"), ("3", "Bach", "Suite")]


@pytest.fixture(params=[0, 0o022, 0o077], ids=["umask 0", "umask 022", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param, "a command gives the user's umask back"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.write([*ROWS, ("", "no id", "x"), ("4", " ", "Toccata")])
    return made


def rights(folder: Path) -> dict[str, tuple[str, int]]:
    """Everything in a folder and the folder itself: mode in octal, and group."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (f"{stat.S_IMODE(facts.st_mode):o}", facts.st_gid)
    return found


def assert_open(folder: Path, group: int = GROUP) -> None:
    for name, found in rights(folder).items():
        assert found == ("2770" if (folder / name).is_dir() else "660", group), name


def assert_closed(folder: Path) -> None:
    for name, (mode, _) in rights(folder).items():
        assert mode == ("700" if (folder / name).is_dir() else "600"), name


def everything(catalogue: Catalogue) -> None:
    """Every kind of file that there is: both modes, the index, lists, results, exports for notebooks, a restored ledger."""
    config = ["--config", str(catalogue.config)]
    assert main.main([*config, "--quiet", "--fields", "person"]) == 0
    for command in ("--create", "--status", "--advance"):
        assert batch_manager.main([*config, command, "--quiet"]) == 0
    assert main.main([*config, "--quiet", "--search", "Bach"]) == 0
    assert main.main([*config, "--quiet", "--reindex"]) == 0
    place = Checkpoint(catalogue.checkpoint)
    for path in (place.ledger, *place.logs):
        path.unlink(missing_ok=True)
    assert main.main([*config, "--quiet", "--restore-ledger"]) == 0
    assert main.main([*config, "--quiet"]) == 0
    names = {path.name for path in catalogue.checkpoint.rglob("*")}
    assert names >= {
        "ledger.sqlite", "ledger.copy.sqlite", "lock", "tables", "spool", "store", "scratch", "local_service", "state.sqlite",
        "state.sqlite.files", "batch_requests_0001.jsonl", "batch_results_0001.jsonl", "batch_jobs.pkl", "rejected_rows.csv",
        "failures.csv", "report.html", "report.json",
    }  # fmt: skip


def test_without_a_group_everything_is_for_its_owner(catalogue: Catalogue, umask: int) -> None:
    catalogue.configure(use_batch_embeddings=False)
    everything(catalogue)
    assert_closed(catalogue.checkpoint)


def test_with_a_group_everything_is_for_the_group_as_well(catalogue: Catalogue, umask: int) -> None:
    catalogue.configure(file_group=GROUP)
    everything(catalogue)
    assert_open(catalogue.checkpoint)


def test_side_files_of_sqlite_are_for_the_group_while_a_run_is_at_work(catalogue: Catalogue) -> None:
    """A colleague's `--status` reads them meanwhile; the draft of a copy may be left by a kill."""
    from pipeline.checkpoint import writing
    from pipeline.rights import keep_private, share

    catalogue.configure(file_group=GROUP)
    assert catalogue.run("--quiet").code == 0
    before = keep_private()
    try:
        share(GROUP, "config.yml")
        with writing(Checkpoint(catalogue.checkpoint), "test", group=GROUP) as ledger:
            ledger.set_meta("x", "y")
            names = set(rights(catalogue.checkpoint))
            assert {"ledger.sqlite-wal", "ledger.sqlite-shm"} <= names
            assert_open(catalogue.checkpoint)
    finally:
        os.umask(before)


def test_turned_on_it_opens_what_is_there_and_turned_off_it_closes_it_again(catalogue: Catalogue) -> None:
    catalogue.configure()
    everything(catalogue)
    state = catalogue.state()
    catalogue.configure(file_group=GROUP)
    assert catalogue.run("--quiet").code == 0
    assert_open(catalogue.checkpoint)
    catalogue.configure()
    assert catalogue.run("--quiet").code == 0
    assert_closed(catalogue.checkpoint)
    assert {name for name in catalogue.state() if name.startswith("tables/")} == {
        name for name in state if name.startswith("tables/")
    }


def test_opening_that_was_cut_off_is_begun_again(catalogue: Catalogue) -> None:
    """The folder itself is opened last: as long as it is not, the next run looks at everything."""
    catalogue.configure()
    everything(catalogue)
    set_rights(catalogue.checkpoint, GROUP)
    catalogue.checkpoint.chmod(0o700)
    (catalogue.checkpoint / "ledger.sqlite").chmod(0o600)
    set_rights(catalogue.checkpoint, GROUP)
    assert_open(catalogue.checkpoint)
    set_rights(catalogue.checkpoint, None)
    assert_closed(catalogue.checkpoint)


def test_what_links_lead_to_is_left_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("x")
    theirs.chmod(0o604)
    catalogue.configure()
    assert catalogue.run("--quiet").code == 0
    (catalogue.checkpoint / "tables" / "a").symlink_to(theirs)
    set_rights(catalogue.checkpoint, GROUP)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o604


def test_what_is_exported_keeps_the_users_own_umask(catalogue: Catalogue, umask: int) -> None:
    catalogue.configure(file_group=GROUP)
    assert catalogue.run("--quiet").code == 0
    target, config = catalogue.folder / "out.parquet", catalogue.folder / "new.yml"
    assert catalogue.run("--export-embeddings", str(target)).code == 0
    assert catalogue.run("--init", str(config)).code == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(config.stat().st_mode) == 0o666 & ~umask
    assert target.stat().st_gid == catalogue.folder.stat().st_gid


# What is refused


@pytest.mark.parametrize("value", ["no such group", "", -1, 2**32 - 1, "99999999999", True, 1.5, ["a"], "\0"])
def test_what_is_no_group_is_named_with_its_key(tmp_path: Path, value: object) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure(file_group=value)
    with pytest.raises(ConfigError, match=r"file_group is .*; it must be the name or the number of a group of this machine\."):
        load_config(catalogue.config)


def test_a_group_has_a_name_or_a_number(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    known = grp.getgrall()[0]
    for value in (known.gr_name, known.gr_gid, str(known.gr_gid)):
        catalogue.configure(file_group=value)
        assert load_config(catalogue.config).file_group == known.gr_gid


@pytest.mark.skipif(IS_ROOT, reason="root is a member of every group; see the trial with two users")
def test_a_group_of_others_stops_before_anything_is_changed(catalogue: Catalogue) -> None:
    catalogue.configure(file_group=next(number for number in range(1, 70_000) if number not in {os.getegid(), *os.getgroups()}))
    ran = catalogue.run()
    assert ran.code == 2
    assert "you are not a member of that group. Nothing was changed" in ran.err
    assert not catalogue.checkpoint.exists()


# Two users, one folder


_FORKS = """
import json, os, sys, traceback
from pathlib import Path
from pipeline.commands import batch_manager, main
from tests.test_file_group import everything
from tests.tools import Catalogue

# Another user may not be able to read Python's own files where they are: all that a run imports is imported now.
warm = Catalogue(Path(sys.argv[1]))
warm.configure()
warm.write([("1", "Bach", "Fugue"), ("", "x", "x"), ("2", " ", "x")])
everything(warm)
for command in (["--status"], ["--verify"], ["--check"], ["--take-over"], ["--export-embeddings", sys.argv[1] + "/a.parquet"]):
    main.main(["--config", str(warm.config), *command])
sys.stdout.flush()
print("ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setgroups(asked["groups"])
        os.setgid(asked["user"])
        os.setuid(asked["user"])
        os.umask(0o022)
        code = 1
        try:
            code = {"main.py": main, "batch_manager.py": batch_manager}[asked["program"]].main(asked["arguments"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr, flush=True)
"""


class Office:
    """Users by number, who are members of GROUP or not, and a folder that all may look into.

    A process of root forks a run of the product for each command, and gives up all its rights before the first line of it.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.catalogue = Catalogue(folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "HOME": "/nonexistent"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKS, str(scratch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._hear("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _hear(self, until: str) -> tuple[str, str]:
        """What was said, and the line that ends it."""
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            if line.startswith(until):
                return said, line
            said += line
        raise AssertionError(said)

    def run(self, user: int, *arguments: str, program: str = "main.py", member: bool = True) -> tuple[int, str]:
        assert self._process.stdin is not None
        asked = {"user": user, "groups": [GROUP] if member else [], "program": program}
        self._process.stdin.write(json.dumps({**asked, "arguments": ["--config", str(self.catalogue.config), *arguments]}) + "\n")
        self._process.stdin.flush()
        said, ended = self._hear("ended")
        return int(ended.split()[1]), said


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    folder = Path(tempfile.mkdtemp(prefix="namesake-office-"))  # not below pytest's own, which is for root alone
    try:
        with Office(folder, tmp_path) as made:
            folder.chmod(0o777)
            made.catalogue.configure(file_group=GROUP)
            made.catalogue.write(ROWS)
            for path in (made.catalogue.config, folder / "records.csv"):
                path.chmod(0o644)
            yield made
    finally:
        shutil.rmtree(folder)


def is_anyones(folder: Path) -> None:
    """Nothing in it keeps a member out, whoever made it."""
    assert_open(folder)
    assert {path.stat().st_uid for path in folder.rglob("*")} == {ANNA, BERT}


@needs_root
def test_two_users_take_turns_on_one_folder(office: Office) -> None:
    """Each opens, writes and replaces what the other made: in real time, by batch, in the index, with a restored ledger."""
    catalogue = office.catalogue
    rows = list(ROWS)
    for turn, user in enumerate([ANNA, BERT, ANNA, BERT]):
        rows.append((f"new {turn}", f"Person {turn}", f"Title {turn}"))
        catalogue.write(rows)
        code, said = office.run(user, "--quiet")
        assert code == 0, said
    is_anyones(catalogue.checkpoint)
    for turn, user in enumerate([BERT, ANNA, BERT]):
        rows.append((f"later {turn}", f"Other {turn}", f"Work {turn}"))
        catalogue.write(rows)
        for command in ("--create", "--status"):
            code, said = office.run(user, command, program="batch_manager.py")
            assert code == 0, said
        colleague = ANNA if user == BERT else BERT
        code, said = office.run(colleague, "--download", program="batch_manager.py")
        assert code == 0, said
    for user in (ANNA, BERT):
        target = f"{catalogue.folder}/{user}.parquet"
        for words in ("--status", "--search Bach", "--reindex", "--verify", "--check", f"--export-embeddings {target}"):
            code, said = office.run(user, *words.split())
            assert code == 0, said
    is_anyones(catalogue.checkpoint)
    place = Checkpoint(catalogue.checkpoint)
    for user in (ANNA, BERT):
        for path in (place.ledger, *place.logs):
            path.unlink(missing_ok=True)
        for word in ("--restore-ledger", "--quiet", "--take-over"):
            code, said = office.run(user, word)
            assert code == 0, said
    is_anyones(catalogue.checkpoint)
    assert len(catalogue.embedded("title")) == len({row[2] for row in rows})


@needs_root
def test_who_is_no_member_is_kept_out_and_told_so(office: Office) -> None:
    assert office.run(ANNA, "--quiet")[0] == 0
    before = rights(office.catalogue.checkpoint)
    code, said = office.run(EVE, "--quiet", member=False)
    assert code == 2
    assert "you are not a member of that group. Nothing was changed" in said
    code, said = office.run(EVE, "--quiet", "--set", "file_group=null", member=False)
    assert code == 2, said
    assert "Traceback" not in said
    assert rights(office.catalogue.checkpoint) == before


@needs_root
def test_only_the_owner_of_a_folder_opens_and_closes_it(office: Office) -> None:
    catalogue = office.catalogue
    assert office.run(ANNA, "--quiet")[0] == 0
    catalogue.write([*ROWS, ("5", "Haydn", "Creation")])
    assert office.run(BERT, "--quiet")[0] == 0
    catalogue.configure()
    before = rights(catalogue.checkpoint)
    code, said = office.run(BERT, "--quiet")
    assert code == 2
    assert f"{catalogue.checkpoint} belongs to user {ANNA} and can be closed to the group by its owner alone" in said
    assert rights(catalogue.checkpoint) == before
    code, said = office.run(ANNA, "--quiet")
    assert code == 0, said
    assert rights(catalogue.checkpoint)["."][0] == "700"
    catalogue.configure(file_group=GROUP)
    code, said = office.run(ANNA, "--quiet")
    assert code == 0, said
    assert_open(catalogue.checkpoint)
