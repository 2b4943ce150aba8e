"""Real time against a real service over loopback that fails at the wire: nothing lost, nothing paid twice unseen."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console
from pipeline.commands.run import retry_failed, run_stages
from pipeline.commands.session import Options
from pipeline.errors import AlreadyToldError, BudgetError, ServiceError
from pipeline.ledger import Ledger
from pipeline.retry import RetryPolicy
from tests.clock import FakeClock
from tests.wire import Answer, Change, Fault, FaultyService, Reset, Truncate

ERROR = {"message": "said no", "type": "invalid_request_error", "param": None, "code": None}


def error(status: int, headers: dict[str, str] | None = None, **facts: Any) -> Answer:
    body = json.dumps({"error": {**ERROR, **facts}}).encode()
    return Answer(status, {"content-type": "application/json", **(headers or {})}, body)


class Trial:
    """A catalogue of some names, and a config that points to a service on loopback."""

    def __init__(self, folder: Path, names: Sequence[str], **settings: Any) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.settings = {"max_concurrent_requests": 1, **settings}
        self.give(names)

    def give(self, names: Sequence[str]) -> None:
        with (self.folder / "names.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("id", "person"))
            rows.writerows((str(number), name) for number, name in enumerate(names))

    def options(self, service: FaultyService, **changed: Any) -> Options:
        settings = {"embedding_service": service.base_url, **self.settings, **changed}
        lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
        config = self.folder / "config.yml"
        base = "input: names.csv\nfields: {person: person}\nservice_name: loopback\nembedding_model: local-lexical-384\n"
        config.write_text(base + "\n".join(lines), encoding="utf-8")
        return Options(config=config, clock=self.clock, policy=RetryPolicy(attempts=4, first_wait=0.5))

    def run(self, service: FaultyService, **changed: Any) -> int:
        try:
            return run_stages(self.options(service, **changed), Console(quiet=True), None, None)
        except AlreadyToldError as told:
            return told.exit_code

    @property
    def place(self) -> Checkpoint:
        return Checkpoint(self.folder / "checkpoints")

    def embedded(self) -> int:
        with reading(self.place) as ledger:
            assert ledger is not None
            return sum(past - first for first, past in ledger.spans("embedded", _generation(ledger), "person"))

    def open_intents(self) -> int:
        with reading(self.place) as ledger:
            assert ledger is not None
            return len(ledger.intents())

    def spent(self) -> float:
        with reading(self.place) as ledger:
            assert ledger is not None
            return ledger.spent_usd()

    def paid_twice(self) -> Counter[str]:
        if not self.place.possibly_paid_twice.exists():
            return Counter()
        with self.place.possibly_paid_twice.open(encoding="utf-8", newline="") as file:
            return Counter(row["text"] for row in csv.DictReader(file))

    def failures(self) -> dict[str, str]:
        if not self.place.failures.exists():
            return {}
        with self.place.failures.open(encoding="utf-8", newline="") as file:
            return {row["text"]: f"{row['stage']} {row['code']} {row['reason']}" for row in csv.DictReader(file)}


def _generation(ledger: Ledger) -> str:
    [generation] = {file.scope for file in ledger.files("embeddings")} or {""}
    return generation


NAMES = [f"Name {number:03d}" for number in range(300)]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path, NAMES)


def whole(trial: Trial, service: FaultyService) -> None:
    """Everything is embedded; what was embedded more than once was reported, and no more than that."""
    assert trial.embedded() == len(NAMES)
    assert trial.open_intents() == 0
    assert set(service.embedded) == set(NAMES)
    twice = {text for text, times in service.embedded.items() if times > 1}
    assert twice <= set(trial.paid_twice())


def test_a_run_without_faults_embeds_each_string_once_and_a_second_asks_nothing(trial: Trial) -> None:
    with FaultyService() as service:
        assert trial.run(service) == 0
        requests = service.requests
        assert trial.run(service) == 0
        assert service.requests == requests
        assert set(service.embedded.values()) == {1}
        whole(trial, service)
    assert trial.paid_twice() == Counter()


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_both_formats_travel_to_the_same_vectors(tmp_path: Path, encoding: str) -> None:
    with FaultyService() as service:
        trial = Trial(tmp_path, NAMES, encoding_format=encoding)
        assert trial.run(service) == 0
        assert json.loads(service.bodies[0])["encoding_format"] == encoding
    import numpy as np

    from pipeline.local_service.model import embed
    from pipeline.tables.embeddings import read_embeddings

    [(_, vectors)] = list(read_embeddings(sorted(trial.place.tables.glob("embeddings_*")), [(0, 300)]))
    assert np.array_equal(vectors, embed(NAMES))


# Transient trouble: waited out, sent again, and counted when the service may have been paid


@pytest.mark.parametrize(
    ("fault", "maybe_paid"),
    [
        (Reset("headers"), True),
        (Reset("request"), True),
        (Reset("half_body"), True),
        (Truncate(1000), True),
        (error(500), True),
        (error(503), True),
        (Answer(502, {"content-type": "text/html"}, b"<html><h1>Bad gateway</h1></html>"), True),
        (Answer(200, {"content-type": "text/html"}, b"<html>Please log in</html>"), True),
        (Answer(200, {"content-type": "application/json"}, b'{"data": 7}'), True),
        (Answer(200, {"content-type": "application/json"}, b'{"data": "7"}'), True),
        (Answer(200, {"content-type": "application/json"}, b'{"data": [7]}'), True),
        (Answer(200, {"content-type": "application/json"}, b"[null]"), True),
        (error(429), False),
        (error(409), False),
    ],
)
def test_a_passing_fault_is_survived_and_told_truly(trial: Trial, fault: Fault, maybe_paid: bool) -> None:
    with FaultyService([fault]) as service:
        assert trial.run(service) == 0
        whole(trial, service)
    assert set(trial.paid_twice()) == (set(NAMES) if maybe_paid else set())


def test_a_service_that_was_never_reached_cost_nothing(trial: Trial) -> None:
    with FaultyService() as service:
        assert trial.run(service, vector_store="none") == 0
    trial.give([*NAMES, "Newcomer"])
    with pytest.raises(ServiceError, match="no connection"):
        trial.run(service)  # its port is closed by now, and nobody listens there
    assert trial.paid_twice() == Counter()
    assert trial.open_intents() == 0


@pytest.mark.parametrize("seconds", [1, 7, 130])
def test_retry_after_is_obeyed(trial: Trial, seconds: int) -> None:
    with FaultyService([error(429, {"retry-after": str(seconds)}, code="rate_limit_exceeded")]) as service:
        assert trial.run(service) == 0
        whole(trial, service)
    assert trial.clock.slept >= seconds


def test_a_retry_after_beyond_an_hour_stops_the_run_and_says_until_when(trial: Trial) -> None:
    with FaultyService([error(429, {"retry-after": "7200"}, code="rate_limit_exceeded")]) as service:
        with pytest.raises(ServiceError, match=r"wait until 20\d\d-\d\d-\d\d \d\d:\d\d"):
            trial.run(service)
        assert trial.clock.slept < 60
        assert trial.run(service) == 0
        whole(trial, service)


def test_rate_limit_headers_are_obeyed(tmp_path: Path) -> None:
    from pipeline.local_service import State

    trial = Trial(tmp_path, NAMES)
    state = State(requests_per_minute=60)
    with FaultyService(state=state, clock=trial.clock.now) as service:
        assert trial.run(service) == 0
        whole(trial, service)
        state.close()


def test_a_service_that_stays_down_stops_the_run_and_the_next_goes_on(trial: Trial) -> None:
    down = error(503, message="overloaded")
    with FaultyService([down] * 4) as service:
        with pytest.raises(ServiceError, match="could not be embedded now"):
            trial.run(service)
        assert trial.open_intents() == 0
        assert trial.run(service) == 0
        whole(trial, service)


def test_requests_that_always_fail_do_not_hold_up_the_others(tmp_path: Path) -> None:
    trial = Trial(tmp_path, [f"{'x' * 4000} {number}" for number in range(3000)])  # several requests of 4 MB

    def script(number: int) -> Fault | None:
        return error(500) if number <= 4 else None  # the first request, four times

    with FaultyService(script) as service:
        with pytest.raises(ServiceError, match="could not be embedded now"):
            trial.run(service)
        done = trial.embedded()
        assert 0 < done < 3000
        assert trial.run(service) == 0
        assert trial.embedded() == 3000


# Stops: no more sending until a person acts


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (error(429, code="insufficient_quota", message="You exceeded your quota"), "no money left"),
        (error(401, code="invalid_api_key", message="Incorrect API key"), "Check the API key"),
        (error(403, message="not allowed"), "Check the API key"),
        (error(404, code="model_not_found", message="no such model"), "embedding_model"),
        (error(400, param="dimensions", message="dimensions not supported"), "Mend the config"),
        (Answer(307, {"location": "http://127.0.0.1:9/v1"}), "redirects"),
    ],
)
def test_what_needs_a_person_stops_at_once_and_keeps_everything(trial: Trial, fault: Answer, words: str) -> None:
    with FaultyService([fault]) as service:
        with pytest.raises(ServiceError, match=words):
            trial.run(service)
        assert service.requests == 1
        assert trial.failures() == {}
        assert trial.run(service) == 0
        whole(trial, service)
    assert trial.paid_twice() == Counter()


def test_what_was_answered_before_a_stop_is_kept_and_indexed(tmp_path: Path) -> None:
    names = [f"{'y' * 4000} {number}" for number in range(2100)]
    trial = Trial(tmp_path, names)
    with FaultyService([None, error(429, code="insufficient_quota")]) as service:
        with pytest.raises(ServiceError):
            trial.run(service)
        done = trial.embedded()
        assert done > 0
        with reading(trial.place) as ledger:
            assert ledger is not None
            indexed = ledger.spans("indexed", f"embedded:{_generation(ledger)}", "person")
            assert sum(past - first for first, past in indexed) == done
        assert trial.run(service) == 0
        assert set(service.embedded.values()) == {1}


# Bad inputs: bisected until they are alone


def test_a_400_is_bisected_until_the_bad_inputs_are_alone(tmp_path: Path) -> None:
    bad = {"Name 007", "Name 133", "Name 134"}
    trial = Trial(tmp_path, NAMES)

    with _Refusing(bad) as service:
        assert trial.run(service) == 1, "something failed for good in this command"
        assert {text: reason.split()[0] for text, reason in trial.failures().items()} == dict.fromkeys(bad, "service")
        assert trial.embedded() == len(NAMES) - len(bad)
        assert set(service.embedded.values()) == {1}
        assert trial.paid_twice() == Counter()
        requests = service.requests
        assert trial.run(service) == 0
        assert service.requests == requests, "what failed for good is not asked again by itself"
        service.bad.clear()
        assert retry_failed(trial.options(service), Console(quiet=True)) == 0
        assert trial.embedded() == len(NAMES)
        assert trial.failures() == {}


class _Refusing(FaultyService):
    """Refuses each request that holds one of some texts, as OpenAI refuses an invalid input."""

    def __init__(self, bad: set[str]) -> None:
        super().__init__()
        self.bad = set(bad)

    def answer(self, request: Any) -> Any:
        from pipeline.local_service import Response

        if request.path == "/v1/embeddings" and self.bad & set(json.loads(request.body)["input"]):
            body = json.dumps({"error": {**ERROR, "param": "input", "message": "invalid input"}}).encode()
            return Response(400, {"content-type": "application/json"}, body)
        return super().answer(request)


def test_a_service_that_refuses_everything_marks_nothing_as_failed(tmp_path: Path) -> None:
    trial = Trial(tmp_path, NAMES)
    with _Refusing(set(NAMES)) as service:
        with pytest.raises(ServiceError, match="refuses every string"):
            trial.run(service)
        assert trial.failures() == {}
        assert service.requests < 100
        service.bad.clear()
        assert trial.run(service) == 0
        whole(trial, service)


def test_a_string_that_is_too_long_for_the_service_fails_alone(tmp_path: Path) -> None:
    trial = Trial(tmp_path, ["short", "z" * 40_000, "also short"])
    with FaultyService() as service:
        assert trial.run(service) == 1
        assert list(trial.failures()) == ["z" * 500]
        assert trial.embedded() == 2


# Answers that are not what they should be: one row fails, its neighbours are kept


def _changed(function: Any) -> Change:
    return Change(function)


def _set(place: int, value: Any) -> Change:
    def change(answer: Any) -> Any:
        answer["data"][place]["embedding"] = value
        return answer

    return Change(change)


def _without(place: int) -> Change:
    def change(answer: Any) -> Any:
        del answer["data"][place]
        return answer

    return Change(change)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_set(5, [0.5] * 383), "383 dimensions instead of 384"),
        (_set(5, [math.nan] * 384), "NaN or infinity"),
        (_set(5, [math.inf] + [0.0] * 383), "NaN or infinity"),
        (_set(5, None), "no vector"),
        (_set(5, []), "empty vector"),
        (_set(5, "not base64!"), "neither base64 nor"),
        (_set(5, "AAAA"), "no whole number of floats"),
        (_set(5, [0.0] * 384), "zeros only"),
        (_set(5, ["0.1"] * 384), "something else than numbers"),
        (_without(5), "left it out"),
    ],
)
def test_one_bad_vector_costs_one_string(trial: Trial, fault: Fault, reason: str) -> None:
    with FaultyService([fault]) as service:
        assert trial.run(service, encoding_format="float") == 1
        [(text, found)] = trial.failures().items()
        assert text == "Name 005"
        assert reason in found
        assert trial.embedded() == len(NAMES) - 1
        assert retry_failed(trial.options(service), Console(quiet=True)) == 0
        assert trial.embedded() == len(NAMES)
        assert service.embedded == Counter(NAMES) + Counter({"Name 005": 1})


def test_the_very_first_vector_may_be_the_wrong_one(trial: Trial) -> None:
    """Its length was taken for the model's, and every right vector after it for a wrong one, for ever."""
    with FaultyService([_set(0, [0.5] * 383)]) as service:
        assert trial.run(service, encoding_format="float") == 1
        assert trial.failures() == {"Name 000": "service bad_vector 383 dimensions instead of 384"}
        assert trial.embedded() == len(NAMES) - 1


