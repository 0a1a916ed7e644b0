"""The model deployment card, and the record that carries it."""

from __future__ import annotations

import msgspec
import pytest

from dynamo.errors import ConfigError
from dynamo.protocols.addressing import EndpointAddress
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.llm import DisaggregationMode
from dynamo.protocols.model_card import CARD_LIMIT_BYTES, Artifact, ModelDeploymentCard

TOKENIZER = Artifact("a" * 64, 100)
TEMPLATE = Artifact("b" * 64, 10)


def test_the_checksum_is_of_the_text_side_alone():
    card = ModelDeploymentCard("m", artifacts={"tokenizer.json": TOKENIZER, "chat_template.jinja": TEMPLATE})
    same = ModelDeploymentCard(
        "other name",
        dp_size=4,
        artifacts={"config.json": Artifact("c" * 64, 1), "chat_template.jinja": TEMPLATE, "tokenizer.json": TOKENIZER},
    )
    assert card.checksum() == same.checksum()
    assert len(card.checksum()) == 16


@pytest.mark.parametrize(
    "artifacts",
    [
        {},
        {"tokenizer.json": TOKENIZER},
        {"tokenizer.json": TEMPLATE, "chat_template.jinja": TOKENIZER},
        {"tokenizer.json": TOKENIZER, "chat_template.jinja": TEMPLATE, "tokenizer_config.json": TEMPLATE},
    ],
)
def test_another_tokenizer_or_template_is_another_checksum(artifacts):
    card = ModelDeploymentCard("m", artifacts={"tokenizer.json": TOKENIZER, "chat_template.jinja": TEMPLATE})
    assert ModelDeploymentCard("m", artifacts=artifacts).checksum() != card.checksum()


def test_a_card_survives_in_its_record():
    card = ModelDeploymentCard(
        "m",
        aliases=["n"],
        mode=DisaggregationMode.DECODE,
        capabilities=EngineCapabilities(guided=["json"], modes=[DisaggregationMode.DECODE]),
        artifacts={"tokenizer.json": TOKENIZER},
    )
    record = InstanceRecord("ns", "backend", "generate", 7, {"tcp": "127.0.0.1:1"}, card, {"zone": "a"})
    assert msgspec.json.decode(msgspec.json.encode(record), type=InstanceRecord) == record
    assert record.address == EndpointAddress("ns", "backend", "generate")
    assert record.id == 7


def test_a_card_of_a_later_version_is_read():
    raw = b'{"model": "m", "schema_version": 2, "colour": "red", "capabilities": {"telepathy": true}}'
    card = msgspec.json.decode(raw, type=ModelDeploymentCard)
    assert (card.model, card.schema_version, card.types) == ("m", 2, ["chat", "completions"])


def test_cards_do_not_share_what_they_hold():
    ModelDeploymentCard("m").types.append("embedding")
    assert ModelDeploymentCard("n").types == ["chat", "completions"]


def test_a_card_that_is_too_large_is_refused_with_its_size():
    card = ModelDeploymentCard("m", aliases=["x" * 1000] * 60)
    assert len(card.encode()) < CARD_LIMIT_BYTES
    large = ModelDeploymentCard("m", aliases=["x" * 1000] * 70)
    with pytest.raises(ConfigError, match=r"card of 'm' is 7\d{4} bytes; the limit is 65536") as caught:
        large.encode()
    assert "aliases" in caught.value.hint
