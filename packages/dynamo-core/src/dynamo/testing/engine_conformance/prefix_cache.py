"""Reuse of KV blocks, and whether KV events tell the truth about it (DESIGN 4.2)."""

from __future__ import annotations

from collections import defaultdict

from dynamo.testing.engine_conformance.agreement import disagreement
from dynamo.testing.engine_conformance.check import Checks, expect, fail, skip
from dynamo.testing.engine_conformance.driver import EngineDriver
from dynamo.testing.engine_conformance.mirror import KvMirror

__all__ = ["checks"]

_PROBES = 12
_OVERFILL = 1.25

checks = Checks()


@checks.add("prefix.reuse", after=["stream.usage"])
async def reuses_prefixes(engine: EngineDriver) -> None:
    """cached_tokens is 0 for a new prompt; the same prompt again finds its blocks in the cache."""
    prompt = engine.prompt(4 * engine.config.block_size_tokens + 3)
    first = (await engine.run(engine.request(prompt))).usage.cached_tokens
    again = (await engine.run(engine.request(prompt))).usage.cached_tokens
    expect(first == 0, f"a prompt that was never sent has {first} cached tokens", "count only what this request reused")
    if again == 0 and not engine.config.capabilities.kv_events:
        skip("the engine reports no cached tokens and does not declare kv_events: it seems to have no prefix cache")
    expect(
        again >= engine.config.block_size_tokens,
        f"the second time {again} of {len(prompt)} prompt tokens were cached",
        "report reused prompt tokens as usage.cached_tokens, and keep the blocks of finished requests",
    )


@checks.add("prefix.salt", after=["prefix.reuse"])
async def salts_separate(engine: EngineDriver) -> None:
    """Blocks are shared only between requests of the same cache_salt."""
    prompt = engine.prompt(4 * engine.config.block_size_tokens + 3)
    for salt in (None, "tenant-a"):
        await engine.run(engine.request(prompt, cache_salt=salt))
    other = (await engine.run(engine.request(prompt, cache_salt="tenant-b"))).usage.cached_tokens
    expect(
        other == 0,
        f"a request reused {other} tokens of requests with another cache_salt",
        "make cache_salt part of the hash of the first block; otherwise tenants can probe each other's prompts",
    )


@checks.add("prefix.same_tokens", after=["prefix.reuse", "determinism.greedy"])
async def hits_change_nothing(engine: EngineDriver) -> None:
    """A prompt that is found in the cache gives the same ids as when it was computed."""
    prompt = engine.prompt(4 * engine.config.block_size_tokens + 3)
    computed = await engine.greedy(prompt, max_tokens=16)
    for part in (prompt, prompt[: -2 * engine.config.block_size_tokens]):
        reference = computed if part is prompt else await engine.greedy(part, max_tokens=16, cache_salt="apart")
        difference = disagreement(reference, (await engine.greedy(part, max_tokens=16)).ids)
        expect(
            difference is None,
            f"with cached blocks {difference}",
            "reuse a block only for the same ids at the same position with the same ids before it",
        )


@checks.add("events.stored", needs=["kv_events"], after=["config", "prefix.reuse"])
async def stored_blocks_are_announced(engine: EngineDriver) -> None:
    """Every block that a request reuses was announced before by BlockStored, with its token ids."""
    mirror = _mirror(engine)
    prompt = engine.prompt(4 * engine.config.block_size_tokens + 3)
    await engine.run(engine.request(prompt))
    await engine.events_settled(mirror)
    announced = mirror.prefix_blocks(prompt)
    cached = (await engine.run(engine.request(prompt))).usage.cached_tokens
    expect(
        announced * engine.config.block_size_tokens >= cached,
        f"{cached} tokens were reused; events had announced {announced} blocks of the prompt",
        "send BlockStored for every full block that enters the prefix cache, with its token ids and parent",
    )


@checks.add("events.salt", needs=["kv_events"], after=["events.stored", "prefix.salt"])
async def events_carry_the_salt(engine: EngineDriver) -> None:
    """BlockStored names the cache_salt of the request."""
    mirror = _mirror(engine)
    prompt = engine.prompt()
    await engine.run(engine.request(prompt, cache_salt="tenant-c"))
    await engine.events_settled(mirror)
    expect(
        mirror.prefix_blocks(prompt, salt="tenant-c") > 0 and mirror.prefix_blocks(prompt) == 0,
        "no BlockStored event with cache_salt 'tenant-c' came for a request with that salt",
        "set BlockStored.cache_salt; routers hash it into their block hashes",
    )


