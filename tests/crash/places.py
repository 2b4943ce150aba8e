"""Which place of a run a kill hit, read from strace's log of it: the crash points C1 to C20, and those of real time.

The log ends with the call at which the signal came. Nothing here decides whether a recovery was right: it only names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PLACES = {
    "C1": "reading the catalogue, or before it",
    "C2": "request file there, its job not yet in the ledger",
    "C3": "request file half written",
    "C4": "request file renamed, its folder not durable",
    "C5": "in the upload",
    "C6": "uploaded, its id not recorded",
    "C7": "upload recorded, the intent to create not yet",
    "C8": "intent recorded, the create not sent whole",
    "C9": "create sent, its reply not read whole",
    "C10": "reply to a create read, not recorded",
    "C11": "batch recorded",
    "C12": "looking at batches",
    "C13": "an end seen, not recorded",
    "C14": "in a download",
    "C15": "output saved, error file not yet",
    "C16": "reading the results",
    "C17": "embeddings or spool half written, or not yet in the ledger",
    "C18": "indexing: written or not, and not booked",
    "C19": "copy of the ledger, export or list half written",
    "C20": "all done but the last words, or tidying up",
    "R8": "real time: intent recorded, the request not sent whole",
    "R9": "real time: request sent, its reply not read whole",
}
_LINE = re.compile(r"^(?P<thread>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<call>\w+)\()(?P<rest>.*)$")
_REQUEST = re.compile(r'"(GET|POST|DELETE) (/\S+) HTTP')
_SENDS, _RECEIVES = {"sendto", "sendmsg"}, {"recvfrom", "recvmsg"}
_PAID = {("POST", "/v1/embeddings"), ("POST", "/v1/batches")}


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: what it was about, and whether it came to its end."""

    thread: str
    name: str
    about: str
    done: bool


def calls_of(log: str) -> list[Call]:
    """The calls of a log in the order of their beginning; those that a kill cut off are not done."""
    found: list[Call] = []
    open_: dict[str, int] = {}
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, rest = match["thread"], match["rest"]
        done = not rest.rstrip().endswith(("= ?", "<unfinished ...>"))
        if match["resumed"]:
            at = open_.pop(thread, None)
            if at is not None:
                found[at] = Call(thread, found[at].name, found[at].about + rest, done)
            continue
        if rest.rstrip().endswith("<unfinished ...>"):
            open_[thread] = len(found)
        found.append(Call(thread, match["call"], rest, done))
    return found


def paid_call_open(calls: list[Call]) -> bool:
    """Whether a request that costs money was open: sent, at least in part, and what came of it not yet on the disk."""
    waiting: dict[str, bool] = {}
    for call in calls:
        asked = _REQUEST.search(call.about)
        if call.name in _SENDS and asked is not None and call.done:
            waiting[call.thread] = (asked[1], asked[2]) in _PAID
        elif call.done and ("ledger.sqlite-wal" in call.about or ".spool" in call.about):
            waiting[call.thread] = False
    return any(waiting.values())


def place_of(calls: list[Call]) -> str:
    """The place of the last call of all; empty for an empty log."""
    if not calls:
        return ""
    last, before = calls[-1], calls[:-1]
    if last.name in _SENDS | _RECEIVES:
        return _of_network(last, before)
    if "ledger.sqlite-wal" in last.about:
        return _of_ledger(before)
    return _of_file(last, before)


def _asked(before: list[Call], thread: str) -> tuple[str, str]:
    """The request that a thread sent last."""
    for call in reversed(before):
        if call.thread == thread and call.name in _SENDS and (asked := _REQUEST.search(call.about)):
            return asked[1], asked[2]
    return "", ""


def _of_network(last: Call, before: list[Call]) -> str:
    method, path = _asked([*before, last], last.thread)
    sent = last.name in _RECEIVES
    if (method, path) == ("POST", "/v1/embeddings"):
        return "R9" if sent else "R8"
    if (method, path) == ("POST", "/v1/batches"):
        return "C9" if sent else "C8"
    if (method, path) == ("POST", "/v1/files"):
        return "C6" if sent else "C5"
    if path.startswith("/v1/files"):
        return "C20" if method == "DELETE" else "C14"
    return "C12" if path.startswith("/v1/batches") else "C18"


def _of_ledger(before: list[Call]) -> str:
    """A commit of the ledger: what it was to record is what came before it."""
    commits = 0
    for call in reversed(before):
        if not call.done:
            continue
        if "ledger.sqlite-wal" in call.about:
            commits += 1
        elif call.name in _RECEIVES:
            return _after_reply(_asked(before, call.thread), commits)
        elif "/batch_requests_" in call.about:
            return "C2"
        elif "/tables/embeddings_" in call.about or "/spool" in call.about:
            return "C17" if not commits else "C20"
        elif "/tables/" in call.about or "/scratch/" in call.about:
            return "C1"
        elif "/store" in call.about:
            return "C18"
    return "C1"


def _after_reply(asked: tuple[str, str], commits: int) -> str:
    if asked == ("POST", "/v1/files"):
        return "C6" if not commits else "C7"
    if asked == ("POST", "/v1/batches"):
        return "C10" if not commits else "C11"
    if asked == ("POST", "/v1/embeddings"):
        return "C17"
    if asked[1].startswith("/v1/batches"):
        return "C13"
    return "C20" if asked[1].startswith("/v1/files") else "C18"


def _of_file(last: Call, before: list[Call]) -> str:
    about = last.about
    for part, place in (
        ("/batch_requests_", "C3"),
        ("/batch_results_", "C14"),
        ("/batch_errors_", "C15"),
        ("/scratch/job_", "C16"),
        ("/tables/embeddings_", "C17"),
        ("/spool", "C17"),
        ("/store", "C18"),
        ("/ledger.copy", "C19"),
        (".csv", "C19"),
        (".pkl", "C19"),
        ("/tables/", "C1"),
        ("/scratch/", "C1"),
    ):
        if part in about:
            return place
    # A folder by itself: what was renamed in it just before tells.
    for call in reversed(before):
        if call.name.startswith("rename"):
            if "/batch_requests_" in call.about:
                return "C4"
            if "/batch_results_" in call.about:
                return "C15"
            return _of_file(call, [])
    return "C1"
