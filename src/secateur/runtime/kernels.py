"""The native kernels that this processor can run, the fastest first; none where no compiler built them."""

try:
    from secateur.runtime._native import KERNELS
except ImportError:
    KERNELS = []

__all__ = ["KERNELS"]
