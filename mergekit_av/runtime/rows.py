"""A λ for each row of a batch: what low-rank vectors add is computed beside the weights.

A linear layer with the weight W + Σ λᵢ Bᵢ Aᵢ returns x Wᵀ + Σ λᵢ (x Aᵢᵀ) Bᵢᵀ. In the second form λ may be
another one for each row of x.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from mergekit_av.errors import AVError
from mergekit_av.vectors.factors import Factors


@contextlib.contextmanager
def added_per_row(
    layers: Mapping[torch.nn.Module, Mapping[str, Factors]], rows: Sequence[Mapping[str, float]]
) -> Iterator[None]:
    """Let linear layers add vectors to what they return, each row of a batch at its own λ.

    Args:
        layers: layer → vector → its factors of the layer's weight.
        rows: of each row, vector → λ; 0 where it is not named.

    Raises:
        AVError: from a layer that is called, see `_RowsAdded`.
    """
    with contextlib.ExitStack() as stack:
        for layer, of_vectors in layers.items():
            hook = layer.register_forward_hook(_RowsAdded(of_vectors, rows))
            stack.callback(hook.remove)
        yield


class _RowsAdded:
    """The sum of vectors in one layer: (rows, tokens, columns) → (rows, tokens, outputs).

    Raises:
        AVError: the batch has not as many rows, or as many times each; or the layer sees tokens without
            their rows.
    """

    def __init__(self, factors: Mapping[str, Factors], rows: Sequence[Mapping[str, float]]):
        self._a = torch.cat([each.a.float() for each in factors.values()])  # (Σ ranks, columns)
        self._b = torch.cat([each.b.float() for each in factors.values()], dim=1)
        ranks = torch.tensor([each.rank for each in factors.values()], device=self._a.device)
        lambdas = [[row.get(name, 0.0) for name in factors] for row in rows]
        self._scales = torch.tensor(lambdas, device=self._a.device).repeat_interleave(ranks, dim=1)

    def __call__(
        self, layer: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        [values] = args
        if values.dim() != 3:
            raise AVError(
                "this model's layers see tokens without their rows: set one λ for all, with `set`"
            )
        times, rest = divmod(len(values), len(self._scales))
        if rest or not times:
            raise AVError(f"a batch of {len(values)} rows, where λ of {len(self._scales)} are set")
        # Several answers to a prompt are rows beside one another.
        scales = self._scales.repeat_interleave(times, dim=0)[:, None]
        a, b = self._a.to(values.dtype), self._b.to(values.dtype)
        return output + ((values @ a.T) * scales.to(values.dtype)) @ b.T
