"""``python -m secateur.sweeps.worker``: rows in on standard input, one a line, and what became of them out.

It ends at once when its input does: whoever gave it work is no more then, and half a row can be resumed.
"""

import logging
import os
import queue
import sys
import threading
import warnings


def main() -> None:
    """Work until there is no more input."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    from secateur.sweeps.work import work

    warnings.showwarning = lambda message, *_: sys.stderr.write(f"note: {message}\n")  # type: ignore[assignment]
    while True:
        answers.write(work(jobs.get()) + "\n")
        answers.flush()


def _listen(jobs: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
