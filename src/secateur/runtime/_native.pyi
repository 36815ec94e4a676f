"""The compiled part (native/module.cpp); it is missing where no compiler was found when Secateur was installed.

Tensors are passed as addresses, contiguous, on the CPU; 0 stands for what is not there. A packed matrix is ``rows``,
``columns``, its ``mask`` (none: every weight is kept), ``values`` (64 bytes past their end may be read), ``starts``
(int64 ``(O + 1,)``), the ``bits`` of a value (16 for bfloat16, 8 or 4), and for integers ``scales``, for 4 bits perhaps
``zeros``, and ``group``.
"""

class Kernels:
    """The kernels for one instruction set."""

    @property
    def name(self) -> str:
        """The instruction set."""

    def multiply(
        self,
        inputs: int,
        out: int,
        bfloat16: bool,
        tokens: int,
        rows: int,
        columns: int,
        mask: int,
        values: int,
        starts: int,
        bits: int,
        scales: int,
        zeros: int,
        group: int,
        threads: int,
        /,
    ) -> None:
        """``out (T, O) = inputs (T, I) @ matrix.T``, both bfloat16 or both float32; I is a multiple of 32."""

    def expand(
        self,
        out: int,
        bfloat16: bool,
        first: int,
        last: int,
        rows: int,
        columns: int,
        mask: int,
        values: int,
        starts: int,
        bits: int,
        scales: int,
        zeros: int,
        group: int,
        threads: int,
        /,
    ) -> None:
        """Rows first … last - 1, dense, in bfloat16 or float32."""

KERNELS: list[Kernels]
"""What this processor can run, the fastest first."""
