"""`python -m jaxorch.runtime.worker`: a process that compiles kernels for another one.

Input on stdin, for each kernel: the pickled arguments of `compile_for`, after their length in 8 bytes. Output on
stdout, in the same form: a `Compiled`, or the text of the error. Ends with its input.
"""

import os
import pickle
import sys
from contextlib import suppress
from typing import IO, Any

from jaxorch.errors import CompileError, LaunchError
from jaxorch.runtime.compile import Compiled, compile_for
from jaxorch.runtime.source import require_triton

__all__ = ["main", "receive", "send"]

_LENGTH = 8
_BEHIND = 10  # nice: on a processor that both want a worker has a ninth of what the process that waits for it has


def send(stream: IO[bytes], message: Any) -> None:
    """Writes one message."""
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(_LENGTH) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Reads one message.

    Raises:
        EOFError: the stream ends before it does.
    """
    length = int.from_bytes(_exactly(stream, _LENGTH))
    return pickle.loads(_exactly(stream, length))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError(f"{len(data)} of {count} bytes came")
    return data


def _answer(request: tuple[tuple[Any, ...], dict[str, Any]]) -> Compiled | str:
    positional, named = request
    try:
        return compile_for(*positional, **named)
    except CompileError as error:
        return str(error)


def main() -> None:
    """Answers requests until there are no more.

    As many workers as processors leave the process that they work for none: it goes first, for they wait for it.
    """
    os.nice(_BEHIND)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print is no answer
    with suppress(LaunchError):  # an answer will say so
        require_triton()
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(answers, _answer(request))


if __name__ == "__main__":
    main()
