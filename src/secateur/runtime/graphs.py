"""CUDA graphs: many launches recorded once, and repeated as one, so that the processor is not what is waited for."""

from collections.abc import Callable

import torch

# What is made at a first call (plans, workspaces, compiled kernels) must not be captured.
WARM_UPS = 2


def capture(work: Callable[[], object]) -> Callable[[], None]:
    """What repeats ``work`` on the current CUDA device, with the same memory, as one launch.

    ``work`` runs a few times before it is captured. It must not wait for the GPU, nor decide by what the GPU computes;
    what it reads and writes has to stay where it is.

    Raises:
        RuntimeError: when ``work`` cannot be captured.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
