"""Learning the codebook of an image tokenizer, watching its use and keeping it up.

Contract: the vectors are exponential moving averages of the latents that choose them (van den Oord
et al. 2017, appendix A.1), not gradient steps. Reason: the average needs no learning rate and no
optimizer state, follows the encoder within about 1 / (1 - decay) steps, and its counts show dead
codes for nothing. All random choices come from the generator that is passed in.
"""

import math

import torch
from torch import Tensor

from liquidmm.image_tokenizer.vqgan import Quantizer


def kmeans(vectors: Tensor, count: int, iterations: int, random: torch.Generator) -> Tensor:
    """Make ``count`` centres of a cloud of vectors.

    Args:
        vectors: (N, D), float32; N may be less than ``count``, then centres repeat with noise.
        count: Centres wanted.
        iterations: Rounds of Lloyd's algorithm after the random choice; an empty centre is moved
            onto a random vector.
        random: Random state on the CPU.

    Returns:
        (count, D), float32.
    """
    total = len(vectors)
    order = torch.randperm(total, generator=random)
    if total < count:
        order = torch.cat([order, torch.randint(total, (count - total,), generator=random)])
    centres = vectors[order[:count].to(vectors.device)].clone()
    if total < count:
        noise = torch.randn(centres.shape, generator=random).to(vectors.device)
        centres += noise * vectors.std() * 1e-3
    search = Quantizer(count, vectors.shape[1]).to(vectors.device)
    for _ in range(iterations):
        search.embedding.weight.data.copy_(centres)
        codes = search.nearest(vectors)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        counts = torch.bincount(codes, minlength=count).unsqueeze(1)
        spare = vectors[torch.randint(total, (count,), generator=random).to(vectors.device)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), spare)
    return centres


class MovingCodebook:
    """Moves the vectors of a quantizer along with the latents."""

    def __init__(self, quantizer: Quantizer, decay: float) -> None:
        """Start from the quantizer's present vectors, each as if used once a step."""
        self.quantizer = quantizer
        self.decay = decay
        vectors = quantizer.embedding.weight.detach().float()
        self.uses = torch.ones(len(vectors), device=vectors.device)  # (K,), moving average
        self.sums = vectors.clone()  # (K, D), moving average
        self.idle = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        self.window = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Give everything that an exact continuation needs besides the vectors themselves."""
        return {
            "uses": self.uses,
            "sums": self.sums,
            "idle": self.idle,
            "window": self.window,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state_dict``."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def reset(self, vectors: Tensor, uses: float) -> None:
        """Replace all vectors.

        Args:
            vectors: (K, D).
            uses: Latents a code is expected to get in one step.
        """
        self.quantizer.embedding.weight.data.copy_(vectors)
        self.uses.fill_(uses)
        self.sums.copy_(vectors * uses)
        self.idle.zero_()
        self.window.zero_()

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Take one step's latents into the averages.

        Args:
            latents: (B, D, h, w).
            codes: (B, h, w), what each of them chose.
        """
        vectors = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        flat = codes.flatten()
        counts = torch.bincount(flat, minlength=len(self.uses))
        self.watch(counts)
        sums = torch.zeros_like(self.sums).index_add_(0, flat, vectors)
        self.uses.lerp_(counts.float(), 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        # A code whose average has faded keeps its place until it is used or moved.
        alive = (self.uses > 1e-3).unsqueeze(1)
        moved = self.sums / self.uses.clamp(min=1e-3).unsqueeze(1)
        weight = self.quantizer.embedding.weight
        weight.data.copy_(torch.where(alive, moved, weight))

    def watch(self, counts: Tensor) -> None:
        """Count use without moving anything; (K,) int64 uses in one step."""
        self.window += counts
        self.idle = torch.where(counts > 0, 0, self.idle + 1)

    @torch.no_grad()
    def restart(self, latents: Tensor, after: int, random: torch.Generator) -> Tensor:
        """Move codes without use for ``after`` steps onto current latents.

        Args:
            latents: (B, D, h, w) to choose from.
            after: Steps.
            random: Random state on the CPU.

        Returns:
            The moved codes, (M,), int64.
        """
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
        """Give use and perplexity since the last report, and start a new window."""
        counts = self.window.clone()
        self.window.zero_()
        return {
            "codes_used": float((counts > 0).sum()) / len(counts),
            "perplexity": perplexity(counts),
        }


def perplexity(counts: Tensor) -> float:
    """Effective number of codes in use: exp of the entropy of the use counts, 1 to K."""
    share = counts.double() / counts.sum().clamp(min=1)
    return math.exp(-(share * share.clamp(min=1e-12).log()).sum().item())