@checks.add("events.eviction", needs=["kv_events"], after=["events.stored", "load.counts"])
async def evictions_are_announced(engine: EngineDriver) -> str:
    """When more blocks are sent than the pool holds, BlockRemoved announces those that had to go."""
    mirror = _mirror(engine)
    config = engine.config
    pool_tokens = config.total_kv_blocks * config.block_size_tokens * config.dp_size
    needed = int(pool_tokens * _OVERFILL)
    if needed > engine.settings.max_eviction_tokens:
        limit = int(engine.settings.max_eviction_tokens / _OVERFILL / config.block_size_tokens)
        skip(f"the KV pool has {config.total_kv_blocks} blocks; start the engine with at most {limit} to try evictions")
    length = max(2 * config.block_size_tokens, min(config.context_length_tokens - 16, pool_tokens // 8))
    for _ in range(0, needed, length):
        await engine.run(engine.request(engine.prompt(length), max_tokens=1))
    await engine.events_settled(mirror)
    expect(
        mirror.removals > 0,
        f"{needed} tokens went through a pool of {pool_tokens}, and no BlockRemoved came",
        "send BlockRemoved for every cached block that is evicted",
    )
    return f"{mirror.removals} blocks removed"


@checks.add("events.content", needs=["kv_events"], after=["events.salt", "events.eviction"])
async def events_tell_what_was_sent(engine: EngineDriver) -> str:
    """Chains of announced blocks, put together by parent, are beginnings of requests that were sent and answered."""
    mirror = _mirror(engine)
    await engine.events_settled(mirror)
    size = engine.config.block_size_tokens
    sent = defaultdict(list)
    for stream in engine.sent:
        request = stream.request
        ids = request.prompt().tolist() + stream.ids
        sent[request.cache_salt, request.lora, tuple(ids[:size])].append(ids)
    chains = list(mirror.chains())
    for tokens, salt, lora in chains:
        known = sent[salt, lora, tuple(tokens[:size])]
        if not any(ids[: len(tokens)] == tokens[: len(ids)] for ids in known):
            fail(
                f"a chain of {len(tokens)} ids, [{', '.join(map(str, tokens[:6]))}, ...], belongs to no request",
                "BlockStored.token_ids are the ids of its own blocks, parent_hash the block before the first one",
            )
    return f"{len(chains)} chains"


@checks.add("events.agree", needs=["kv_events"], after=["events.content"])
async def events_agree_with_hits(engine: EngineDriver) -> str:
    """A request reuses the blocks that events say are cached, no more and no fewer (save a last full one)."""
    mirror = _mirror(engine)
    size = engine.config.block_size_tokens
    prompts = [stream.request.prompt().tolist() for stream in engine.sent if stream.request.cache_salt is None]
    prompts = [p for p in prompts if 2 * size <= len(p) < engine.config.context_length_tokens - 1]
    for prompt in engine.random.sample(prompts, min(_PROBES, len(prompts))):
        await engine.events_settled(mirror)
        believed = mirror.prefix_blocks(prompt) * size
        cached = (await engine.run(engine.request(prompt, max_tokens=1))).usage.cached_tokens
        least = min(believed, (len(prompt) - 1) // size * size) if engine.config.dp_size == 1 else 0
        seen = f"{cached} of {len(prompt)} prompt tokens were reused; events say {believed} are cached"
        expect(cached <= believed, seen, "send BlockStored for every block that enters the cache")
        expect(cached >= least, seen, "send BlockRemoved as soon as a block is evicted")
    return f"{min(_PROBES, len(prompts))} prompts"


@checks.add("events.rules", needs=["kv_events"], after=["events.agree"])
async def events_are_consistent(engine: EngineDriver) -> str:
    """Blocks are stored once, with a known parent and block_size ids each, and removed only while they are stored."""
    mirror = _mirror(engine)
    await engine.events_settled(mirror)
    if mirror.problems:
        more = f" (and {len(mirror.problems) - 1} more)" if len(mirror.problems) > 1 else ""
        fail(mirror.problems[0] + more, "send one event for each change of the prefix cache, in order")
    return f"{mirror.received} batches of events"


@checks.add("events.load", needs=["kv_events", "load"], after=["events.rules", "load.counts"])
async def events_agree_with_load(engine: EngineDriver) -> None:
    """At rest the blocks that events have announced are as many as load() says are cached."""
    mirror = _mirror(engine)
    await engine.events_settled(mirror)
    if engine.cached_blocks() == 0 and mirror.count() > 0:
        skip("load() reports no cached_kv_blocks")
    expect(
        mirror.count() == engine.cached_blocks(),
        f"events say {mirror.count()} blocks are cached; load() says {engine.cached_blocks()}",
        "announce every block that enters or leaves the prefix cache",
    )


def _mirror(engine: EngineDriver) -> KvMirror:
    if engine.mirror is None:
        fail("the engine declares kv_events and has no kv_events()", "implement dynamo.protocols.engine.KvEventSource")
    return engine.mirror
