"""The suite passes sound engines, and names the one rule that a broken engine breaks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamo.echo.engine import EchoEngine
from dynamo.errors import ConfigError
from dynamo.protocols.engine import EngineFactory, EngineOptions
from dynamo.testing.engine_conformance import SuiteSettings, engine_checks, engine_report, run_engine_conformance

# Small pools evict quickly; short patience makes hanging engines cheap.
OPTIONS = EngineOptions(argv=("--num-blocks", "256", "--max-model-len", "512"))
SETTINGS = SuiteSettings(
    check_timeout_seconds=30.0, soon_seconds=1.0, events_quiet_seconds=0.01, lora_directory="adapter"
)

#: (engine, the check that must fail, words of what the report says was seen)
BROKEN = [
    ("FailsAtStart", "start", "raised FileNotFoundError: model.bin"),
    ("PromisesEventsItCannotSend", "config", "kv_events is declared, but the engine has not the methods"),
    ("ForgetsContextLength", "config", "context_length_tokens is 0"),
    ("NeverFinishes", "stream.finish", "none of which has a finish_reason"),
    ("FinishesTwice", "stream.finish", "outputs [7, 8] of 9 have a finish_reason"),
    ("FinishesEarly", "stream.finish", "output 7 has the finish_reason and 1 follow"),
    ("StreamsEverythingAgain", "stream.deltas", "each output repeats the ids of the one before it"),
    ("CountsStepsDown", "stream.steps", "the steps of one stream are"),
    ("CountsThePromptAsCompletion", "stream.usage", "completion_tokens is 40; it should be 5"),
    ("IgnoresMaxTokens", "limits.max_tokens", "ids came for max_tokens=1"),
    ("IgnoresIgnoreEos", "limits.ignore_eos", "with ignore_eos the stream ended after 35 ids"),
    ("StreamsTheStopId", "limits.stop_token_ids", "is among the streamed ids"),
    ("IgnoresStopIds", "limits.stop_token_ids", "is among the streamed ids"),
    ("OverrunsTheContext", "limits.context", "prompt and output had 515 tokens of a context of 512"),
    ("IgnoresMinTokens", "limits.min_tokens", "a stop id ended it after 1 of 4 ids"),
    ("RollsDice", "determinism.greedy", "the same greedy request differed: token 0 is"),
    ("ForgetsTheSeed", "determinism.seed", "two runs with seed 1234 differed"),
    ("ReportsProbabilities", "logprobs.tokens", "logprob is 1.0"),
    ("LeavesOutCachedPromptLogprobs", "logprobs.prompt", "the second time 3 entries came"),
    ("MixesUpABatch", "concurrency", "of 32 differs from its run alone"),
    ("ResumesFromTheBeginning", "resume.tokens", "continued after 5 of 12 ids: token 5 is"),
    ("CountsResumedOutputAsPrompt", "resume.usage", "usage is 40 prompt and 7 completion tokens"),
    ("MinTokensStartAnew", "resume.min_tokens", "new ids came before the stop id"),
    ("ServesEmptyPrompts", "refuse.empty_prompt", "a request without token ids: was served"),
    ("CutsLongPrompts", "refuse.context_overflow", "a prompt of 513 tokens for a context of 512: was served"),
    ("RefusesWithoutAReason", "refuse.context_overflow", "InvalidRequest has reason None"),
    ("RaisesForeignErrors", "errors.types", "a token id beyond any vocabulary: raised IndexError"),
    ("DiesOfABadRequest", "errors.types", "after a logit bias for an unknown id a plain request raised InvalidRequest"),
    ("RefusesPriorities", "request.priority", "raised InvalidRequest: no priorities here"),
    ("IgnoresDeadlines", "request.deadline", "ids were generated, finish_reason 'length'"),
    ("ForgetsToFree", "load.counts", "KV blocks are in use after the stream, "),
    ("ReportsNothingRunning", "load.counts", "while a stream ran load() said"),
    ("IgnoresAbort", "abort.ends", "after abort() the stream went on to"),
    ("MissesAnEarlyAbort", "abort.at_once", "after abort() the stream went on to"),
    ("FreesOnlyWhenRead", "abort.frees_kv", "used KV blocks before and still shows"),
    ("AbortOfUnknownIdsFails", "abort.idempotent", "raised KeyError: 'conformance-unknown'"),
    ("ForgetsClosedStreams", "close.frees_kv", "still shows 3 after closing the iterator"),
    ("StumblesInAStorm", "cancel.storm", "raised RuntimeError: too many at once"),
    ("InventsCacheHits", "prefix.reuse", "a prompt that was never sent has 67 cached tokens"),
    ("SharesAcrossSalts", "prefix.salt", "a request reused 64 tokens of requests with another cache_salt"),
    ("ReadsTheWrongBlocks", "prefix.same_tokens", "with cached blocks token 0 is"),
    ("LosesItsEventSocket", "events.stored", "raised ConnectionError: the event socket is closed"),
    ("DropsStoredEvents", "events.stored", "64 tokens were reused; events had announced 0 blocks"),
    ("HidesTheSalt", "events.salt", "no BlockStored event with cache_salt 'tenant-c'"),
    ("StoresWrongTokens", "events.content", "belongs to no request"),
    ("DropsRemovedEvents", "events.eviction", "and no BlockRemoved came"),
    ("DropsSomeRemovedEvents", "events.agree", "prompt tokens were reused; events say"),
    ("RemovesUnknownBlocks", "events.rules", "BlockRemoved names block 7, which was never stored"),
    ("StoresTwice", "events.rules", "which was already stored"),
    ("ReportsHalfTheCache", "events.load", "blocks are cached; load() says 12"),
    ("EmbedsDifferentlyEachTime", "embeddings", "the same prompt gave two different vectors"),
    ("TakesBrokenGrammars", "guided.refusal", "guided kind 'choice' with '[]': was served"),
    ("ServesUnknownAdapters", "lora.unknown", "a request for an unknown adapter: was served"),
    ("SharesAcrossAdapters", "lora.prefix", "a request with an adapter reused 64 tokens that were computed without it"),
    ("LoadsAnAdapterTwice", "lora.life", "load_lora() took a name twice"),
    ("IgnoresGrammars", "guided", "kind 'choice' gave"),
    ("ServesWhileDraining", "drain", "requests sent after drain() are served"),
    ("CutsStreamsToDrain", "drain", "of 24 ids with 'cancelled' during drain()"),
    ("RefusesWithTheWrongError", "drain", "a request sent after drain() raised InvalidRequest"),
    ("DrainsForever", "drain.deadline", "drain(0.2) had not returned after 1 s"),
    ("CleansUpSilently", "cleanup.open_streams", "the stream ended with 'cancelled'"),
    ("CleansUpOnce", "cleanup.idempotent", "raised RuntimeError: already closed"),
]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EngineFactory]:
    """An engine class of the modules beside this one, by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    modules = [importlib.import_module(name) for name in ("broken_engines", "broken_caches")]

    def find(name: str) -> EngineFactory:
        return next(getattr(module, name) for module in modules if hasattr(module, name))

    return find


