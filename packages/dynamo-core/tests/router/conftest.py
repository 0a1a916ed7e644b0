"""Instances as discovery would report them."""

from __future__ import annotations

import pytest

from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.model_card import ModelDeploymentCard


def _record(instance_id: int, dp_size: int | None = None, **fields) -> InstanceRecord:
    card = ModelDeploymentCard("m", dp_size=dp_size) if dp_size is not None else None
    return InstanceRecord("ns", "backend", "generate", instance_id, card=card, **fields)


@pytest.fixture
def record():
    """An instance by its id, with a card when it has ranks."""
    return _record
