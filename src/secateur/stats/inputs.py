"""What a linear's inputs were like, as sums, so that parts merge exactly into the whole."""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from secateur.devices import bfloat16_products
from secateur.memory import Kept, Room
from secateur.ranks import Ranks
from secateur.stats.gram import Gram, damped, shrunk


def gram_bytes(features: int) -> int:
    """What the Gram matrix of so many channels takes."""
    return 4 * features**2


class InputStats:
    """Sums over the tokens that entered one linear of ``features`` input channels.

    Attributes:
        tokens: number of tokens seen.
        sequences: number of sequences that they came in.
        square_sum: ``(I,)`` float64, Σ x² per channel. A batch is summed in float32, batches in float64.
        rows: every ``stride``-th input row as seen, for measuring output errors; see :meth:`sample`.
        first: the number of the first token among those of all ranks.
    """

    def __init__(
        self,
        features: int,
        stride: int = 1,
        device: torch.device | str = "cpu",
        gram: bool = False,
        first: int = 0,
    ) -> None:
        self.tokens = self.sequences = 0
        self.first = first
        self.square_sum = torch.zeros(features, dtype=torch.float64, device=device)
        self.stride = stride
        self.rows: list[Tensor] = []
        self._gram: Tensor | Kept | None = torch.zeros(features, features, device=device) if gram else None
        self._order: Tensor | None = None  # of the channels of what was gathered, where it is another one now
        self._scales: Tensor | None = None  # that what was gathered is divided by, if any

    def update(self, inputs: Tensor, sequences: int | None = None) -> None:
        """Add ``inputs`` of shape ``(..., I)``, any floating dtype, which come in so many ``sequences``.

        By default there are B of ``(B, ..., I)``, and one of ``(T, I)``, as SparseGPT's authors count.
        """
        x = inputs.detach().reshape(-1, inputs.shape[-1])
        wide = x.float()
        self.square_sum += wide.square().sum(0)
        # Rows are counted from the first token of all, so that neither batches nor ranks make a difference. But nobody
        # knows how many came to an expert in ranks before: other numbers of ranks sample it otherwise.
        self.rows.append(x[-(self.first + self.tokens) % self.stride :: self.stride].clone())
        self.tokens += x.shape[0]
        self.sequences += sequences if sequences is not None else inputs.shape[0] if inputs.ndim > 2 else 1
        if (gram := self.gram) is not None:
            with bfloat16_products() if x.dtype == torch.bfloat16 else nullcontext():
                gram.addmm_(wide.T, wide)

    @property
    def gram(self) -> Tensor | None:
        """Σ x xᵀ, ``(I, I)`` float32, or None when it is not asked for. It may have to be fetched: ask once."""
        gram = self._gram.get() if isinstance(self._gram, Kept) else self._gram
        if gram is not None and self._order is not None:
            gram = gram[self._order[:, None], self._order]
        if gram is not None and self._scales is not None:
            gram = gram / self._scales[:, None] / self._scales
        return gram

    @gram.setter
    def gram(self, gram: Tensor) -> None:
        if isinstance(self._gram, Kept):
            self._gram.set(gram)
        else:
            self._gram = gram

    def put_away(self, room: Room, *, aside: bool = False) -> None:
        """Let the Gram matrix wait in ``room``, once all inputs have been seen."""
        if isinstance(self._gram, Tensor):
            self._gram = room.keep(self._gram, aside=aside)

    def forget(self) -> None:
        """Free what has been computed from the Gram matrix; it is computed anew when it is asked for."""
        for name in ("damped", "shrunk"):
            self.__dict__.pop(name, None)

    def select(self, order: Tensor) -> "InputStats":
        """The statistics of the same inputs with their channels in another order, int64 ``(I,)``."""
        chosen = InputStats(len(order), self.stride)
        chosen.tokens, chosen.sequences = self.tokens, self.sequences
        chosen.square_sum = self.square_sum[order]
        chosen.rows = [rows[:, order] for rows in self.rows]
        chosen._gram, chosen._order = self._gram, order if self._order is None else self._order[order]
        chosen._scales = None if self._scales is None else self._scales[order]
        return chosen

    def divided(self, scales: Tensor) -> "InputStats":
        """The statistics of the same inputs, each channel divided by its scale, ``(I,)``."""
        divided = copy(self)
        divided.forget()
        divided.square_sum = self.square_sum / scales.double().square()
        divided.rows = [(rows / scales).to(rows.dtype) for rows in self.rows]
        divided._scales = scales if self._scales is None else self._scales * scales
        return divided

    def merge(self, other: "InputStats") -> None:
        """Add what ``other`` saw, as if it had come after."""
        self.tokens += other.tokens
        self.sequences += other.sequences
        self.square_sum += other.square_sum
        self.rows += other.rows
        if (gram := self.gram) is not None and (more := other.gram) is not None:
            gram += more

    @cached_property
    def damped(self) -> Gram:
        """The Gram matrix as SparseGPT takes it. Asked for when all inputs have been seen."""
        gram = self.gram
        assert gram is not None
        return damped(gram, self.sequences)

    @cached_property
    def shrunk(self) -> Gram:
        """The Gram matrix as our reconstructions take it. Asked for when all inputs have been seen."""
        gram = self.gram
        assert gram is not None
        return shrunk(gram)

    @property
    def dead(self) -> int:
        """The number of channels that were zero at every token."""
        return int((self.square_sum == 0).sum())

    @property
    def norm(self) -> Tensor:
        """‖X_j‖₂ over all tokens of channel j: ``(I,)`` float32."""
        return self.square_sum.sqrt().float()

    @property
    def sample(self) -> Tensor:
        """The sampled input rows: ``(S, I)`` in the inputs' dtype."""
        return torch.cat(self.rows) if self.rows else self.square_sum.new_empty(0, len(self.square_sum))


def add_up(parts: Sequence[InputStats], ranks: Ranks) -> None:
    """Make of statistics, which each rank has gathered on its share of the tokens, those of all tokens on every rank.

    All of it is sums: of rows, which come in the sequence of the ranks, each has zeros in place of the others'.
    """
    if ranks.size == 1:
        return
    counts = torch.zeros(len(parts), 2 + ranks.size, dtype=torch.int64)
    for count, stats in zip(counts, parts, strict=True):
        count[0], count[1], count[2 + ranks.rank] = stats.tokens, stats.sequences, len(stats.sample)
    ranks.sum(counts)
    squares = torch.cat([stats.square_sum for stats in parts])
    ranks.sum(squares)
    lengths = counts[:, 2:].tolist()
    samples = [_among(stats.sample, each, ranks.rank) for stats, each in zip(parts, lengths, strict=True)]
    rows = torch.cat([sample.flatten() for sample in samples])
    ranks.sum(rows)
    sizes = [sample.numel() for sample in samples]
    features = [sample.shape[1] for sample in samples]
    summed = zip(parts, counts.tolist(), squares.split(features), rows.split(sizes), strict=True)
    for stats, (tokens, sequences, *_), square_sum, sample in summed:
        stats.tokens, stats.sequences, stats.square_sum = tokens, sequences, square_sum
        stats.rows = [sample.reshape(-1, len(square_sum))]
        if (gram := stats.gram) is not None:
            ranks.sum(gram)
            stats.gram = gram


def _among(sample: Tensor, lengths: Sequence[int], rank: int) -> Tensor:
    """The rows that all ranks have sampled, ``(S, I)`` float32, with zeros for all but those of one."""
    rows = sample.new_zeros(sum(lengths), sample.shape[1], dtype=torch.float32)
    rows.split(lengths)[rank].copy_(sample)
    return rows