@pytest.mark.parametrize(("name", "check_id", "seen"), BROKEN, ids=[f"{row[0]}-{row[1]}" for row in BROKEN])
async def test_a_broken_engine_fails_exactly_its_own_check(broken, name: str, check_id: str, seen: str) -> None:
    report = await engine_report(broken(name), OPTIONS, settings=SETTINGS)
    failures = {result.id: result for result in report.results if result.status == "failed"}
    assert list(failures) == [check_id]
    assert seen in failures[check_id].seen
    assert failures[check_id].contract
    assert failures[check_id].fix
    assert not report.passed


def test_every_check_of_the_contract_has_an_engine_that_breaks_it() -> None:
    covered = {check_id for _, check_id, _ in BROKEN}
    # A cancel reaches the engine as abort(): whatever breaks cancel.ends breaks abort.ends, on which it builds.
    assert {check.id for check in engine_checks()} - covered == {"cancel.ends"}


@pytest.mark.parametrize("name", ["AnswersYes", "HostsAdapters"])
async def test_sound_engines_with_rarer_features_pass(broken, name: str) -> None:
    report = await engine_report(broken(name), OPTIONS, only=["guided", "lora"], settings=SETTINGS)
    report.raise_for_failures()
    assert report.named("ok")


async def test_a_start_that_hangs_fails_and_blocks_everything(broken) -> None:
    report = await engine_report(broken("HangsAtStart"), OPTIONS, settings=SuiteSettings(start_timeout_seconds=0.2))
    assert report.named("failed") == ["start"]
    assert report.results[0].seen == "start() did not return within 0.2 s"
    assert len(report.named("blocked")) == len(engine_checks())
    assert broken("HangsAtStart").cleaned == 1


async def test_a_stream_that_hangs_fails_a_check_and_not_the_run(broken) -> None:
    settings = SuiteSettings(check_timeout_seconds=0.3, soon_seconds=0.2, events_quiet_seconds=0.01)
    report = await engine_report(broken("HangsInTheMiddle"), OPTIONS, only=["stream"], settings=settings)
    assert report.named("failed") == ["stream.finish"]
    assert report.results[1].seen == "the check did not end within 0.3 s"
    assert report.named("blocked") == ["stream.deltas", "stream.steps", "stream.usage"]


def test_echo_keeps_the_contract() -> None:
    report = run_engine_conformance(EchoEngine, OPTIONS, settings=SETTINGS)
    report.raise_for_failures()
    assert report.named("skipped") == ["guided", "guided.refusal", "lora.unknown", "lora.life", "lora.prefix"]


def test_a_report_of_a_broken_engine_raises_with_what_to_do(broken) -> None:
    report = run_engine_conformance(broken("NeverFinishes"), OPTIONS, only=["stream"], settings=SETTINGS)
    with pytest.raises(AssertionError, match=r"(?s)NeverFinishes breaks its contract.*fix +give the last output a"):
        report.raise_for_failures()


def test_a_pool_too_large_to_fill_skips_evictions_with_the_size_that_would_do() -> None:
    settings = SuiteSettings(max_eviction_tokens=1000, events_quiet_seconds=0.01)
    report = run_engine_conformance(EchoEngine, OPTIONS, only=["events.eviction"], settings=settings)
    skipped = next(result for result in report.results if result.id == "events.eviction")
    assert skipped.status == "skipped"
    assert skipped.seen == "the KV pool has 256 blocks; start the engine with at most 50 to try evictions"


def test_an_unknown_check_name_is_refused_with_the_families() -> None:
    with pytest.raises(ConfigError, match=r"there is no check 'evnts'\nfamilies: abort, cancel, .*events"):
        engine_checks(["evnts"])


def test_every_check_runs_behind_those_that_it_builds_on() -> None:
    seen: set[str] = set()
    for check in engine_checks():
        assert set(check.after) <= seen, check.id
        seen.add(check.id)
