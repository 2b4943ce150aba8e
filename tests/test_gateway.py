"""A gateway that wants a header, a version and a deployment, as Azure does, over a real socket; and the keys that say so."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import log
from pipeline.commands import batch_manager
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.config.headers import Header, headers, with_value
from pipeline.local_service import Request, Response, State
from tests.batch.test_telling import notifier
from tests.clock import FakeClock
from tests.tools import Catalogue, Ran
from tests.wire import FaultyService

KEY = "azure-0123456789abcdef"
DEPLOYMENT = "library-embedding"  # as long as the model's name, which the gateway puts in its place
MODEL = "local-lexical-384"
VERSION = "2024-10-21"
TITLES = ["Fugue", "Mass", "Suite", "Toccata"]


class Gateway(FaultyService):
    """Azure's addresses before our service: whatever is not exactly as it wants it is refused, in Azure's words."""

    def answer(self, request: Request) -> Response:
        sent = {name.lower(): value for name, value in request.headers.items()}
        if sent.get("api-key") != KEY or "authorization" in sent:
            return _refusal(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
        if urllib.parse.parse_qs(request.query).get("api-version") != [VERSION]:
            return _refusal(404, "404", "Resource not found")
        path = request.path.removeprefix("/openai")
        if path in (request.path, "/embeddings") or path.startswith("/models"):
            return _refusal(404, "404", "Resource not found")
        if path.startswith("/deployments/"):
            _, _, name, path = path.split("/", 3)
            path = f"/{path}"
            if name != DEPLOYMENT or path != "/embeddings":
                return _refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        body = request.body.replace(b'"model":"%b"' % DEPLOYMENT.encode(), b'"model":"%b"' % MODEL.encode())
        return super().answer(dataclasses.replace(request, path=f"/v1{path}", body=body))


def _refusal(status: int, code: str, message: str) -> Response:
    return Response(
        status, {"content-type": "application/json"}, json.dumps({"error": {"code": code, "message": message}}).encode()
    )


@pytest.fixture(autouse=True)
def a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_secrets", set())
    for name in ("OPENAI_API_KEY", "SERVICE_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_KEY", KEY)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Waiting for a job takes no time."""
    made = FakeClock()

    def with_clock(*arguments: Any, **more: Any) -> Options:
        return dataclasses.replace(options_of(*arguments, **more), clock=made)

    for program in ("main", "batch_manager"):
        monkeypatch.setattr(f"pipeline.commands.{program}.options_of", with_clock)
    return made


@pytest.fixture
def gateway(tmp_path: Path, clock: FakeClock) -> Iterator[Gateway]:
    with State(tmp_path / "service.sqlite", record=True) as state, Gateway(state=state, clock=clock.now) as made:
        yield made


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.write([(str(number), "", title) for number, title in enumerate(TITLES)])
    return made


def configure(catalogue: Catalogue, gateway: Gateway, **keys: Any) -> None:
    known = {
        "fields": {"title": "title"}, "embedding_service": gateway.base_url.replace("/v1", "/openai"), "service_name": "azure",
        "embedding_model": MODEL, "service_deployment": DEPLOYMENT, "service_api_version": VERSION,
        "service_headers": {"api-key": "env:AZURE_KEY", "x-cost-centre": "library"},
    }  # fmt: skip
    catalogue.configure(**{**known, **keys})


