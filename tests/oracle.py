"""Slow float64 references in plain numpy, written from the papers and not from the package."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def wanda_score(weight: Array, inputs: Array) -> Array:
    """|W_ij| times the L2 norm of input channel j over the tokens of ``inputs`` (T, I)."""
    score = np.zeros_like(weight)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            score[i, j] = abs(weight[i, j]) * np.sqrt((inputs[:, j] ** 2).sum())
    return score


def ria_score(weight: Array, inputs: Array, alpha: float = 0.5) -> Array:
    """(|W_ij| / sum of column j + |W_ij| / sum of row i) times norm to the alpha."""
    score = np.zeros_like(weight)
    size = np.abs(weight)
    column_sums, row_sums = size.sum(axis=0), size.sum(axis=1)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            if size[i, j] > 0:
                relative = size[i, j] / column_sums[j] + size[i, j] / row_sums[i]
                score[i, j] = relative * np.sqrt((inputs[:, j] ** 2).sum()) ** alpha
    return score


def best_mask(score: Array, keep: int) -> NDArray[np.bool_]:
    """Keep the ``keep`` largest of a flat array, by a full sort; the first ones among equals."""
    order = sorted(range(score.size), key=lambda k: (-score.flat[k], k))
    mask = np.zeros(score.size, dtype=bool)
    mask[order[:keep]] = True
    return mask.reshape(score.shape)


def matrix_mask(score: Array, sparsity: float) -> NDArray[np.bool_]:
    return best_mask(score, score.size - round(sparsity * score.size))


def row_mask(score: Array, sparsity: float) -> NDArray[np.bool_]:
    return np.stack([best_mask(row, row.size - round(sparsity * row.size)) for row in score])


def nm_mask(score: Array, kept: int, group: int) -> NDArray[np.bool_]:
    mask = np.zeros(score.shape, dtype=bool)
    for i in range(score.shape[0]):
        for start in range(0, score.shape[1], group):
            mask[i, start : start + group] = best_mask(score[i, start : start + group], kept)
    return mask


def sparsegpt(
    weight: Array, sequences: list[Array], choose: tuple[int, int] | NDArray[np.bool_], damping: float = 0.01
) -> Array:
    """SparseGPT as its authors' code has it, over ``sequences`` (T, I) that come one after the other.

    ``choose`` is N:M, for masks chosen on the way, or the given mask.
    """
    weight, width, block = weight.copy(), weight.shape[1], 128
    hessian = np.zeros((width, width))
    for seen, inputs in enumerate(sequences, 1):  # H = 2/n Σ x xᵀ, kept up to date
        hessian *= (seen - 1) / seen
        scaled = np.sqrt(2 / seen) * inputs
        hessian += scaled.T @ scaled
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian[np.arange(width), np.arange(width)] += damping * np.diag(hessian).mean()
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = np.zeros((len(weight), stop - start))
        mask = np.zeros_like(errors, dtype=bool) if isinstance(choose, tuple) else choose[:, start:stop].copy()
        for i in range(start, stop):
            if isinstance(choose, tuple) and (i - start) % choose[1] == 0:
                rise = weight[:, i : i + choose[1]] ** 2 / np.diag(factor)[i : i + choose[1]] ** 2
                best = np.argsort(-rise, axis=1, kind="stable")[:, : choose[0]]
                np.put_along_axis(mask[:, i - start : i - start + choose[1]], best, True, axis=1)
            kept = np.where(mask[:, i - start], weight[:, i], 0)
            error = (weight[:, i] - kept) / factor[i, i]
            weight[:, i:stop] -= np.outer(error, factor[i, i:stop])
            weight[:, i], errors[:, i - start] = kept, error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight


def gptq(
    weight: Array,
    gram: Array,
    mask: NDArray[np.bool_],
    scales: Array,
    zeros: Array,
    bits: int,
    damping: float = 0.01,
) -> NDArray[np.uint8]:
    """GPTQ's codes one column at a time, the loudest first, with the inverse computed anew for what is left.

    ``scales`` and ``zeros`` are those of every weight. Where the mask is false the code is the zero.
    """
    weight, gram, width = weight.copy(), gram.copy(), weight.shape[1]
    dead = np.diag(gram) == 0
    gram[dead, dead] = 0.5
    gram[np.arange(width), np.arange(width)] += damping * np.diag(gram).mean()
    codes = zeros.astype(np.uint8)
    order = sorted(range(width), key=lambda j: (-gram[j, j], j))
    for done, j in enumerate(order):
        left = order[done:]
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        for i in range(len(weight)):
            if mask[i, j]:
                codes[i, j] = min(max(round(weight[i, j] / scales[i, j]) + zeros[i, j], 0), 2**bits - 1)
            value = (float(codes[i, j]) - zeros[i, j]) * scales[i, j]
            weight[i, left] -= (weight[i, j] - value) / inverse[0, 0] * inverse[0]
    return codes
