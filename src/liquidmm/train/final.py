"""The folder that comes out of a training: a plain checkpoint with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liquidmm.files import atomic_folder
from liquidmm.model.checkpoint import Checkpoint


def write_final(out: Path, checkpoint: Checkpoint, card: str, dtype: str) -> Path:
    """Write what the run was for: a plain checkpoint with a model card.

    Args:
        out: Folder of the run.
        checkpoint: The trained model.
        card: Text of README.md.
        dtype: Type of the weights on disk.

    Returns:
        OUT/final; one that was there is replaced.

    Raises:
        LiquidError: The disk refused.
    """
    folder = out / "final"
    with atomic_folder(folder, overwrite=True) as temporary:
        checkpoint.save(temporary, dtype=dtype)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder


def model_card(run: dict[str, Any], figures: dict[str, Any]) -> str:
    """Write the README.md of a trained checkpoint.

    Args:
        run: The resolved run.
        figures: The last validation, or the last training figures.

    Returns:
        Markdown.
    """
    data, loop, optim = run["data"], run["train"], run["optim"]
    sources = [f"| `{s['path']}` | {s['task']} | {s['weight']} |" for s in data["sources"]]
    results = [f"| {name} | {value} |" for name, value in figures.items()]
    seen = loop["steps"] * loop["global_batch_size"] * data["seq_len"]
    lines = [
        "# A Liquid model",
        "",
        "A stock causal language model whose vocabulary also holds the codes of an image",
        "tokenizer: it reads and writes text and pictures as one stream of ids. Load it with",
        "`liquidmm.load(folder)`; for text alone `AutoModelForCausalLM.from_pretrained` does.",
        "",
        "## Training",
        "",
        f"Started from `{run['checkpoint']}`: {loop['steps']} steps of {loop['global_batch_size']} rows",
        f"of {data['seq_len']} ids, {seen / 1e6:.1f}M ids in all. Matrices by {optim['optimizer']},",
        f"the rest by adamw; learning rate {optim['lr']} ({optim['schedule']}, warm-up",
        f"{optim['warmup_steps']}), weight decay {optim['weight_decay']}, clip {optim['grad_clip']}, max-z",
        f"{optim['max_z_loss']}, products in {loop['precision']}, seed {run['seed']}.",
        "",
        "| shards | task | weight |",
        "|---|---|---|",
        *sources,
        "",
        "## Figures at the end",
        "",
        "Loss in nats a label, accuracy of the most likely id.",
        "",
        "| figure | value |",
        "|---|---|",
        *results,
        "",
    ]
    return "\n".join(lines)
