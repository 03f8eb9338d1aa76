"""How long the retriever takes on one core: loading, a prompt, and prompts in batches; and against embedding alone, A B A B.

python benchmarks/retrieve.py
"""

from __future__ import annotations

import statistics
import time

import torch

from livo import ValueRetriever
from livo.principles.principle import bundled_principles
from livo.retrieval.corpus import labelled_prompts


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    imports = timed(lambda: __import__("sentence_transformers"))
    prompts = [p.text for p in labelled_prompts() if p.held_out]
    prompts = prompts[:: len(prompts) // 600][:600]
    retriever = ValueRetriever(bundled_principles())
    loading = timed(lambda: retriever.retrieve("a photo of a doctor"))
    print(
        f"imports of the embedding library {imports:.2f} s; loading (model, heads, index, thresholds, first decision) {loading:.2f} s"
    )
    singles = [1000 * timed(lambda p=p: retriever.retrieve(p)) for p in prompts[:100]]
    print(
        f"one prompt: median {statistics.median(singles):.1f} ms, 95th percentile {statistics.quantiles(singles, n=20)[-1]:.1f} ms"
    )
    ratios = []
    for _ in range(2):
        whole = timed(lambda: retriever.retrieve_batch(prompts))
        embedding = timed(lambda: retriever.embed(prompts))
        ratios.append(whole / embedding)
        print(
            f"batch of {len(prompts)}: {len(prompts) / whole:.0f} prompts a second; embedding alone {len(prompts) / embedding:.0f}"
        )
    print(f"deciding takes {min(ratios):.2f} to {max(ratios):.2f} times as long as embedding the prompts as they are")


if __name__ == "__main__":
    main()