def manager(catalogue: Catalogue, *arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = batch_manager.main(["--config", str(catalogue.config), *arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def of_all(gateway: Gateway, name: str) -> set[str | None]:
    """What a header was in all requests."""
    return {{key.lower(): value for key, value in one.items()}.get(name) for one in gateway.headers}


def test_in_real_time(catalogue: Catalogue, gateway: Gateway) -> None:
    configure(catalogue, gateway)
    checked = catalogue.run("--check")
    assert checked.code == 0, checked.out
    ran = catalogue.run()
    assert ran.code == 0, ran.err
    assert sorted(catalogue.embedded("title")) == TITLES
    assert gateway.embedded == dict.fromkeys(TITLES, 1)
    assert ("POST", f"/openai/deployments/{DEPLOYMENT}/embeddings") in gateway.asked
    assert (of_all(gateway, "api-key"), of_all(gateway, "authorization")) == ({KEY}, {None})
    assert of_all(gateway, "x-cost-centre") == {"library"}
    assert catalogue.run("--search", "Fuge").code == 0
    assert KEY not in ran.out + ran.err + checked.out


def test_in_batch_mode_by_hand_and_by_itself(catalogue: Catalogue, gateway: Gateway) -> None:
    configure(catalogue, gateway)
    for command in ("--create", "--status", "--list", "--download"):
        ran = manager(catalogue, command)
        assert ran.code == 0, ran.err
    assert sorted(catalogue.embedded("title")) == TITLES
    catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, "Trio"])])
    ran = catalogue.run("--set", "use_batch_embeddings=true")
    assert ran.code == 0, ran.err
    assert sorted(catalogue.embedded("title")) == [*TITLES, "Trio"]
    assert not gateway.embedded, "nothing went through real time"
    assert set(gateway.state.embedded().values()) == {1}
    assert {path.split("/")[2] for _, path in gateway.asked} == {"files", "batches"}
    assert (of_all(gateway, "api-key"), of_all(gateway, "authorization")) == ({KEY}, {None})
    line = json.loads((catalogue.checkpoint / "batch_requests_0001.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["body"]["model"] == DEPLOYMENT
    assert manager(catalogue, "--sweep").code == 0


def test_another_deployment_of_the_same_model_is_no_new_generation(catalogue: Catalogue, gateway: Gateway) -> None:
    configure(catalogue, gateway)
    assert catalogue.run().code == 0
    asked = len(gateway.asked)
    configure(catalogue, gateway, service_deployment="moved")
    assert catalogue.run().code == 0
    assert len(gateway.asked) == asked


def test_a_ledger_that_was_lost_knows_the_jobs_by_their_request_files(catalogue: Catalogue, gateway: Gateway) -> None:
    """Their lines name the deployment, and the generation is that of the model."""
    configure(catalogue, gateway)
    copy = catalogue.checkpoint / "ledger.copy.sqlite"
    assert catalogue.run("--end", "preprocessing").code == 0
    before = copy.read_bytes()
    assert manager(catalogue, "--create").code == 0
    copy.write_bytes(before)
    for path in catalogue.checkpoint.glob("ledger.sqlite*"):
        path.unlink()
    assert catalogue.run("--restore-ledger").code == 0
    assert manager(catalogue, "--download").code == 0
    assert sorted(catalogue.embedded("title")) == TITLES
    assert set(gateway.state.embedded().values()) == {1}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"service_headers": {"api-key": "file:wrong.key"}}, "401"),
        ({"service_headers": {"x-cost-centre": "library"}}, "401"),
        ({"service_api_version": "2023-05-15"}, "404"),
        ({"service_api_version": None}, "404"),
        ({"service_deployment": "another"}, "DeploymentNotFound"),
    ],
    ids=["a wrong key", "no key", "another version", "no version", "another deployment"],
)
def test_what_is_not_as_it_wants_it_stops_with_a_sentence_and_sends_nothing_more(
    catalogue: Catalogue, gateway: Gateway, keys: dict[str, Any], words: str
) -> None:
    (catalogue.folder / "wrong.key").write_text("wrong-0123456789\n")
    configure(catalogue, gateway, **keys)
    ran = catalogue.run()
    assert ran.code == 1
    assert words in ran.err
    assert "wrong-0123456789" not in ran.err + ran.out
    assert len(gateway.asked) == 1
    if words != "401":
        assert "with Azure, service_deployment and service_api_version as well" in ran.err
    assert catalogue.run("--status", "--exit-code").code == 1, "no further run settles this"


def test_a_key_from_a_file_beside_the_config(catalogue: Catalogue, gateway: Gateway) -> None:
    (catalogue.folder / "azure.key").write_text(f"{KEY}\n")
    configure(catalogue, gateway, service_headers={"API-Key": "file:azure.key"})
    assert catalogue.run().code == 0


