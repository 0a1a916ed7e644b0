"""Runs that serve different models, or know different API keys, on one store: nobody ends what is another's."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.frontend.batches.input import InputLimits
from dynamo.frontend.batches.line import LineCaller
from dynamo.frontend.batches.model_names import MODEL_NAMES_SCHEMA, ModelNames
from dynamo.frontend.batches.record import BatchState
from dynamo.frontend.batches.run import BatchRun, Workshop
from dynamo.frontend.batches.table import BATCHES_SCHEMA, BatchTable
from dynamo.frontend.database import Database
from dynamo.frontend.files import FileSpace
from dynamo.frontend.files.space import FILES_SCHEMA
from dynamo.frontend.security import ANONYMOUS
from dynamo.protocols.engine import EngineOptions
from dynamo.reference import demo_model_directory
from dynamo.testing.lora_adapters import write_lora_adapter

TIMEOUT = 20.0


def line_for(client, number, model):
    return client.line(number, {"model": model, "messages": [{"role": "user", "content": "x"}]})


async def serving(deployment, model):
    await deployment.add_engine(EchoEngine(EngineOptions(served_model_name=model)))
    await deployment.serves(model)


@pytest.fixture
def make_run(make_deployment):
    """A run with a discovery of its own; all have one store."""

    async def make(*models, **settings):
        settings = {"batch_lease_seconds": 1, "batch_model_wait_seconds": 0, **settings}
        deployment = await make_deployment(**settings)
        for model in models:
            await serving(deployment, model)
        return deployment

    return make


@pytest.fixture
async def store(tmp_path):
    """What the runs share, seen from outside."""
    database = Database(tmp_path / "frontend" / "batches.sqlite", MODEL_NAMES_SCHEMA, what="batches", hint="")
    yield database
    await database.close()


@pytest.fixture
async def once_served(store):
    """Model "two" was served on the store, by a run that is gone."""
    await ModelNames(store, lambda: ["two"]).note()


async def remembers(store, model):
    names = ModelNames(store, list)

    async def poll():
        while model not in names:
            await names.learn()
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), TIMEOUT)


async def test_a_store_remembers_a_model_beyond_its_run(make_run, client_of, store):
    gone = await make_run("two")
    await remembers(store, "two")
    await gone.close()
    client = client_of(await make_run("one"))
    waiting = await client.submit([line_for(client, 0, "two")])
    assert (await client.until(waiting, ("in_progress",))).model == "two"
    done = await client.until(await client.submit([line_for(client, 0, "one")]))
    assert (done.status, done.request_counts.failed) == ("completed", 0)
    assert (await client.sdk.batches.retrieve(waiting.id)).status == "in_progress"
    await make_run("two")
    done = await client.until(waiting)
    assert (done.status, done.request_counts.completed) == ("completed", 1)


async def test_an_adapter_is_remembered_as_a_model_is(make_run, client_of, store, tmp_path):
    adapter = write_lora_adapter(tmp_path / "loras" / "tuned", demo_model_directory(), seed=1)
    gone = await make_run()
    await gone.add_worker("reference", name="demo", lora_path=str(adapter.parent), lora_modules=[f"tuned={adapter}"])
    await remembers(store, "tuned")
    await gone.close()
    client = client_of(await make_run("one"))
    made = await client.submit([line_for(client, 0, "tuned")], window="1s")
    assert (await client.until(made)).status == "expired"


async def test_a_misspelt_model_fails_after_the_wait_for_models(make_run, client_of):
    client = client_of(await make_run("one", batch_model_wait_seconds=0.5))
    done = await client.until(await client.submit([line_for(client, n, "onne") for n in range(2)]))
    assert (done.status, done.model, done.request_counts.failed) == ("completed", "onne", 2)
    for row in await client.rows(done.error_file_id):
        assert row["response"]["body"]["error"]["code"] == "model_not_found"


async def test_a_batch_is_given_up_to_a_run_that_serves_its_model_for_the_first_time(make_run, client_of, store):
    client = client_of(await make_run("one", batch_model_wait_seconds=3600))
    made = await client.submit([line_for(client, 0, "two")])
    await client.until(made, ("in_progress",))
    await make_run("two")
    done = await client.until(made)
    assert (done.status, done.request_counts.completed) == ("completed", 1)


async def test_a_model_can_be_asked_for_as_soon_as_it_is_served(make_run, client_of, store):
    # Nothing is looked at once the first look is over: whoever makes the batch tells the others of the model first.
    first = await make_run(batch_lease_seconds=3600)
    client = client_of(first)
    await client.until(await client.submit([b"no batch"]))
    await serving(first, "two")
    made = await client.submit([line_for(client, 0, "two")])
    names = ModelNames(store, list)
    await names.learn()
    assert "two" in names
    assert (await client.until(made)).status == "completed"


@pytest.mark.usefixtures("once_served")
async def test_a_run_that_comes_to_serve_the_model_takes_the_batch(make_run, client_of):
    deployment = await make_run("one")
    client = client_of(deployment)
    waiting = await client.submit([line_for(client, 0, "two")])
    await client.until(waiting, ("in_progress",))
    await serving(deployment, "two")
    assert (await client.until(waiting)).request_counts.completed == 1


async def test_a_model_that_was_noted_after_the_last_look_is_not_taken_for_misspelt(tmp_path):
    schema = FILES_SCHEMA + BATCHES_SCHEMA + MODEL_NAMES_SCHEMA
    database = Database(tmp_path / "db", schema, what="batches", hint="")
    table = BatchTable(database, "me", max_open=10, max_own=10)
    await table.add("batch_1", "", "file-1", BatchState("/v1/completions", "24h", 2e9, models=["two"], total=1))
    (record,) = await table.claim(1, 60.0)
    record.status = "in_progress"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "two", "prompt": "x"}}
    space = FileSpace(database, tmp_path / "files", 10, 1 << 20)
    space.path("file-1").write_text(json.dumps(line))
    caller = LineCaller({}, lambda _model: False, 0, 1, 0.0)
    names = ModelNames(database, list)
    shop = Workshop(table, space, caller, InputLimits(10, 1000), 1, 3600.0, lambda _model: False, names)
    await ModelNames(database, lambda: ["two"]).note()
    await asyncio.wait_for(BatchRun(record, lambda _owner: ANONYMOUS, shop).run(), TIMEOUT)
    other = BatchTable(database, "other", max_open=10, max_own=10)
    assert [found.id for found in await other.claim(1, 60.0)] == ["batch_1"]
    assert await other.answered_lines(record.number) == set()
    await database.close()


async def test_a_batch_for_several_models_is_answered_by_who_serves_one_of_them(make_run, client_of):
    client = client_of(await make_run("one"))
    done = await client.until(await client.submit([line_for(client, 0, "one"), line_for(client, 1, "two")]))
    assert (done.status, done.model, done.request_counts.completed) == ("completed", None, 1)
    (row,) = await client.rows(done.error_file_id)
    assert row["response"]["body"]["error"]["code"] == "model_not_found"


@pytest.mark.usefixtures("once_served")
async def test_a_batch_whose_model_nobody_serves_expires_and_says_why(make_run, client_of):
    client = client_of(await make_run("one"))
    done = await client.until(await client.submit([line_for(client, 0, "two")], window="1s"))
    assert done.status == "expired"
    (row,) = await client.rows(done.error_file_id)
    assert row["error"]["code"] == "batch_expired"
    assert "'two' is not served here" in row["error"]["message"]


@pytest.mark.usefixtures("once_served")
async def test_a_batch_for_a_model_that_is_not_served_can_be_cancelled(make_run, client_of):
    client = client_of(await make_run("one"))
    waiting = await client.submit([line_for(client, 0, "two")])
    await client.until(waiting, ("in_progress",))
    await client.sdk.batches.cancel(waiting.id)
    assert (await client.until(waiting)).status == "cancelled"


@pytest.mark.usefixtures("once_served")
async def test_a_batch_of_a_key_that_a_run_does_not_know_is_left_to_others(make_run, client_of, tmp_path):
    files = {}
    for name in ("ann", "bob"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(f"[{{name: {name}, key: sk-key-of-{name}}}]")
    first = await make_run(api_key_file=str(files["ann"]))
    ann = client_of(first, "sk-key-of-ann")
    made = await ann.submit([line_for(ann, 0, "two")])
    await ann.until(made, ("in_progress",))  # nothing serves it yet, and so nobody holds it
    # The other run serves the model, and answers what its own client asks.
    bob = client_of(await make_run("two", api_key_file=str(files["bob"])), "sk-key-of-bob")
    assert (await bob.until(await bob.submit([line_for(bob, 0, "two")]))).status == "completed"
    with pytest.raises(openai.NotFoundError):
        await bob.sdk.batches.retrieve(made.id)
    assert (await ann.sdk.batches.retrieve(made.id)).status == "in_progress"
    await serving(first, "two")
    assert (await ann.until(made)).request_counts.completed == 1


@pytest.mark.usefixtures("once_served")
async def test_a_batch_of_a_key_that_nobody_knows_any_more_expires(make_run, client_of, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("[{name: ann, key: sk-key-of-ann}]")
    first = await make_run(api_key_file=str(keys))
    ann = client_of(first, "sk-key-of-ann")
    made = await ann.submit([line_for(ann, 0, "two")], window="1s")
    await first.stop(first.frontend_runtime)
    keys.write_text("[{name: bob, key: sk-key-of-bob}]")
    await make_run("two", api_key_file=str(keys))
    database = Database(tmp_path / "frontend" / "batches.sqlite", "", what="batches", hint="")
    table = BatchTable(database, "observer", max_open=1, max_own=1)

    async def expired():
        while (await table.get(made.id, "ann")).status != "expired":
            await asyncio.sleep(0.02)

    await asyncio.wait_for(expired(), TIMEOUT)
    await database.close()
