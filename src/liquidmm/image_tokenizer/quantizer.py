"""The codebook of an image tokenizer, and the search for the nearest vector in it.

Contract: a code is the index of the vector nearest to a latent, by Euclidean distance; everything
is computed in float32, whatever runs around it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Quantizer(nn.Module):
    """The codebook and the search for the nearest vector in it."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        """Start uniformly within 1/K, as taming does."""
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def nearest(self, vectors: Tensor, chunk: int = 16384) -> Tensor:
        """Find the index of the nearest codebook vector.

        Args:
            vectors: (N, D).
            chunk: Rows searched at once, which bounds the memory at chunk x K floats.

        Returns:
            Indices, (N,), int64; the lower one when two are equally near.
        """
        codebook = self.embedding.weight.float()
        half_norms = codebook.square().sum(1).mul(0.5)  # (K,)
        # |z - e|^2 / 2 without the term in z, which is the same for all codes.
        return torch.cat(
            [
                torch.addmm(half_norms, part, codebook.t(), alpha=-1.0).argmin(1)
                for part in torch.split(vectors.float(), chunk)
            ]
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize for training.

        Args:
            latents: (B, D, h, w).

        Returns:
            The nearest vectors, (B, D, h, w), float32, whose gradient goes straight through to the
            latents; their codes, (B, h, w), int64; and the commitment loss, the mean squared
            distance that moves the latents only.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            batch, dim, height, width = latents.shape
            flat = latents.permute(0, 2, 3, 1).reshape(-1, dim)
            codes = self.nearest(flat.detach()).view(batch, height, width)
            chosen = self.lookup(codes)
            commitment = functional.mse_loss(latents, chosen.detach())
            return latents + (chosen - latents).detach(), codes, commitment

    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to their vectors, (B, D, h, w)."""
        vectors: Tensor = self.embedding(codes)
        return vectors.permute(0, 3, 1, 2)
