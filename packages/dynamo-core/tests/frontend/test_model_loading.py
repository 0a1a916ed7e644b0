"""Models come and go with their workers, whatever the workers' tokenizers do meanwhile."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from dynamo.errors import Disconnected, NoInstances
from dynamo.frontend.models import ServedModels
from dynamo.plugins import plugins
from dynamo.preprocessor import TextModel
from dynamo.preprocessor.artifacts import collect
from dynamo.preprocessor.model_files import read_model_files
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.reference import demo_model_directory
from dynamo.router.candidates import CandidateTable
from dynamo.router.policy import policy_for_mode


@pytest.fixture(scope="module")
def texts():
    """The same model with two chat templates."""
    files = read_model_files(demo_model_directory())
    made = {}
    for template in ("old", "new"):
        made[template] = TextModel.from_artifacts({**files, "chat_template.jinja": template.encode()}, name="m")
    return made


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """What cards say of the two."""
    found = {}
    for template in ("old", "new"):
        directory = tmp_path_factory.mktemp(template)
        shutil.copytree(demo_model_directory(), directory, dirs_exist_ok=True)
        (directory / "chat_template.jinja").write_text(template)
        found[template] = collect(directory)
    return found


class Workers:
    """Announces workers to the models, and answers for their tokenizers as a test tells it."""

    def __init__(self, texts, artifacts) -> None:
        self.texts = texts
        self.artifacts = artifacts
        self.asked: list[int] = []
        self.answers: dict[int, asyncio.Future[None]] = {}
        """Of workers whose answer a test gives by hand."""
        self.models = ServedModels(self, self._candidates)

    async def fetch(self, worker, card):
        self.asked.append(worker.instance_id)
        if worker.instance_id in self.answers:
            await self.answers[worker.instance_id]
        return self.texts["old" if card.artifacts == self.artifacts["old"] else "new"]

    def announce(self, instance_id, template="old"):
        self.models.on_instance("put", self._record(instance_id, template))

    def leave(self, instance_id, template="old"):
        self.models.on_instance("delete", self._record(instance_id, template))

    def by_hand(self, instance_id):
        answer = self.answers[instance_id] = asyncio.get_running_loop().create_future()
        return answer

    def serving(self):
        """Ids of the workers that serve now, and the template they serve with."""
        try:
            model = self.models.get("m")
        except NoInstances:
            return [], None
        return sorted(r.instance_id for r in model.candidates.records()), model.text.template.render(
            [{"role": "user", "content": "x"}]
        )

    async def until(self, condition):
        async def poll():
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(poll(), 10)

    def _record(self, instance_id, template):
        card = ModelDeploymentCard("m", artifacts=self.artifacts[template], context_length_tokens=4096)
        return InstanceRecord("dynamo", "backend", "generate", instance_id, {"tcp": "x:1"}, card=card)

    def _candidates(self, name):
        return CandidateTable(policy_for_mode("round-robin", plugins()), model=name)


@pytest.fixture
async def workers(texts, artifacts):
    made = Workers(texts, artifacts)
    yield made
    await made.models.close()


async def test_a_rolling_update_of_the_template_ends_with_the_new_one(workers):
    workers.announce(1)
    await workers.until(lambda: workers.serving() == ([1], "old"))
    workers.announce(2, "new")
    workers.announce(3, "new")
    assert workers.serving() == ([1], "old")
    workers.leave(1)
    await workers.until(lambda: workers.serving() == ([2, 3], "new"))


async def test_of_refused_workers_that_differ_the_newest_serve(workers):
    workers.announce(1, "new")
    await workers.until(lambda: workers.serving() == ([1], "new"))
    workers.announce(2, "old")
    workers.leave(2, "old")
    workers.announce(3, "old")
    workers.leave(1, "new")
    await workers.until(lambda: workers.serving() == ([3], "old"))
    workers.announce(4, "new")
    workers.announce(5, "new")
    workers.leave(4, "new")
    workers.leave(3, "old")
    await workers.until(lambda: workers.serving() == ([5], "new"))


async def test_a_worker_that_comes_before_a_reading_has_failed_serves(workers):
    first, second = workers.by_hand(1), workers.by_hand(2)
    workers.announce(1)
    await workers.until(lambda: workers.asked == [1])
    workers.leave(1)
    workers.announce(2)
    for _ in range(10):
        await asyncio.sleep(0)
    # One reading at a time: of two the second would replace the model that the first has let the workers into.
    assert workers.asked == [1]
    first.set_exception(Disconnected("worker 1 was silent"))
    await workers.until(lambda: workers.asked == [1, 2])
    second.set_result(None)
    await workers.until(lambda: workers.serving() == ([2], "old"))


async def test_a_text_side_that_cannot_be_made_is_made_from_another_worker(workers, caplog):
    workers.by_hand(1).set_exception(KeyError("a mistake nobody foresaw"))
    workers.announce(1)
    workers.announce(2)
    await workers.until(lambda: workers.serving() == ([1, 2], "old"))
    assert workers.asked[:2] == [1, 2]
    assert "a mistake nobody foresaw" in caplog.text


async def test_what_was_read_of_a_worker_that_left_serves_nobody_who_differs(workers):
    answer = workers.by_hand(1)
    workers.announce(1)
    await workers.until(lambda: workers.asked == [1])
    workers.announce(2, "new")
    workers.leave(1)
    answer.set_result(None)
    await workers.until(lambda: workers.serving() == ([2], "new"))
    assert workers.models.state() is None
