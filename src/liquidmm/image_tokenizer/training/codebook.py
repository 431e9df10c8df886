"""The codebook during training: creation, moving averages, restarts and usage.

Codebook vectors are exponential moving averages of the latents assigned to them (van den Oord et
al. 2017, appendix A.1). Unlike gradient steps, averages need no learning rate and no optimizer
state, follow the encoder within about 1 / (1 - decay) steps, and count uses, which reveals unused
codes. All random choices come from the generator passed in.
"""

import math

import torch
from torch import Tensor

from liquidmm.image_tokenizer.vqgan import Quantizer


def kmeans(vectors: Tensor, count: int, iterations: int, random: torch.Generator) -> Tensor:
    """Compute ``count`` centers of a set of vectors.

    Args:
        vectors: (N, D), float32; if N is less than ``count``, centers repeat with noise.
        count: Number of centers.
        iterations: Iterations of Lloyd's algorithm after the random initialization; an empty center
            is moved to a random vector.
        random: Random state on the CPU.

    Returns:
        (count, D), float32.
    """
    total = len(vectors)
    order = torch.randperm(total, generator=random)
    if total < count:
        order = torch.cat([order, torch.randint(total, (count - total,), generator=random)])
    centers = vectors[order[:count].to(vectors.device)].clone()
    if total < count:
        noise = torch.randn(centers.shape, generator=random).to(vectors.device)
        centers += noise * vectors.std() * 1e-3
    search = Quantizer(count, vectors.shape[1]).to(vectors.device)
    for _ in range(iterations):
        search.embedding.weight.data.copy_(centers)
        codes = search.nearest(vectors)
        sums = torch.zeros_like(centers).index_add_(0, codes, vectors)
        counts = torch.bincount(codes, minlength=count).unsqueeze(1)
        spare = vectors[torch.randint(total, (count,), generator=random).to(vectors.device)]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), spare)
    return centers


class MovingCodebook:
    """Moves the vectors of a quantizer along with the latents.

    It starts from the quantizer's current vectors and assumes that each is used once per step.
    """

    def __init__(self, quantizer: Quantizer, decay: float) -> None:
        self.quantizer = quantizer
        self.decay = decay
        vectors = quantizer.embedding.weight.detach().float()
        self.uses = torch.ones(len(vectors), device=vectors.device)  # (K,), moving average
        self.sums = vectors.clone()  # (K, D), moving average
        # Steps since the last use, and uses since the last report.
        self.idle = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        self.window = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for an exact resume, except for the vectors themselves."""
        return {"uses": self.uses, "sums": self.sums, "idle": self.idle, "window": self.window}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of ``state_dict``."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def reset(self, vectors: Tensor, uses: float) -> None:
        """Replace all vectors, (K, D), assuming that each is used ``uses`` times per step."""
        self.quantizer.embedding.weight.data.copy_(vectors)
        self.uses.fill_(uses)
        self.sums.copy_(vectors * uses)
        self.idle.zero_()
        self.window.zero_()

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Add the latents (B, D, h, w) of one step, with their codes (B, h, w), to the averages."""
        vectors = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        flat = codes.flatten()
        counts = torch.bincount(flat, minlength=len(self.uses))
        self.count_uses(counts)
        sums = torch.zeros_like(self.sums).index_add_(0, flat, vectors)
        self.uses.lerp_(counts.float(), 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        # A code whose average has decayed to 0 keeps its vector until it is used or restarted.
        alive = (self.uses > 1e-3).unsqueeze(1)
        moved = self.sums / self.uses.clamp(min=1e-3).unsqueeze(1)
        weight = self.quantizer.embedding.weight
        weight.data.copy_(torch.where(alive, moved, weight))

    def count_uses(self, counts: Tensor) -> None:
        """Record the uses of one step, (K,) int64, without moving any vector."""
        self.window += counts
        self.idle = torch.where(counts > 0, 0, self.idle + 1)

    @torch.no_grad()
    def restart(self, latents: Tensor, after: int, random: torch.Generator) -> Tensor:
        """Move codes unused for ``after`` steps to random latents, (B, D, h, w); return them."""
        dead = (self.idle >= after).nonzero().flatten()
        if not len(dead):
            return dead
        vectors = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randint(len(vectors), (len(dead),), generator=random)
        fresh = vectors[chosen.to(vectors.device)]
        self.quantizer.embedding.weight.data[dead] = fresh
        self.uses[dead] = 1.0
        self.sums[dead] = fresh
        self.idle[dead] = 0
        return dead

    def report(self) -> dict[str, float]:
        """Return the `code_usage` since the last report."""
        usage = code_usage(self.window)
        self.window.zero_()
        return usage


def code_usage(counts: Tensor) -> dict[str, float]:
    """Return the fraction of codes in use and their perplexity, given the uses of each, (K,) int64.

    The perplexity is the effective number of codes, exp of the entropy of the use counts, from 1 to
    K; 0 if nothing was counted.
    """
    total = counts.sum()
    share = counts.double() / total.clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum().item()
    return {
        "codes_used": float((counts > 0).sum()) / len(counts),
        "perplexity": math.exp(entropy) if total else 0.0,
    }
