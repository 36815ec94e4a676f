"""Who computes rows: processes of this machine, or a Ray cluster.

An executor takes jobs as JSON documents and yields, in the order in which they end, the place of each and what became
of it, as a JSON document as well. Nothing else crosses from one process to another. Closed, it ends what is under way.
"""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import ModuleType
from typing import Any

from secateur.errors import InputError, reason
from secateur.sweeps.work import Outcome, decode_outcome, encode, work

Answers = Generator[tuple[int, str], None, None]
Executor = Callable[[Sequence[str]], Answers]


def processes(environments: Sequence[Mapping[str, str]], held: Sequence[int] = ()) -> Executor:
    """Processes of this machine, each with one row at a time, and one row after the other.

    A process ends with the first row that fails in it, so that what the row has left behind meets no other.

    Args:
        environments: a process for each, with these variables of the environment besides this process's own.
        held: descriptors of locks, which the processes hold as long as they live.
    """

    def run(jobs: Sequence[str]) -> Answers:
        workers = [_Worker(environment, held) for environment in environments]
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def one(job: str) -> str:
            worker = idle.get()
            try:
                return worker.ask(job)
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(len(workers)) as pool:
            places = {pool.submit(one, job): place for place, job in enumerate(jobs)}
            try:
                for future in as_completed(places):
                    yield places[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.end()

    return run


class _Worker:
    """A process that works on one job at a time; it is started for the first, and again after one that failed."""

    def __init__(self, environment: Mapping[str, str], held: Sequence[int]) -> None:
        self._environment, self._held = environment, held
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: str) -> str:
        process = self._process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it is gone
            answer = ""
        if not answer.endswith("\n"):
            self.end()
            return encode(Outcome(_died(process.wait())))
        if decode_outcome(answer).failure:
            self.end()
        return answer

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "secateur.sweeps.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **self._environment},
            pass_fds=self._held if os.name == "posix" else (),
            start_new_session=True,  # Ctrl-C is for us to answer
        )

    def end(self) -> None:
        """End the process, whatever it is at."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def _died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), as the system does when memory runs out: fewer --jobs may help"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def on_ray(ray: ModuleType | Any, address: str, *, memory: int, gpus: int) -> Executor:
    """Tasks of a Ray cluster, as many at once as its processors, GPUs and memory allow.

    Args:
        ray: the module.
        address: of the cluster; ``auto`` for the one that this machine belongs to, ``local`` to start one here.
        memory: bytes that a row may take.
        gpus: GPUs that a row takes.

    Raises:
        InputError: when there is no such cluster.
    """

    def run(jobs: Sequence[str]) -> Answers:
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as error:  # of whatever type
            raise InputError(f"there is no Ray cluster at {address!r} ({reason(error)})") from error
        try:
            task = ray.remote(num_cpus=1, num_gpus=gpus, memory=memory, max_retries=0)(work)
            pending = {task.remote(job): place for place, job in enumerate(jobs)}
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                place = pending.pop(done)
                try:
                    yield place, ray.get(done)
                except ray.exceptions.RayError as error:  # the task's process, or its machine, is gone
                    yield place, encode(Outcome(f"Ray lost it: {reason(error)}"))
        finally:
            ray.shutdown()

    return run
