"""Who may read and write state: its owner alone, or a group of the machine as well (`file_group`).

Folders that a group shares carry the set-group-id bit, by which whatever is made inside belongs to the group, and may be
written by it; that is how a folder is recognised. Who writes files elsewhere (DuckDB, Arrow, NumPy) asks for the usual
rights, and the umask of the process makes them right. Here both are set, and a folder is brought from one way to the
other. What the files are is not known here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pipeline.errors import CheckpointError, ConfigError

_FOR_OWNER, _FOR_GROUP = 0o077, 0o007
_OPEN_FOLDER, _CLOSED_FOLDER = 0o2770, 0o700
_OPEN_FILE, _CLOSED_FILE = 0o660, 0o600


def keep_private() -> int:
    """From now on what this process makes is for its user alone; the umask of before."""
    return os.umask(_FOR_OWNER)


def share(group: int, config: str) -> None:
    """From now on what this process makes is for the group of its folder as well."""
    if os.geteuid() != 0 and group not in {os.getegid(), *os.getgroups()}:
        raise ConfigError(
            f"{config}: file_group is {group_name(group)}, and you are not a member of that group. Nothing was changed. Be made "
            "one (then log in again), set another group, or remove file_group."
        )
    os.umask(_FOR_GROUP)


def file_mode(folder: Path) -> int:
    """The rights of a file that is made in a folder."""
    return _OPEN_FILE if _is_shared(folder.stat().st_mode) else _CLOSED_FILE


def make_folder(path: Path) -> None:
    """A folder in one that is there, with its rights, if there is none yet."""
    path.mkdir(mode=_OPEN_FOLDER if _is_shared(path.parent.stat().st_mode) else _CLOSED_FOLDER, exist_ok=True)


def make_file(path: Path) -> None:
    """An empty file, if there is none yet: what SQLite makes by itself no group may write."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, file_mode(path.parent)))


def _is_shared(mode: int) -> bool:
    return mode & stat.S_ISGID != 0 and mode & stat.S_IWGRP != 0


def set_rights(root: Path, group: int | None) -> None:
    """Open a folder that is there to a group, or close it again. One that is right already costs one look.

    The folder itself comes last: cut off by a kill, the next run begins again.
    """
    now = root.stat()
    if group is None:
        if not _is_shared(now.st_mode):
            return
    elif now.st_gid == group and stat.S_IMODE(now.st_mode) == _OPEN_FOLDER:
        return
    wrong = [path for path in (*_below(root), root) if not _is_right(path, group)]
    _refuse_foreign(wrong, root, group)
    for path in wrong:
        with contextlib.suppress(FileNotFoundError):  # SQLite's side files go when their last reader does
            found = path.lstat()
            if os.geteuid() not in (0, found.st_uid):
                continue  # a colleague's, behind a folder that is about to be closed
            if group is not None:
                os.chown(path, -1, group)
            path.chmod(_mode(found.st_mode, group))


def _below(root: Path) -> list[Path]:
    """Everything in a folder but links, which are nobody's state."""
    return [path for path in sorted(root.rglob("*")) if not path.is_symlink()]


def _mode(found: int, group: int | None) -> int:
    if stat.S_ISDIR(found):
        return _CLOSED_FOLDER if group is None else _OPEN_FOLDER
    return _CLOSED_FILE if group is None else _OPEN_FILE


def _is_right(path: Path, group: int | None) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_IMODE(found.st_mode) == _mode(found.st_mode, group) and group in (None, found.st_gid)


def _refuse_foreign(wrong: list[Path], root: Path, group: int | None) -> None:
    """Only its owner may change what others may do with a file; to close, the folder itself is enough."""
    if os.geteuid() == 0:
        return
    for path in wrong if group is not None else [root]:
        with contextlib.suppress(FileNotFoundError):
            owner = path.lstat().st_uid
            if owner != os.geteuid():
                what = "closed to the group by its owner alone" if group is None else "opened to the group by its owner alone"
                way = "set file_group again" if group is None else "remove file_group"
                raise CheckpointError(
                    f"{path} belongs to {user_name(owner)} and can be {what}. Nothing was changed. Let them run the same command "
                    f"once, or {way}."
                )


def group_name(group: int) -> str:
    """`'catalogue'`, or the number of a group that has no name here."""
    import grp

    try:
        return repr(grp.getgrgid(group).gr_name)
    except KeyError:
        return str(group)


def user_name(user: int) -> str:
    """The name of a user, or `user 1234`."""
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