def test_a_repeated_row_is_kept_once_and_two_different_answers_fail(trial: Trial) -> None:
    def change(answer: Any) -> Any:
        answer["data"].append(answer["data"][3])
        answer["data"].append({**answer["data"][4], "embedding": answer["data"][5]["embedding"]})
        answer["data"].append({**answer["data"][4], "index": 4711})
        return answer

    with FaultyService([_changed(change)]) as service:
        assert trial.run(service) == 1
        assert list(trial.failures()) == ["Name 004"]
        assert trial.embedded() == len(NAMES) - 1


def test_rows_out_of_order_find_their_own_texts(trial: Trial) -> None:
    def change(answer: Any) -> Any:
        answer["data"].reverse()
        return answer

    with FaultyService([_changed(change)]) as service:
        assert trial.run(service) == 0
    import numpy as np

    from pipeline.local_service.model import embed
    from pipeline.tables.embeddings import read_embeddings

    [(_, vectors)] = list(read_embeddings(sorted(trial.place.tables.glob("embeddings_*")), [(0, 300)]))
    assert np.array_equal(vectors, embed(NAMES))


# Money


def test_the_service_usage_is_what_is_booked(trial: Trial) -> None:
    with FaultyService() as service:
        assert trial.run(service, price_per_million=1000.0) == 0
        tokens = sum(math.ceil(len(name.encode()) / 4) for name in NAMES)
        assert trial.spent() == pytest.approx(tokens * 1000 / 1_000_000)


