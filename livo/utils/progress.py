"""Progress bars with a rate and an ETA for the long jobs, which are generators of records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm


def follow_training(
    records: Iterable[dict[str, float]], name: str, steps: int, shown: Sequence[str], disable: bool = False
) -> None:
    """Run a training loop to its end; `shown` are the names in a record that stand beside the bar.

    Args:
        records: What a training loop yields.
        name: What the bar is called.
        steps: Number of all steps.
        shown: Names in a record that are shown beside the bar.
        disable: Show no bar.
    """
    bar: tqdm | None = None
    before = 0.0
    for record in records:
        if bar is None:  # a resumed run starts where it stopped
            before = max(0, record["step"] - 10)
            bar = tqdm(total=steps, initial=before, desc=name, unit="step", mininterval=2, disable=disable)
        bar.set_postfix({key: f"{record[key]:.3g}" for key in shown if key in record}, refresh=False)
        bar.update(record["step"] - before)
        before = record["step"]
    if bar is not None:
        bar.close()


def follow_build(progress: Iterator, disable: bool = False) -> None:
    """Run a build to its end, a bar for each principle.

    Args:
        progress: What `livo.data.builder.build` yields.
        disable: Show no bar.
    """
    _follow_parts(progress, "principle", "kept", "pair", disable, shown=("images",))


def follow_evaluation(progress: Iterator, disable: bool = False) -> None:
    """Run an evaluation to its end, a bar for each method.

    Args:
        progress: What an evaluation yields.
        disable: Show no bar.
    """
    _follow_parts(progress, "method", "done", "image", disable)


def _follow_parts(progress: Iterator, part: str, done: str, unit: str, disable: bool, shown: Sequence[str] = ()) -> None:
    """`part` and `done` are the fields of a record that name its part and say how much of `wanted` is there."""
    bar: tqdm | None = None
    name = None
    for now in progress:
        if bar is None or getattr(now, part) != name:
            if bar is not None:
                bar.close()
            name = getattr(now, part)
            bar = tqdm(total=now.wanted, initial=getattr(now, done), desc=name, unit=unit, mininterval=2, disable=disable)
        bar.set_postfix({field: getattr(now, field) for field in shown}, refresh=False)
        bar.update(getattr(now, done) - bar.n)
    if bar is not None:
        bar.close()
