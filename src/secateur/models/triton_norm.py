"""RMSNorm and a gather of its output channels, in one Triton kernel. Not yet measured on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_gather(x_ptr, weight_ptr, order_ptr, out_ptr, width, epsilon, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < width
    x = tl.load(x_ptr + token * width + place, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
    # The token's row has just been read and lies in the cache: gathering from it costs little.
    order = tl.load(order_ptr + place, mask=inside, other=0)
    gathered = tl.load(x_ptr + token * width + order, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + order, mask=inside, other=0.0).to(tl.float32)
    # As the norms of transformers do: back to the input's precision before the weight is applied.
    normed = (gathered.to(tl.float32) * scale).to(gathered.dtype)
    tl.store(out_ptr + token * width + place, weight * normed.to(tl.float32), mask=inside)


def rms_norm_gather(hidden: Tensor, weight: Tensor, order: Tensor, epsilon: float) -> Tensor:
    """``(weight * hidden / rms(hidden))[..., order]``.

    Args:
        hidden: ``(..., H)``, floating point.
        weight: ``(H,)``.
        order: integer ``(H,)``.
        epsilon: added to the mean square.

    Returns:
        ``(..., H)`` in the dtype of ``weight * hidden``.
    """
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    out = torch.empty_like(rows, dtype=torch.result_type(weight, hidden))
    width = rows.shape[1]
    with torch.cuda.device_of(hidden):  # Triton launches on the current device, not on the tensors'
        _rms_norm_gather[(len(rows),)](rows, weight, order, out, width, epsilon, BLOCK=triton.next_power_of_2(width))
    return out.reshape(hidden.shape)
