"""`--init NEW.yml`: a commented config of one's own, with a checkpoint folder of its own, so that the sample stays apart."""

from __future__ import annotations

from pathlib import Path

from pipeline.commands.console import Console
from pipeline.commands.session import Options
from pipeline.config import render_config
from pipeline.errors import UsageError
from pipeline.files import disk_errors


def init(options: Options, console: Console, target: Path) -> int:
    """Write the file; never over another one."""
    if target.suffix not in (".yml", ".yaml"):
        raise UsageError(f"--init {target}: the name of a config ends in .yml")
    values = {
        "input": "catalogue.csv",
        "id_column": "id",
        "checkpoint_dir": f"{target.stem}_checkpoints",
        "fields": {"person": "author", "title": "title", "composite": "Contributor: {author}\nTitle: {title}\nRoles: {roles}"},
    }
    try:
        with disk_errors(target), target.open("x", encoding="utf-8") as file:
            file.write(render_config(values))
        target.chmod(0o666 & ~options.umask)
    except FileExistsError:
        raise UsageError(f"{target} is there already and was not touched; edit it, or choose another name.") from None
    except OSError as problem:
        raise UsageError(f"{target}: {problem.strerror}.") from problem
    console.document({"path": str(target)})
    console.answer(f"{target} is written. Set input, id_column and fields in it; then, which costs nothing:")
    console.answer(f"  python main.py --config {target} --dry-run")
    return 0
