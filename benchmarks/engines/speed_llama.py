"""llama.cpp in speed.py: reads the number of tokens to generate and the prompt, prints the seconds.

LLAMA_PYTHON benchmarks/engines/speed_llama.py FILE THREADS
"""

from __future__ import annotations

import sys
import time

import numpy as np
from llama_cpp import Llama


def main(file: str, threads: int) -> None:
    """Generate greedily for each line of stdin."""
    model = Llama(file, n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)
    for line in sys.stdin:
        count, *prompt = map(int, line.split())
        model.reset()
        model.eval(prompt)
        start = time.perf_counter()
        for _ in range(count):
            scores = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),))
            model.eval([int(scores.argmax())])
        sys.stdout.write(f"{time.perf_counter() - start}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
