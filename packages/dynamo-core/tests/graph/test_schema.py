import json

from dynamo.graph import json_schema


def walk(schema):
    yield schema
    for value in schema.get("properties", {}).values():
        yield from walk(value)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key])


def test_is_structural():
    for part in walk(json_schema()):
        assert not part.keys() & {"$ref", "$defs", "anyOf", "oneOf", "const", "title", "default"}
        assert "type" in part or part.get("x-kubernetes-int-or-string") is True


def test_holds_the_rules_of_single_fields():
    service = json_schema()["properties"]["spec"]["properties"]["services"]["additionalProperties"]["properties"]
    assert service["replicas"]["minimum"] == 0
    assert service["envs"]["items"]["required"] == ["name"]
    pod = service["extraPodSpec"]["properties"]
    assert pod["affinity"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    probe = pod["mainContainer"]["properties"]["startupProbe"]["properties"]
    assert probe["httpGet"]["properties"]["port"] == {"x-kubernetes-int-or-string": True}
    assert json_schema()["properties"]["spec"]["properties"]["backendFramework"]["enum"] == ["sglang", "vllm", "trtllm"]


def test_is_json():
    assert json.loads(json.dumps(json_schema())) == json_schema()
