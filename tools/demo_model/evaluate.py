"""Scores a model directory: the share of held-out prompts of each skill that it answers exactly right.

    python tools/demo_model/evaluate.py MODEL_DIRECTORY [--record scores.json | --check scores.json]

Prompts go through the directory's own tokenizer and chat template, answers are greedy, in float32.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from chat import Conversation
from mixture import evaluation_set
from skills import is_story
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: TID253

SEED = 20_000
PER_SKILL = 100
TOLERANCE = 0.1  # a rate of 0.9 over 100 prompts has a standard error of 0.03, and training runs differ besides
_BATCH = 50
_MAX_NEW_TOKENS = 400  # counting to a hundred takes about 300


class Generator:
    """Greedy answers from a model directory."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        )  # comes in evaluation mode

    def prompt(self, conversation: Conversation) -> str:
        """The prompt as a server renders it."""
        text = self.tokenizer.apply_chat_template(
            list(conversation.messages[:-1]),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=conversation.thinking,
        )
        return str(text)

    @torch.no_grad()
    def answers(self, prompts: list[str]) -> list[str]:
        """One answer per prompt; an answer that was cut off gets a mark that no right answer has."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        outputs = self.model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new = outputs[:, inputs["input_ids"].shape[1] :]
        eos = self.tokenizer.eos_token_id
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text if eos in row else f"{text} [no end]" for row, text in zip(new.tolist(), texts, strict=True)]


@dataclass(frozen=True)
class Scores:
    """What is recorded about a set of weights: rates are shares of right answers by skill."""

    weights_sha256: str
    total_bytes: int
    prompts_per_skill: int
    rates: dict[str, float]

    @classmethod
    def measure(cls, directory: Path, show_errors: int = 0) -> "Scores":
        """Asks everything in the evaluation set; prints up to `show_errors` wrong answers of each skill."""
        right: dict[str, list[bool]] = defaultdict(list)
        for conversation, answer in _answered(Generator(directory)):
            good = _is_right(conversation, answer)
            right[conversation.skill].append(good)
            if not good and right[conversation.skill].count(False) <= show_errors:
                print(f"{conversation.skill}: {conversation.render_prompt()!r}\n  wanted {conversation.expected()!r}")
                print(f"  got    {answer!r}")
        weights = (directory / "model.safetensors").read_bytes()
        return cls(
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            total_bytes=sum(path.stat().st_size for path in directory.iterdir()),
            prompts_per_skill=PER_SKILL,
            rates={skill: round(sum(goods) / len(goods), 4) for skill, goods in right.items()},
        )

    def shortfalls(self, recorded: dict[str, float], tolerance: float) -> list[str]:
        """The skills that are worse than recorded by more than `tolerance`."""
        return [
            f"{skill}: {self.rates.get(skill, 0.0):.2f}, recorded {rate:.2f}"
            for skill, rate in recorded.items()
            if self.rates.get(skill, 0.0) < rate - tolerance
        ]


def _answered(generator: Generator) -> Iterator[tuple[Conversation, str]]:
    """Every conversation with the model's answer; batches are of one skill, so of similar length."""
    asked = sorted(evaluation_set(SEED, PER_SKILL), key=lambda c: (c.skill, len(c.render_prompt())))
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        yield from zip(batch, generator.answers([generator.prompt(c) for c in batch]), strict=True)


def _is_right(conversation: Conversation, answer: str) -> bool:
    if conversation.skill == "stories":  # there are many right ones
        return is_story(conversation.messages[-2]["content"], answer)
    return answer == conversation.expected()


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Options that `train.py` shares."""
    parser.add_argument("--record", type=Path, help="write the scores to this file")
    parser.add_argument("--check", type=Path, help="fail if a score is below the one in this file")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="by how much it may be below")


def report(scores: Scores, options: argparse.Namespace) -> int:
    """Prints, records and checks scores as the options say; the exit status."""
    for skill, rate in sorted(scores.rates.items()):
        print(f"{skill:24} {rate:7.1%}")
    print(f"{scores.total_bytes} bytes, weights {scores.weights_sha256}")
    if options.record:
        options.record.write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")
    if options.check is None:
        return 0
    recorded = json.loads(options.check.read_text(encoding="utf-8"))["rates"]
    shortfalls = scores.shortfalls(recorded, options.tolerance)
    print("\n".join(["below the recorded scores:", *shortfalls]) if shortfalls else "all recorded scores are reached")
    return 1 if shortfalls else 0


def main() -> int:
    """Command line; the exit status is 1 if a score is below the recorded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--show-errors", type=int, default=0, metavar="N", help="print N wrong answers of each skill")
    parser.add_argument("--threads", type=int, default=1)
    add_scoring_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return report(Scores.measure(options.model, options.show_errors), options)


if __name__ == "__main__":
    raise SystemExit(main())
