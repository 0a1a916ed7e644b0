"""The graph file: a DynamoGraphDeployment as models, its rules, and the components that it stands for.

One file runs as processes (``dynamo serve``) and on Kubernetes (the operator); both read it here. Nothing in this
package does more than read a file and compute.
"""

from dynamo.graph.components import Note, Resolution, resolve_components
from dynamo.graph.deployment import API_VERSION, KIND, DynamoGraphDeployment, GraphSpec
from dynamo.graph.loading import GraphDocument, OtherDocument, load_graphs, read_graph
from dynamo.graph.schema import json_schema
from dynamo.graph.service import ServiceSpec
from dynamo.graph.validate import validate_graph, validate_update
from dynamo.graph.violation import Violation

__all__ = [
    "API_VERSION",
    "KIND",
    "DynamoGraphDeployment",
    "GraphDocument",
    "GraphSpec",
    "Note",
    "OtherDocument",
    "Resolution",
    "ServiceSpec",
    "Violation",
    "json_schema",
    "load_graphs",
    "read_graph",
    "resolve_components",
    "validate_graph",
    "validate_update",
]
