"""What dynamo-core ships, registered through the same hooks as everybody else's parts, as import strings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.hookspecs import hookimpl

if TYPE_CHECKING:
    from dynamo.protocols.commands import CommandGroup
    from dynamo.protocols.discovery import Discovery
    from dynamo.protocols.engine import EngineFactory
    from dynamo.protocols.event_plane import EventPlane, EventPlaneOptions
    from dynamo.protocols.parsing import ReasoningOptions, ReasoningParser, ToolCallOptions, ToolCallParser
    from dynamo.protocols.planes import PlaneOptions, RequestPlane
    from dynamo.protocols.registry import Registry
    from dynamo.protocols.routing import WorkerFilter, WorkerPicker, WorkerScorer
    from dynamo.protocols.scheduling import Scheduler

DYNAMO_PLUGIN_API = "1.0"

#: (names, target, summary): the project's name first, then what vLLM, SGLang and users' manifests call the same format.
_TOOL_CALL_PARSERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("hermes", "qwen", "qwen25", "qwen3"),
        "json_blocks:Hermes",
        "Nous Hermes, Qwen 2.5 and 3: JSON in tool_call tags",
    ),
    (("llama3_json", "llama3", "llama4_json"), "llama:Llama3Json", "Llama 3 and 4: JSON, bare or behind python_tag"),
    (("mistral",), "mistral:Mistral", "Mistral, before and after tokenizer v11"),
    (("pythonic", "llama4_pythonic"), "pythonic:Pythonic", "Llama 3.2 and 4, ToolACE: a list of Python calls"),
    (
        ("qwen3_coder", "qwen3_xml", "nemotron_nano"),
        "qwen3_coder:Qwen3Coder",
        "Qwen3-Coder, Qwen3.5: function and parameter tags",
    ),
    (("deepseek_v3", "deepseekv3"), "deepseek:DeepSeekV3", "DeepSeek-V3 and R1"),
    (("deepseek_v3_1", "deepseek_v31", "deepseekv31"), "deepseek:DeepSeekV3", "DeepSeek-V3.1"),
    (("kimi_k2", "kimi_k25"), "kimi:KimiK2", "Kimi K2; keeps the ids of the model"),
    (("glm45", "glm47"), "glm45:Glm45", "GLM-4.5 to 4.7: arg_key and arg_value tags"),
    (("harmony", "gpt_oss", "gpt-oss", "openai"), "harmony:Harmony", "gpt-oss; separates reasoning too"),
    (("nemotron_deci",), "json_blocks:NemotronDeci", "Llama-Nemotron: JSON in TOOLCALL tags"),
    (("jamba",), "json_blocks:Jamba", "Jamba: JSON in tool_calls tags"),
    (("phi4", "phi4_mini_json"), "json_blocks:Phi4", "Phi-4-mini: JSON behind functools"),
    (("granite",), "json_blocks:Granite", "Granite 3: JSON behind a marker"),
    (("guided_json",), "guided:GuidedCalls", "calls forced by a JSON schema: tool_choice required or named"),
)
_REASONING_PARSERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("basic", "qwen3", "glm45", "glm47", "deepseek_v3", "deepseek-v3", "deepseek_v3_1", "deepseek_v31"),
        "reasoning:BasicReasoning",
        "think tags, opened by the model or the prompt",
    ),
    (("nemotron_deci",), "reasoning:BasicReasoning", "think tags, opened by the model or the prompt"),
    (
        ("deepseek_r1", "deepseek-r1", "qwen3-thinking", "step3", "minimax_m2", "nemotron_nano"),
        "reasoning:DeepSeekR1Reasoning",
        "think tags; the text begins within",
    ),
    (("gpt_oss", "gpt-oss", "openai_gptoss"), "harmony:GptOssReasoning", "analysis channel of gpt-oss"),
    (("granite",), "reasoning:GraniteReasoning", "Granite 3.2: two phrases"),
    (("kimi_k2", "kimi", "kimi_k25"), "reasoning:KimiReasoning", "think tags, old and new; a tool call ends them"),
    (("mistral",), "reasoning:MistralReasoning", "Magistral"),
    (("seed_oss",), "reasoning:SeedReasoning", "Seed-OSS"),
)


@hookimpl
def dynamo_register_engines(engines: Registry[EngineFactory]) -> None:
    """The reference engine, the scripted one and the simulated one."""
    engines.register(
        "reference",
        "dynamo.reference.engine:ReferenceEngine",
        stability="beta",
        summary="numpy engine with paged KV; serves the demo model without any download",
    )
    engines.register(
        "echo",
        "dynamo.echo.engine:EchoEngine",
        stability="beta",
        summary="scripted tokens, for tests and plugin authors",
    )
    engines.register(
        "mocker",
        "dynamo.mocker.engine:MockerEngine",
        stability="beta",
        summary="schedules, caches and takes time like a GPU engine, without one",
    )


@hookimpl
def dynamo_register_routers(
    filters: Registry[Callable[[], WorkerFilter]],
    scorers: Registry[Callable[[], WorkerScorer]],
    pickers: Registry[Callable[[], WorkerPicker]],
) -> None:
    """Parts of the simple router modes."""
    filters.register("lora", "dynamo.router.filters:HoldsLora", summary="workers that hold the LoRA adapter")
    filters.register("not-excluded", "dynamo.router.filters:NotExcluded", summary="workers that have not failed it")
    filters.register("pinned", "dynamo.router.filters:Pinned", summary="the worker that the caller chose")
    scorers.register("active-requests", "dynamo.router.scorers:ActiveRequests", summary="fewest requests in flight")
    scorers.register("session-affinity", "dynamo.router.scorers:SessionAffinity", summary="the session's last worker")
    pickers.register("round-robin", "dynamo.router.pickers:RoundRobin", summary="one after the other")
    pickers.register("random", "dynamo.router.pickers:Random", summary="uniformly random")
    pickers.register("power-of-two", "dynamo.router.pickers:PowerOfTwo", summary="the better of two at random")
    pickers.register("max-score", "dynamo.router.pickers:MaxScore", summary="highest score, ties at random")
    pickers.register("softmax", "dynamo.router.pickers:Softmax", summary="drawn, likelier with a higher score")


@hookimpl
def dynamo_register_discovery_backends(backends: Registry[Callable[[str], Discovery]]) -> None:
    """Discovery within a process, on one machine, and through etcd."""
    backends.register("memory", "dynamo.runtime.discovery.memory:MemoryDiscovery", summary="one process")
    backends.register("file", "dynamo.runtime.discovery.file:FileDiscovery", summary="processes of one machine")
    backends.register(
        "etcd", "dynamo.runtime.discovery.etcd:EtcdDiscovery", summary="any number of machines; needs dynamo-core[etcd]"
    )


@hookimpl
def dynamo_register_request_planes(planes: Registry[Callable[[PlaneOptions], RequestPlane]]) -> None:
    """Requests over TCP and NATS."""
    planes.register(
        "tcp",
        "dynamo.runtime.request_plane.tcp:TcpRequestPlane",
        summary="multiplexed streams over TCP or Unix sockets",
    )
    planes.register(
        "nats",
        "dynamo.runtime.request_plane.nats:NatsRequestPlane",
        summary="the same streams over NATS; needs dynamo-core[nats]",
    )


@hookimpl
def dynamo_register_event_planes(planes: Registry[Callable[[EventPlaneOptions], EventPlane]]) -> None:
    """Events without a broker, and over NATS."""
    planes.register(
        "zmq", "dynamo.runtime.event_plane.zmq:ZmqEventPlane", summary="ZeroMQ PUB/SUB between the processes themselves"
    )
    planes.register(
        "nats",
        "dynamo.runtime.event_plane.nats:NatsEventPlane",
        summary="NATS subjects, on request kept by JetStream; needs dynamo-core[nats]",
    )


@hookimpl
def dynamo_register_schedulers(schedulers: Registry[Callable[[Path], Scheduler]]) -> None:
    """Processes of this machine."""
    schedulers.register("local", "dynamo.serve.scheduler:LocalScheduler", summary="processes on this machine")


@hookimpl
def dynamo_register_parsers(
    tool_calls: Registry[Callable[[ToolCallOptions], ToolCallParser]],
    reasoning: Registry[Callable[[ReasoningOptions], ReasoningParser]],
) -> None:
    """The formats of the common open models."""
    for names, target, summary in _TOOL_CALL_PARSERS:
        for name in names:
            tool_calls.register(name, f"dynamo.parsers.{target}", summary=summary)
    for names, target, summary in _REASONING_PARSERS:
        for name in names:
            reasoning.register(name, f"dynamo.parsers.{target}", summary=summary)


@hookimpl
def dynamo_register_commands(group: CommandGroup) -> None:
    """The commands of dynamo-core."""
    group.add_lazy_command("serve", "dynamo.serve.command:serve", "Serve a model, or a graph file, on this machine.")
    group.add_lazy_command("chat", "dynamo.cli.chat:chat", "Talk to any OpenAI-compatible server.")
    group.add_lazy_command("explain", "dynamo.cli.explain:explain", "Show why a request went to its worker.")
    group.add_lazy_command("plugins", "dynamo.cli.plugins:plugins_command", "Show what is installed and healthy.")
    group.add_lazy_command("doctor", "dynamo.cli.doctor:doctor", "Check this machine, with a fix for each problem.")
    group.add_lazy_command("replay", "dynamo.replay.command:replay", "Replay a trace on simulated workers.")
    group.add_lazy_command("conformance", "dynamo.testing.command:conformance", "Test a plugin against its contract.")
