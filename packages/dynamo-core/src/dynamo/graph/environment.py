"""The environment of a component, merged in the order that pods get it.

Lowest first: what the platform gives everybody, defaults of the component type, the main container's ``env``, the
graph's ``envs``, the service's ``envs``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from dynamo.graph.command import expand, main_container
from dynamo.graph.deployment import DynamoGraphDeployment
from dynamo.graph.pod import EnvVar, EnvVarSource
from dynamo.graph.service import WORKER_TYPES, ServiceSpec

__all__ = ["Environment", "default_environment", "dynamo_namespace", "service_environment", "service_variables"]

#: Names of the runtime are at most 63 characters (`EndpointAddress`).
_MAX_NAMESPACE = 63
_HTTP_PORT = "8000"
_SYSTEM_PORT = "9090"
_PLANNER_PORT = "9085"
#: Fields of a pod that a process has, too; the namespace is the graph's.
_FIELDS_HERE = {
    "field metadata.namespace of the pod": "",
    "field status.podIP of the pod": "127.0.0.1",
    "field status.hostIP of the pod": "127.0.0.1",
    "field spec.nodeName of the pod": "localhost",
}


class Environment(NamedTuple):
    """Variables with values, and those whose value exists only in a cluster: name to where it is."""

    values: dict[str, str]
    elsewhere: dict[str, str]


def dynamo_namespace(graph: DynamoGraphDeployment, service: ServiceSpec) -> str:
    """The namespace in which a service's processes find each other: of the graph, or ``dynamo`` if it is global."""
    if service.global_dynamo_namespace:
        return "dynamo"
    name = f"{graph.namespace}-{graph.name}".replace(".", "-")
    if len(name) <= _MAX_NAMESPACE:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAMESPACE - 9]}-{digest}"


def default_environment(graph: DynamoGraphDeployment, service: ServiceSpec) -> dict[str, str]:
    """What the component type brings along."""
    values = {
        "DYN_NAMESPACE": dynamo_namespace(graph, service),
        "DYN_PARENT_DGD_K8S_NAME": graph.name,
        "DYN_PARENT_DGD_K8S_NAMESPACE": graph.namespace,
    }
    if service.component_type:
        values["DYN_COMPONENT"] = service.component_type
    if service.role == "frontend":
        values |= {"DYNAMO_PORT": _HTTP_PORT, "DYN_HTTP_PORT": _HTTP_PORT}
    elif service.role in WORKER_TYPES:
        values |= {
            "DYN_SYSTEM_ENABLED": "true",
            "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
            "DYN_SYSTEM_PORT": _SYSTEM_PORT,
            "DYN_HEALTH_CHECK_ENABLED": "false",
        }
    elif service.role == "planner":
        values["PLANNER_PROMETHEUS_PORT"] = _PLANNER_PORT
    return values


def service_variables(graph: DynamoGraphDeployment, service: ServiceSpec) -> list[EnvVar]:
    """What the graph itself sets for a service, later ones winning."""
    misplaced = service.extra_pod_spec.envs if service.extra_pod_spec else []
    return [*main_container(service).env, *graph.spec.envs, *misplaced, *service.envs]


def service_environment(graph: DynamoGraphDeployment, service: ServiceSpec, base: Mapping[str, str]) -> Environment:
    """The environment of a service's processes on this machine, on top of `base`."""
    variables = service_variables(graph, service)
    values = {**base, **default_environment(graph, service)}
    elsewhere: dict[str, str] = {}
    for variable in _last_of_each(variables):
        if variable.value_from is None:
            values[variable.name] = expand(variable.value or "", values)
            continue
        place = _place(variable.value_from)
        if place in _FIELDS_HERE:
            values[variable.name] = _FIELDS_HERE[place] or graph.namespace
        else:
            elsewhere[variable.name] = place
    given = {variable.name for variable in variables}
    if "DYNAMO_NAMESPACE" in given and "DYN_NAMESPACE" not in given and "DYNAMO_NAMESPACE" in values:
        values["DYN_NAMESPACE"] = values["DYNAMO_NAMESPACE"]
    return Environment(values, elsewhere)


def _last_of_each(variables: list[EnvVar]) -> list[EnvVar]:
    last = {variable.name: index for index, variable in enumerate(variables)}
    return [variable for index, variable in enumerate(variables) if last[variable.name] == index]


def _place(source: EnvVarSource) -> str:
    if source.secret_key_ref is not None:
        return f"key {source.secret_key_ref.key} of Secret {source.secret_key_ref.name}"
    if source.config_map_key_ref is not None:
        return f"key {source.config_map_key_ref.key} of ConfigMap {source.config_map_key_ref.name}"
    if source.field_ref is not None:
        return f"field {source.field_ref.field_path} of the pod"
    return "a resource of the container"
