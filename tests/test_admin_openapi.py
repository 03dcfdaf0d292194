"""The admin API against the document that it serves: no answer that the document does not know, nothing of 5xx."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from harness.admin import admin, token
from harness.server import Server

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
# Examples per operation: with some forty operations about half a minute on a small machine.
EXAMPLES = 25


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("openapi"), shards=2).start()
    yield server
    assert server.alive(), "the server ended during the calls"
    assert "panicked" not in server.log()
    server.kill()


@pytest.fixture(scope="module")
def document(fuzzed):
    return admin(fuzzed, "GET", "/openapi.json")


@pytest.fixture(scope="module")
def schema(fuzzed, document):
    # The drain would end the server; it is tested by itself. The app that is fuzzed must outlive the test.
    loaded = schemathesis.openapi.from_dict(document).exclude(operation_id="drain").exclude(operation_id="deleteApp")
    loaded.config.update(base_url="http://%s:%d" % fuzzed.admin)
    return loaded


def test_the_document_is_openapi_3_1(document):
    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()


@pytest.mark.timeout(180)
def test_every_answer_is_one_of_the_document(fuzzed, schema):
    headers = {"Authorization": "Bearer " + token(fuzzed)}
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) > 30
    answered = {}
    for operation in operations:
        # Half of the calls are to the app that is there, so that they come further than its name.
        strategy = operation.as_strategy()

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=strategy, known=hypothesis.strategies.booleans())
        def call(case, known):
            if known and case.path_parameters and "app" in case.path_parameters:
                case.path_parameters["app"] = "dev"
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=CHECKS)
            answered.setdefault(operation.label, set()).add(answer.status_code)

        call()
    good = [label for label, statuses in answered.items() if any(status < 300 for status in statuses)]
    assert len(good) > 12, f"hardly anything succeeds: {answered}"


def test_without_the_token_nothing_is_answered_but_401(fuzzed, schema):
    for operation in schema.get_all_operations():
        operation = operation.ok()
        case = operation.Case(path_parameters={"app": "dev", "id": "x", "item": "x", "channel": "x", "client": "x"})
        assert case.call().status_code == 401, operation.label
