"""Files and batches at the service, through the SDK with its retries off.

Reading may be repeated and is, by the one policy. Creating may not: one lost reply to a repeated create is two paid
batches. So a create whose reply did not come is `ReplyLostError`, and what to do then is `batch/adopt.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import DiskError, ServiceError, ServiceStoppedError
from pipeline.files import disk_errors, free_bytes, fsync_handle
from pipeline.log import event, logger
from pipeline.provider.client import CutOffError, EmbeddingClient, OddAnswerError, Refused, Stopped, Troubled, told
from pipeline.retry import Clock, RetryPolicy

if TYPE_CHECKING:
    import openai

Found = TypeVar("Found")
Listed = TypeVar("Listed", "RemoteFile", "RemoteBatch")
RESULTS_KEPT_SECONDS = 2_592_000  # the longest that the service allows: paid results expire
MOST_REQUEST_FILE = 512 << 20  # bytes; no service takes a larger upload
GONE = "gone already"  # how the receipt of a file begins that was not there any more
_MOST_PAGES = 10_000  # of a list: a million batches or files
_PIECE = 1 << 20
_PAGE = 100
_log = logger(__name__)


class ReplyLostError(ServiceError):
    """A create was sent and its reply did not come: the batch may exist."""


class NotNowError(ServiceError):
    """A create was not taken now (too many requests, no connection): nothing was made, and it may be sent again."""

    def __init__(self, outcome: Troubled) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class GoneError(ServiceError):
    """The service does not have this any more (404)."""


class RefusedError(ServiceError):
    """The service refused this request for what it is; another may do."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the service."""

    id: str
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch as the service shows it; `status` may be any word."""

    id: str
    status: str
    input_file: str
    output_file: str | None
    error_file: str | None
    created_at: float
    expires_at: float | None
    total: int
    completed: int
    failed: int
    metadata: dict[str, str]
    errors: tuple[tuple[str, str, int | None], ...]
    tokens: int | None = None  # what it was billed for, when the service tells


class BatchClient:
    """What batch mode asks of a service."""

    def __init__(self, client: EmbeddingClient, clock: Clock, policy: RetryPolicy) -> None:
        self._client = client
        self._openai: openai.OpenAI = client.sdk
        self._clock = clock
        self._policy = policy
        self._asked_time = False

    def now(self) -> float:
        """The service's own clock as of its last answer; ours when it never says."""
        import email.utils

        if self._client.date_seen is None and not self._asked_time:  # no answer yet in this command: one is asked for
            self._asked_time = True
            self._again("batches.list", lambda: self._openai.batches.list(limit=1))
        try:
            return email.utils.parsedate_to_datetime(self._client.date_seen or "").timestamp()
        except ValueError:
            return self._clock.now()

    def upload(self, path: Path, name: str) -> str:
        """Upload a request file; uploads are free, so a lost reply is simply sent again."""

        def send() -> str:
            with path.open("rb") as file:
                made = self._openai.files.create(
                    file=(name, file, "application/jsonl"),
                    purpose="batch",
                    expires_after={"anchor": "created_at", "seconds": RESULTS_KEPT_SECONDS},
                )
            return _file(made).id

        return self._again("upload", send)

    def files(self) -> Iterator[RemoteFile]:
        """Every request file that the account has."""
        return self._pages("files.list", partial(self._openai.files.list, purpose="batch", limit=_PAGE), _file)

    def create(self, input_file: str, metadata: dict[str, str]) -> RemoteBatch:
        """Create a batch, once. ReplyLostError when nobody knows whether it was made, NotNowError when it surely was not."""
        try:
            made = self._openai.batches.create(
                input_file_id=input_file,
                endpoint="/v1/embeddings",
                completion_window="24h",
                metadata=metadata,
                output_expires_after={"anchor": "created_at", "seconds": RESULTS_KEPT_SECONDS},
            )
            return _batch(made)
        except Exception as problem:
            outcome = self._client.judge(problem)
            if isinstance(outcome, Troubled | Stopped) and outcome.maybe_paid:
                raise ReplyLostError(f"the reply to a create was lost: {outcome.reason}") from problem
            if isinstance(outcome, Troubled):
                raise NotNowError(outcome) from problem
            raise _error(outcome) from problem

    def pause(self, problem: NotNowError, waits: Iterator[float]) -> None:
        """Wait before a create is sent again; ServiceError when it was tried often enough, or the wait would be too long."""
        self._pause("batches.create", problem.outcome, waits, problem)

    def batches(self) -> Iterator[RemoteBatch]:
        """Every batch of the account, newest first; ours are recognised by their metadata."""
        return self._pages("batches.list", partial(self._openai.batches.list, limit=_PAGE), _batch)

    def _pages(self, what: str, ask: Callable[..., Any], shape: Callable[[Any], Listed]) -> Iterator[Listed]:
        """Every entry of a list. One that does not move on, or goes on for ever, is given up: we would wait for good."""
        seen: set[str] = set()
        after: dict[str, str] = {}
        while True:
            found, has_more = self._again(what, partial(_page, ask, after, shape))
            yield from found
            if not has_more or not found:
                return
            last = found[-1].id
            if last in seen or len(seen) == _MOST_PAGES:
                raise ServiceError(
                    f"{what}: its list does not end: after {len(seen) + 1:,} pages it goes on with {told(last)[:60]!r}"
                )
            seen.add(last)
            after = {"after": last}

    def retrieve(self, batch: str) -> RemoteBatch:
        return self._again("batches.retrieve", lambda: _batch(self._openai.batches.retrieve(batch)))

    def cancel(self, batch: str) -> RemoteBatch:
        """Ask for its end; one that has ended by itself in the meantime is shown as it is."""
        import openai

        def ask() -> RemoteBatch:
            try:
                return _batch(self._openai.batches.cancel(batch))
            except openai.ConflictError:
                return _batch(self._openai.batches.retrieve(batch))

        return self._again("batches.cancel", ask)

    def download(self, file: str, target: Path, most: int) -> None:
        """Stream a file to disk; whole, by the size that the service says, or not at all. A size above `most` can't be true."""
        from pipeline.provider.bounded import at_most

        def fetch() -> None:
            target.unlink(missing_ok=True)  # what an attempt before left takes space
            expected = _file(self._openai.files.retrieve(file)).bytes
            _refuse_size(file, expected, most, target)
            with disk_errors(target), target.open("xb") as out, at_most(expected, f"the file {file}"):
                with self._openai.files.with_streaming_response.content(file) as response:
                    for piece in response.iter_bytes(_PIECE):
                        out.write(piece)
                out.flush()
                fsync_handle(out.fileno())
                size = out.tell()
            if size != expected:
                raise CutOffError(f"{size:,} of {expected:,} bytes came")

        self._again("download", fetch)

    def has(self, file: str) -> bool:
        """Whether a file is still there."""
        try:
            self._again("files.retrieve", lambda: self._openai.files.retrieve(file))
        except GoneError:
            return False
        return True

    def delete(self, file: str) -> str:
        """Delete a file; what the service answered. One that is gone already is as good as deleted, and its answer says so."""
        try:
            return self._again("files.delete", lambda: _deleted(self._openai.files.delete(file)))
        except GoneError as problem:
            return f"{GONE} ({problem})"

    def _again(self, what: str, call: Callable[[], Found]) -> Found:
        """Repeat what may be repeated."""
        waits = self._policy.waits()
        while True:
            try:
                return call()
            except Exception as problem:
                outcome = self._client.judge(problem)
                if not isinstance(outcome, Troubled):
                    raise _error(outcome) from problem
                self._pause(what, outcome, waits, problem)

    def _pause(self, what: str, outcome: Troubled, waits: Iterator[float], problem: Exception) -> None:
        wait = next(waits, None)
        if wait is None or max(wait, outcome.wait or 0.0) > self._policy.longest_obeyed:
            raise _error(outcome) from problem
        wait = max(wait, outcome.wait or 0.0)
        event(_log, "request.retried", what=what, reason=outcome.reason, wait=wait)
        self._clock.sleep(wait)