@pytest.mark.parametrize("source", ["env:NOT_THERE", "file:not.there", "file:.", "env:TWO_LINES"])
def test_a_key_that_is_nowhere_stops_before_anything_is_sent_and_not_what_needs_none(
    catalogue: Catalogue, gateway: Gateway, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO_LINES", "one\ntwo")
    configure(catalogue, gateway, service_headers={"api-key": source})
    for command in ((), ("--search", "Fugue")):
        ran = catalogue.run(*command)
        assert ran.code == 2
        assert command or "the header api-key of service_headers is to come from" in ran.err
    assert catalogue.run("--check").code == 1
    assert manager(catalogue, "--create").code == 2
    assert gateway.asked == []
    assert catalogue.run("--status").code == 0


def test_another_header_goes_beside_the_usual_key(catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "usual-0123456789")
    with FaultyService() as service:
        catalogue.configure(
            fields={"title": "title"}, embedding_service=service.base_url, service_name="ours", embedding_model=MODEL,
            service_headers={"ocp-apim-subscription-key": "env:AZURE_KEY"},
        )  # fmt: skip
        assert catalogue.run().code == 0
        (sent,) = [{key.lower(): value for key, value in one.items()} for one in service.headers]
    assert (sent["authorization"], sent["ocp-apim-subscription-key"]) == ("Bearer usual-0123456789", KEY)


def test_an_authorization_of_ones_own_takes_the_place_of_the_usual_one(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "usual-0123456789")
    monkeypatch.setenv("TOKEN", "Bearer mine-0123456789")
    with FaultyService() as service:
        catalogue.configure(
            fields={"title": "title"}, embedding_service=service.base_url, service_name="ours", embedding_model=MODEL,
            service_headers={"authorization": "env:TOKEN"},
        )  # fmt: skip
        assert catalogue.run().code == 0
        assert [value for one in service.headers for key, value in one.items() if key.lower() == "authorization"] == [
            "Bearer mine-0123456789"
        ]


def test_the_program_that_is_told_does_not_get_the_variable(
    catalogue: Catalogue, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier(catalogue.folder)
    configure(catalogue, gateway, notify_command=["./notify.py"])
    assert catalogue.run().code == 0
    (told,) = [json.loads(path.read_text(encoding="utf-8")) for path in catalogue.folder.glob("told-*")]
    assert "AZURE_KEY" not in told["environment"]
    assert KEY not in json.dumps(told)


# The keys of the config

SECRETS = {"api-key": KEY, "Authorization": KEY, "x-token": KEY, "Cookie": KEY, "x-client-secret": KEY}
WRONG: dict[str, object] = {
    **{f"a secret in {name}": {name: value} for name, value in SECRETS.items()},
    "no names": [KEY],
    "a number": {"x-version": 1},
    "a list": {"x-version": [KEY]},
    "no header": {"x version": KEY},
    "a line end in a name": {"x\nhost": KEY},
    "a line end": {"x-a": f"a\r\nx-b: {KEY}"},
    "not ASCII": {"x-a": f"{KEY}é"},
    "the host": {"Host": KEY},
    "the length": {"content-length": KEY},
    "twice": {"x-a": KEY, "X-A": KEY},
    "no variable": {"x-a": f"env:{KEY}"},
    "no file": {"x-a": "file:"},
    "nothing": {"x-a": ""},
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_headers_that_are_none_or_show_a_secret_are_refused_and_not_shown(
    catalogue: Catalogue, gateway: Gateway, value: object
) -> None:
    configure(catalogue, gateway, service_headers=value)
    ran = catalogue.run("--status")
    assert ran.code == 2
    assert "service_headers is set; it must be" in ran.err
    assert KEY not in ran.err + ran.out


@pytest.mark.parametrize("key", ["service_headers", "service_api_version", "service_deployment"])
@pytest.mark.parametrize("service", ["local", "openai"])
def test_they_belong_to_a_service_by_url(catalogue: Catalogue, key: str, service: str) -> None:
    catalogue.configure(embedding_service=service, **{key: {"x-a": "b"} if key == "service_headers" else "b"})
    ran = catalogue.run("--status")
    assert ran.code == 2
    assert f"{key} is set; it belongs to a service by URL" in ran.err


@pytest.mark.parametrize("value", ["a/b", "..", "a?b", "a b", "a%2fb", "", 7, "a\nb", "x" * 129])
@pytest.mark.parametrize("key", ["service_api_version", "service_deployment"])
def test_what_would_change_the_address_is_refused(catalogue: Catalogue, gateway: Gateway, key: str, value: object) -> None:
    configure(catalogue, gateway, **{key: value})
    ran = catalogue.run("--status")
    assert ran.code == 2
    assert f"{key} is " in ran.err


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_header_is_refused_or_safe_to_send(name: str, source: str) -> None:
    words = ""
    try:
        (header,) = headers({name: source})
    except ValueError as problem:
        words = str(problem)
    if words:
        assert len(source) < 8 or source not in words
        return
    assert header.name == name
    assert name.isascii()
    assert header.value is None or (header.value == source and source.isascii() and source.isprintable())


@given(st.text(max_size=50))
def test_whatever_stands_in_a_variable_is_sent_as_it_is_or_not_at_all(value: str) -> None:
    found = with_value(Header("api-key", "env:NAME"), Path(), {"NAME": value})
    assert found.value is None or (found.value == value.strip() and found.value.isascii() and found.value.isprintable())
    assert len(value) < 8 or value not in repr(found)


def test_a_file_without_an_end_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 100_000)
    assert with_value(Header("api-key", "file:long"), tmp_path, {}).value is None
    assert with_value(Header("api-key", "file:/dev/zero"), tmp_path, {}).value is None
