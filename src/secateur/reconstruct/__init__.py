"""Change the weights that remain, to make up for those removed.

All methods lessen the layer's output error ‖X(W₀ − W)ᵀ‖² = tr((W₀ − W) G (W₀ − W)ᵀ) for the calibration
inputs X, of which only the Gram matrix G = XᵀX is needed. W₀ is the dense weight ``(O, I)``, a mask is
bool ``(O, I)``, G is ``(I, I)``. ``methods.py`` is the table of them.
"""