def _refuse_size(file: str, said: int, most: int, target: Path) -> None:
    """Before the first byte: nothing is lost by waiting until a person has looked."""
    if said > most:
        raise ServiceStoppedError(
            f"the service says that {file} has {said:,} bytes, and by what was asked for it can have {most:,} at most. Nothing was "
            "fetched, and its job stays to be collected: look at it at the service, or run the same command again later"
        )
    free = free_bytes(target.parent)
    if said > free:
        raise DiskError(
            f"{target.parent}: {file} has {said:,} bytes, and the disk has {free:,} left. Nothing was fetched, and its job stays "
            "to be collected: free some space and run the same command again."
        )


def _page(ask: Callable[..., Any], after: dict[str, str], shape: Callable[[Any], Listed]) -> tuple[list[Listed], bool]:
    try:
        page = ask(**after)
    except (AttributeError, TypeError) as problem:  # the SDK puts attributes on what it takes for a page
        raise OddAnswerError("a list was expected, and something else came") from problem
    entries = getattr(page, "data", None)
    if not isinstance(entries, list):
        raise OddAnswerError(f"a list was expected, and {told(page)[:60]!r} came")
    return [shape(entry) for entry in entries], bool(getattr(page, "has_more", False))


def _file(found: Any) -> RemoteFile:
    """As careful as with a batch: a size that is none would pass every comparison."""
    size = getattr(found, "bytes", None)
    if not isinstance(getattr(found, "id", None), str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise OddAnswerError(f"a file was expected, and {told(found)[:60]!r} came")
    return RemoteFile(found.id, str(getattr(found, "filename", "")), size)


def _deleted(found: Any) -> str:
    """What is kept as the receipt; an answer that says no is none."""
    if getattr(found, "deleted", None) is False:
        raise OddAnswerError(f"the service says that it did not delete the file: {told(found)[:60]!r}")
    return f"deleted ({told(found.to_json(indent=None)) if hasattr(found, 'to_json') else told(found)})"


def _error(outcome: Refused | Stopped | Troubled) -> ServiceError:
    if isinstance(outcome, Stopped) and outcome.reason.startswith("404"):
        return GoneError(outcome.reason)
    if isinstance(outcome, Refused):
        return RefusedError(outcome.reason)
    if isinstance(outcome, Stopped):
        return ServiceStoppedError(outcome.reason)
    return ServiceError(outcome.reason)


def _batch(found: Any) -> RemoteBatch:
    """The SDK does not check what it receives: every value is taken as if it could be anything."""
    try:
        return _batch_of(found)
    except (AttributeError, TypeError, ValueError, OverflowError) as problem:
        raise OddAnswerError(f"a batch was expected, and {told(found)[:60]!r} came") from problem


def _batch_of(found: Any) -> RemoteBatch:
    if not isinstance(found.id, str) or not found.id:
        raise ValueError("no id")
    counts = found.request_counts
    errors = getattr(found.errors, "data", None) or []
    return RemoteBatch(
        id=found.id,
        status=told(found.status),
        input_file=str(found.input_file_id),
        output_file=found.output_file_id or None,
        error_file=found.error_file_id or None,
        created_at=float(found.created_at or 0),
        expires_at=float(found.expires_at) if found.expires_at else None,
        total=int(counts.total) if counts else 0,
        completed=int(counts.completed) if counts else 0,
        failed=int(counts.failed) if counts else 0,
        metadata={str(key): str(value) for key, value in (found.metadata or {}).items()},
        tokens=_tokens(found),
        errors=tuple((told(one.code or ""), told(one.message or ""), one.line) for one in errors),
    )


def _tokens(found: Any) -> int | None:
    said = getattr(getattr(found, "usage", None), "total_tokens", None)
    return said if isinstance(said, int) and not isinstance(said, bool) else None
