"""The door to the API server: no request waits for ever, no write leaves without the right."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from lmtraining_operator import gateway
from lmtraining_operator.gateway import ApiError, KubernetesGateway, json_in_yaml

pytestmark = pytest.mark.unit

POD = ("Pod", "team", "tiny-1-0-0")
BODY = {"kind": "Pod", "metadata": {"name": "tiny", "namespace": "team"}}


@pytest.fixture
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubernetesGateway]:
    """A gateway to a server that accepts every connection and never answers."""
    monkeypatch.setattr(gateway, "REQUEST_SECONDS_MAX", 0.05)
    closed = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closed.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    made = KubernetesGateway(ApiClient(configuration), lambda *_: None)
    yield made
    await made.close()
    closed.set()
    server.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda g: g.get(*POD),
        lambda g: g.list_objects("Pod", "team"),
        lambda g: g.list_page("Pod", "team", limit=1),
        lambda g: g.create(BODY),
        lambda g: g.replace(BODY),
        lambda g: g.delete(*POD, uid="u", grace_seconds=0),
        lambda g: g.annotate(*POD, uid="u", annotations={}),
        lambda g: g.apply_status(BODY),
    ],
    ids=["get", "list", "list page", "create", "replace", "delete", "annotate", "apply status"],
)
async def test_server_that_never_answers(
    silent: KubernetesGateway, ask: Callable[[KubernetesGateway], Awaitable[object]]
) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(ApiError) as error:
            await ask(silent)
    assert error.value.code == 0


def test_what_is_applied_is_json_and_yaml_alike() -> None:
    """An API server reads an apply as YAML, where half a pair of surrogates is an error and some
    characters must not stand for themselves."""
    said = {"a": 'é 日本 💥 \u2028 \x7f \x85 \ufeff \uffff \x00 \n " \\ \\ud83d'}
    text = json_in_yaml(said)
    assert json.loads(text) == yaml.safe_load(text) == said
    assert "💥" in text
    assert json.loads(json_in_yaml({"a": "\ud83d"})) == {"a": "\ufffd"}


@pytest.mark.parametrize(
    "write",
    [
        lambda g: g.create(BODY),
        lambda g: g.replace(BODY),
        lambda g: g.delete(*POD, uid="u", grace_seconds=0),
        lambda g: g.annotate(*POD, uid="u", annotations={}),
        lambda g: g.apply_status(BODY),
    ],
    ids=["create", "replace", "delete", "annotate", "apply status"],
)
async def test_no_write_leaves_without_the_right_to(
    write: Callable[[KubernetesGateway], Awaitable[object]],
) -> None:
    """Asked for at each write, and before a connection is made."""
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:1"
    told: list[tuple[str, str, int, float]] = []
    made = KubernetesGateway(
        ApiClient(configuration), lambda *one: told.append(one), may_write=lambda: False
    )
    with pytest.raises(ApiError, match="NotLeader"):
        await write(made)
    with pytest.raises(ApiError, match="Unreachable"):
        await made.get(*POD)
    await made.close()
    ((verb, kind, code, seconds),) = told
    assert (verb, kind, code) == ("GET", "Pod", 0), "no write, and a read without an answer"
    assert seconds >= 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0.0), ("1", 1.0), ("100000", 60.0), ("-1", 0.0), ("Fri, 27 Nov 2026 12:00:00 GMT", 0.0)],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert gateway.seconds_of(header) == seconds
