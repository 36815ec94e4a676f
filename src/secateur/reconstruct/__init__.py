"""Change the weights that remain, to make up for those removed.

All methods lessen the layer's output error ‖X(W₀ − W)ᵀ‖² = tr((W₀ − W) G (W₀ − W)ᵀ) for the calibration
inputs X, of which only the Gram matrix G = XᵀX is needed. W₀ is the dense weight ``(O, I)``, a mask is
bool ``(O, I)``, G is ``(I, I)``.
"""

from secateur.reconstruct.admm import admm
from secateur.reconstruct.cg import masked_cg
from secateur.reconstruct.gram import Gram, damped, output_error, shrunk
from secateur.reconstruct.refine import refine, refined
from secateur.reconstruct.sparsegpt import sparsegpt

__all__ = ["Gram", "admm", "damped", "masked_cg", "output_error", "refine", "refined", "shrunk", "sparsegpt"]
