"""Trains the demo model from nothing and writes a model directory that any Llama engine loads.

    python tools/demo_model/train.py --out DIRECTORY

prints the scores of every skill at the end and records them. About twelve minutes on one CPU core. See README.md.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch  # noqa: TID253
from chat import BOS, EOS, PAD, Conversation
from corpus import Batch, Encoder, batches
from evaluate import Scores, add_scoring_options, report
from mixture import training_text
from muon import Muon
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: TID253
from vocabulary import MAX_POSITIONS, save_tokenizer, train_tokenizer

VOCABULARY = 1152
TOKENIZER_TEXTS = 8000
TOKENS_PER_BATCH = 2048
EMBEDDING_LR = 4e-3  # AdamW: embeddings and norms
MATRIX_LR = 0.02  # Muon: everything else
WARM_UP_STEPS = 50
FINAL_LR_SHARE = 0.02


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """An untrained Llama of 0.9 million parameters.

    A head size of 32 is the smallest that GPU attention kernels take.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def learning_rate_share(step: int, steps: int) -> float:
    """A linear warm-up, then a cosine down to `FINAL_LR_SHARE`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; logits are computed for those only."""
    hidden = model.model(batch.ids[:, :-1]).last_hidden_state
    learned = batch.learned[:, 1:]
    logits = model.lm_head(hidden[learned]).float()
    return torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][learned])


def optimizers_for(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    adam = torch.optim.AdamW(rest, lr=EMBEDDING_LR, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    return [Muon(matrices, lr=MATRIX_LR), adam]


def fit(model: LlamaForCausalLM, stream: Iterator[Batch], steps: int) -> None:
    """Trains in place for a fixed number of steps, so that a seed fixes the data that is seen."""
    optimizers = optimizers_for(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
        for optimizer in optimizers
    ]
    model.train()
    began, tokens, smoothed = time.monotonic(), 0, 0.0
    for step, batch in enumerate(itertools.islice(stream, steps)):
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += batch.ids.numel()
        smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
        if step % 100 == 0 or step == steps - 1:
            elapsed = time.monotonic() - began
            print(f"{elapsed:5.0f}s step {step} loss {smoothed:.4f} {tokens / elapsed:.0f} tokens/s", flush=True)


def train(out: Path, steps: int, seed: int) -> None:
    """Writes tokenizer, template, configuration and bf16 weights to `out`."""
    torch.manual_seed(seed)
    tokenizer_texts = itertools.islice(training_text(seed), TOKENIZER_TEXTS)
    tokenizer = train_tokenizer((_text(item) for item in tokenizer_texts), VOCABULARY)
    model = new_model(tokenizer)
    print(f"{model.num_parameters()} parameters", flush=True)
    fit(model, batches(training_text(seed + 1), Encoder(tokenizer), TOKENS_PER_BATCH, seed), steps)
    model.bfloat16().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner only
    save_tokenizer(tokenizer, out)


def _text(item: Conversation | str) -> str:
    return item if isinstance(item, str) else item.render()


def main() -> int:
    """Command line; the exit status is 1 if a score is below the recorded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    add_scoring_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.steps, options.seed)
    return report(Scores.measure(options.out), options)


if __name__ == "__main__":
    raise SystemExit(main())
