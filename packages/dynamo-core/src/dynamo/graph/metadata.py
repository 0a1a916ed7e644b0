"""What all models of a graph share: field names as in YAML, and the object metadata of Kubernetes.

A model accepts unknown fields and drops them, as a Kubernetes API server prunes them; `dynamo.graph.fields` is what
reports them to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

__all__ = ["GraphModel", "IntOrString", "Misplaced", "NonEmpty", "ObjectMeta", "Obsolete", "Opaque"]

#: A Kubernetes object that is passed on as it is.
Opaque = dict[str, Any]
#: Ports and quantities: Kubernetes takes ``8000`` and ``"http"``, ``10`` and ``"10Gi"``.
IntOrString = int | str
NonEmpty = Annotated[str, Field(min_length=1)]


class Obsolete(NamedTuple):
    """Marks a field that older manifests carry: accepted, without effect, reported as a warning."""

    hint: str


class Misplaced(NamedTuple):
    """Marks a field that is understood here although it belongs elsewhere; reported as a warning."""

    hint: str


class GraphModel(BaseModel):
    """Base of every model: camelCase in documents, no conversions between types, null means absent.

    Without conversions since an API server makes none: a graph that runs here must be accepted there.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    #: Names that people try here, and what to tell them.
    hints: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    def to_document(self) -> dict[str, Any]:
        """The fields that were given, as in YAML."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class ObjectMeta(GraphModel):
    """``metadata`` of a Kubernetes object: what we read, and what an API server adds."""

    name: NonEmpty
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    generate_name: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: list[str] = []
    owner_references: list[Opaque] = []
    managed_fields: list[Opaque] = []
    self_link: str | None = None
