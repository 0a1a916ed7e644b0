"""Makes the golden outputs of the reference engine's tests: tiny models, run by transformers in float32.

Needs the packages of requirements.txt beside this file, in an environment of its own::

    python tools/reference_golden/make_golden.py

Writes one ``.npz`` per case into ``packages/dynamo-core/tests/reference/golden/``: all logits of the first prompt, and
for every prompt the greedy continuation and the mean of the last hidden states. Prompts whose greedy choice is a close
call anywhere are passed over, since rounding may tip those.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[2] / "packages/dynamo-core/tests/reference/golden"
#: Smallest gap between the best and the second logit that is not a close call in float32.
MARGIN = 5e-3


def load_tiny_models() -> ModuleType:
    """The tests' own generator of models and prompts."""
    spec = importlib.util.spec_from_file_location("tiny_models", GOLDEN / "tiny_models.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{GOLDEN} has no tiny_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def continue_greedily(model: Any, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
    """Greedy ids without a KV cache, and the smallest margin met."""
    import torch

    ids, margin = list(prompt), float("inf")
    for _ in range(new_tokens):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], margin


def draw_prompt(tiny: ModuleType, name: str, model: Any, length: int) -> tuple[list[int], list[int]]:
    """The first random prompt of this length whose continuation has no close call, and that continuation."""
    for draw in range(1000):
        prompt = tiny.prompt(name, length, draw)
        tokens, margin = continue_greedily(model, prompt, tiny.NEW_TOKENS)
        if margin >= MARGIN and len(set(tokens)) >= tiny.NEW_TOKENS // 4:
            print(f"{name}: prompt of {length} tokens, draw {draw}, {len(set(tokens))} distinct ids, {margin=:.4f}")
            return prompt, tokens
    raise SystemExit(f"{name}: no prompt of {length} tokens has a margin of {MARGIN}; change the scale of the weights")


def run_case(tiny: ModuleType, name: str, model: Any) -> dict[str, np.ndarray]:
    """The golden arrays of one model."""
    import torch

    golden: dict[str, np.ndarray] = {}
    for index, length in enumerate(tiny.PROMPT_LENGTHS):
        prompt, tokens = draw_prompt(tiny, name, model, length)
        output = model(torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
        golden[f"prompt_{index}"] = np.array(prompt, np.int32)
        golden[f"tokens_{index}"] = np.array(tokens, np.int32)
        golden[f"mean_{index}"] = output.hidden_states[-1][0].mean(0).numpy()
        if index == 0:
            golden["logits"] = output.logits[0].numpy()
    return golden


def main() -> None:
    """Write every case."""
    import peft
    import torch
    import transformers

    tiny = load_tiny_models()
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        for case in tiny.CASES:
            directory = tiny.write_model(Path(folder) / case, case)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            golden = run_case(tiny, case, model)
            np.savez_compressed(GOLDEN / f"{case}.npz", **golden)
        adapter = tiny.write_lora(Path(folder) / "lora")
        base = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / tiny.LORA_BASE, dtype=torch.float32, attn_implementation="eager"
        )
        model = peft.PeftModel.from_pretrained(base, adapter).eval()
        golden = run_case(tiny, "lora", model)
        np.savez_compressed(GOLDEN / "lora.npz", **golden)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    (GOLDEN / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    print("wrote", GOLDEN, "with", versions, file=sys.stderr)


if __name__ == "__main__":
    main()