def test_a_run_that_would_pass_the_budget_sends_nothing(trial: Trial) -> None:
    with FaultyService() as service:
        with pytest.raises(BudgetError, match="Nothing was sent"):
            trial.run(service, price_per_million=1000.0, budget_usd=1.0)
        assert service.requests == 0
        assert trial.run(service, price_per_million=1000.0, budget_usd=5.0) == 0


def test_what_is_possibly_paid_twice_is_charged_to_the_budget(trial: Trial) -> None:
    with FaultyService([Reset("request")]) as service:
        assert trial.run(service, price_per_million=1000.0) == 0
        once = sum(math.ceil(len(name.encode()) / 4) for name in NAMES) / 1000
        bound = sum(len(name.encode()) for name in NAMES) / 1000
        assert trial.spent() == pytest.approx(once + bound)


# Left by a run that was killed


def test_an_intent_without_an_answer_is_counted_once_and_sent_again(trial: Trial) -> None:
    from pipeline.checkpoint import writing
    from pipeline.ledger import Intent

    with FaultyService() as service:
        assert trial.run(service) == 0
        with writing(trial.place, "test") as ledger:
            generation = _generation(ledger)
            ledger.add_intent(Intent(generation, "person", [(3, 5)], 2, 10, 0.5), trial.clock.now())
        assert trial.run(service) == 0
        assert set(trial.paid_twice()) == {"Name 003", "Name 004"}
        assert trial.run(service) == 0
        assert sum(trial.paid_twice().values()) == 2
        assert trial.spent() == pytest.approx(0.5)
