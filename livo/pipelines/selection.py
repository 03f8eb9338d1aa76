"""ValueChooser: which value each image of each prompt receives, how strongly, in which steps, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from numbers import Real

from transformers import CLIPTextModel

from livo.pipelines.allocation import share_out, text_seed
from livo.pipelines.calibration import Calibration
from livo.pipelines.decision_record import ImageDecision
from livo.pipelines.ledger import Reservation
from livo.principles.principle import MAX_SCALE, RESERVED, ValuePrinciple, refuse_unknown_id
from livo.retrieval.retriever import ValueRetriever
from livo.utils.logs import warn_once

logger = logging.getLogger(__name__)

Chosen = tuple[ImageDecision, ValuePrinciple | None]


@dataclass(frozen=True)
class Wishes:
    """What a call asked for, one entry for each prompt."""

    values: list
    scales: list
    starts: list[float]
    ends: list[float]

    @property
    def limited(self) -> bool:
        """Whether a value is to act in a part of the steps alone."""
        return any(pair != (0, 1) for pair in zip(self.starts, self.ends, strict=True))

    @classmethod
    def read(cls, prompts: Sequence[str], value, value_scale, value_start, value_end) -> Wishes:
        """Spread what is given for all over the prompts. Raises ValueError where a list has another length, or a range is none."""
        values = _one_each(value, prompts, "value", (str, tuple, ValuePrinciple, type(None)))
        scales = _one_each(value_scale, prompts, "value_scale", (Real, str, Mapping))
        starts = _one_each(value_start, prompts, "value_start", (Real, str))
        ends = _one_each(value_end, prompts, "value_end", (Real, str))
        for start, end in zip(starts, ends, strict=True):
            if not (isinstance(start, Real) and isinstance(end, Real) and 0 <= start < end <= 1):
                raise ValueError(
                    f"value_start is {start!r} and value_end {end!r}: give shares of the steps, 0 (the first) to 1, the start below the end"
                )
        return cls(values, scales, [float(start) for start in starts], [float(end) for end in ends])


@dataclass(frozen=True)
class ValueChooser:
    """Decides with a retriever and for value encoders by name; `NamedEncoders` says which encoder carries out what.

    `default_scale` holds where a mapping of scales names no principle; `scales` multiplies those of an encoder's values.
    """

    retriever: ValueRetriever | None
    encoders: Mapping[str, CLIPTextModel]
    default_scale: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def principles(self) -> list[ValuePrinciple]:
        return self.retriever.principles if self.retriever else []

    def choose(
        self,
        prompts: Sequence[str],
        wishes: Wishes,
        number: int,
        seeds: Sequence[Sequence[int]],
        reservation: Reservation | None = None,
    ) -> list[ImageDecision]:
        """`number` decisions for each prompt, one an image.

        Args:
            seeds: For each prompt what its draw depends on, beside its text.
            reservation: Takes the shares from a ledger.

        Raises:
            ValueError: a value was asked for that cannot be honoured; the message says what to do.
        """
        for wish, scale in zip(wishes.values, wishes.scales, strict=True):
            self._check_scale(wish, scale)
        found = iter(self._retrieve([text for text, wish in zip(prompts, wishes.values, strict=True) if wish == "auto"]))
        decisions = []
        for i, (text, wish, scale) in enumerate(zip(prompts, wishes.values, wishes.scales, strict=True)):
            chosen = next(found) if wish == "auto" else self._honour_all(text, wish)
            chosen = [(self._carried(d, p, scale, wishes.starts[i], wishes.ends[i]), p) for d, p in _with_conflicts(chosen)]
            decisions += self._assigned(chosen, number, (*seeds[i], text_seed(text)), reservation)
        return decisions

    def _carried(self, decision: ImageDecision, principle: ValuePrinciple | None, scale, start: float, end: float) -> ImageDecision:
        """The decision with the encoder that carries it out, how strongly, and when."""
        if decision.statement is None:
            return decision
        name = self._encoder_for(decision.statement, principle)
        scale = self._scale_of(decision, scale) * self.scales.get(name, 1.0)
        return replace(decision, encoder_name=name, scale=scale, start=start, end=end)

    def _encoder_for(self, statement: str, principle: ValuePrinciple | None) -> str:
        named = principle.encoder if principle is not None else None
        if named is not None:
            if named not in self.encoders:
                raise ValueError(
                    f"{principle.id} names the value encoder {named!r}, which is not loaded (there are {', '.join(self.encoders)}): "
                    f"call load_value_encoder(path, name={named!r}), or leave `encoder` out of the principle"
                )
            return named
        known = {name: getattr(encoder, "statements", None) for name, encoder in self.encoders.items()}
        directions = set(principle.directions.values()) if principle is not None else set()
        for wanted in (directions, {statement}) if directions else ({statement},):
            for name, words in known.items():
                if words is not None and wanted <= set(words):
                    return name
        return next((name for name, words in known.items() if words is None), next(iter(known)))

    def _check_scale(self, wish, scale) -> None:
        """Raise ValueError where `scale` cannot be used, whether a value applies to the prompt or not."""
        if not isinstance(scale, Mapping):
            checked_scale(scale)
            return
        given = [one.id for one in (wish if isinstance(wish, tuple) else (wish,)) if isinstance(one, ValuePrinciple)]
        ids = list(dict.fromkeys([*(principle.id for principle in self.principles), *given]))
        if unknown := [name for name in scale if name not in ids]:
            there = f"there are {', '.join(ids)}" if ids else "none are loaded"
            raise ValueError(f"value_scale names {', '.join(map(repr, unknown))}, and no principle has that id: {there}")
        for one in scale.values():
            checked_scale(one)

    def _scale_of(self, decision: ImageDecision, scale) -> float:
        return float(scale.get(decision.id, self.default_scale) if isinstance(scale, Mapping) else scale)

    def _assigned(
        self, chosen: list[Chosen], number: int, seed: Sequence[int], reservation: Reservation | None
    ) -> list[ImageDecision]:
        """The decision for each of a prompt's images: its directions, or whether it receives the plain token."""
        if chosen[0][0].statement is None:
            return [chosen[0][0]] * number
        targets, plans = [], []
        for decision, principle in chosen:
            directions = principle.directions if principle is not None else {}
            known = getattr(self.encoders[decision.encoder_name], "statements", None)
            if directions and set(directions.values()) - set(known or ()):
                rate = f"{principle.apply_rate:.0%} of the images get the plain token"
                why = f"{decision.why}; the value encoder was not trained with its directions, so {rate}"
                if principle.target:
                    warn_once(
                        logger, "%s: the value encoder was not trained with its directions, so its target is not met", principle.id
                    )
                decision, directions = replace(decision, why=why), {}
            if not directions and known is not None and decision.statement not in known:
                warn_once(
                    logger,
                    "the value encoder was not trained with %r, so it may do nothing; it knows: %s. Use one of these words, or train an "
                    "encoder with yours (livo train)",
                    decision.statement,
                    "; ".join(known),
                )
                decision = replace(decision, why=f"{decision.why}; the value encoder was not trained with these words")
            decision = replace(decision, known=None if known is None else bool(directions) or decision.statement in known)
            rate = 1.0 if principle is None else principle.apply_rate
            if directions:
                decision, shares = self._calibrated(decision, principle)
            targets.append(shares if directions else {True: rate, False: 1 - rate})
            plans.append((decision, directions))
        if reservation is None:
            rows = share_out(number, targets, seed)
        else:  # at scale 0 an image is given nothing
            keys = [(d.prompt, d.id or d.statement) if d.scale > 0 else None for d, _ in plans]
            rows = reservation.share_out(number, targets, seed, keys)
        images = []
        for classes in rows:
            parts = [
                replace(decision, statement=directions[name], direction=name, applied=decision.scale > 0)
                if directions
                else replace(decision, applied=bool(name and decision.scale > 0))
                for (decision, directions), name in zip(plans, classes, strict=True)
            ]
            images.append(replace(parts[0], also=tuple(parts[1:])))
        return images

    def _calibrated(self, decision: ImageDecision, principle: ValuePrinciple) -> tuple[ImageDecision, dict[str, float]]:
        """The shares of a principle's directions: its target, or what meets it by the encoder's calibration."""
        measured = getattr(self.encoders[decision.encoder_name], "calibrations", {}).get(principle.id)
        if measured is None or set(measured["classes"]) != set(principle.directions) or decision.scale != 1:
            return decision, principle.shares  # it was measured at the strength that was trained
        shares, miss = Calibration.from_dict(measured).shares(principle.shares)
        why = f"{decision.why}; shares of the directions calibrated by {measured['judge']}"
        if miss > 0.05:
            why += f", which can come no nearer to the target than {miss:.0%} in its worst class"
            warn_once(logger, "%s: the encoder's directions miss the target by %.0f%% in its worst class", principle.id, 100 * miss)
        return replace(decision, why=why), shares

    def _retrieve(self, prompts: list[str]) -> list[list[Chosen]]:
        """What the retriever chooses for each prompt."""
        if not prompts:
            return []
        if not self.encoders:
            warn_once(
                logger, "no value encoder is loaded: these are the base pipeline's images (load_value_encoder, or value=None)"
            )
            return [[(no_value(prompt, "no value encoder is loaded"), None)] for prompt in prompts]
        if self.retriever is None:
            raise ValueError("value='auto' needs principles: call load_value_principles first, or pass value=None")
        by_id = {principle.id: principle for principle in self.principles}
        batch = self.retriever.retrieve_batch(prompts)
        return [[(ImageDecision.of(decision), by_id.get(decision.id)) for decision in found] for found in batch]

    def _honour_all(self, prompt: str, wish) -> list[Chosen]:
        """What was asked for by name: one value, or a tuple of values that act together."""
        if not isinstance(wish, tuple):
            return [self._honour(prompt, wish)]
        chosen = [self._honour(prompt, one) for one in wish if one is not None and one != "auto"]
        if not wish or len({decision.statement for decision, _ in chosen}) < len(wish):
            raise ValueError(f"value is {wish!r}: a tuple names principles or statements that act together, each once")
        return chosen

    def _honour(self, prompt: str, wish: str | ValuePrinciple | None) -> Chosen:
        """The same for a value that was asked for by name."""
        if wish is None:
            return no_value(prompt, "value=None"), None
        if not self.encoders:
            raise ValueError(f"value={wish!r} needs a value encoder: call load_value_encoder first, or pass value=None")
        if not isinstance(wish, (str, ValuePrinciple)):
            raise ValueError(f"value is {wish!r}: give 'auto', a principle's id, a statement, or None")
        by_name = {p.statement: p for p in self.principles} | {p.id: p for p in self.principles}
        wish = by_name.get(wish, wish) if isinstance(wish, str) else wish
        if isinstance(wish, ValuePrinciple):
            return ImageDecision(prompt, wish.id, wish.statement, None, None, None, f"{wish.id} was asked for"), wish
        if not wish.strip() or wish.lower() in RESERVED:
            raise ValueError(f"value is {wish!r}: give 'auto', a principle's id or a statement, or None for the base pipeline")
        refuse_unknown_id(wish, self.principles)
        return ImageDecision(prompt, None, wish, None, None, None, "the statement was asked for"), None


def checked_scale(scale) -> float:
    """`scale` as a number. Raises ValueError unless it is from 0 to `MAX_SCALE`."""
    try:
        number = -1.0 if isinstance(scale, (bool, str)) else float(scale)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= MAX_SCALE:
        raise ValueError(f"value_scale is {scale!r}: give a number from 0 (the base) to {MAX_SCALE}; 1 is what was trained")
    return number


def no_value(prompt: str, why: str) -> ImageDecision:
    """The decision to leave an image to the base pipeline."""
    return ImageDecision(prompt, None, None, None, None, None, why)


def _with_conflicts(chosen: list[Chosen]) -> list[Chosen]:
    """Each decision with what works against it among the others; said aloud too."""
    against: list[list[str]] = [[] for _ in chosen]
    for (i, (_, one)), (j, (_, other)) in combinations(enumerate(chosen), 2):
        if one is None or other is None:
            continue
        if one.kind != other.kind:
            what = f"{one.id} and {other.id} share the attention, so traces of the risk may remain"
        elif one.kind == "debias" and (common := set(one.attributes) & set(other.attributes)):
            what = f"{one.id} and {other.id} both decide about {', '.join(sorted(common))}"
        else:
            continue
        warn_once(logger, "conflict: %s", what)
        against[i].append(what)
        against[j].append(what)
    return [(replace(decision, conflicts=tuple(what)), p) for (decision, p), what in zip(chosen, against, strict=True)]


def _one_each(given, prompts: Sequence[str], name: str, single) -> list:
    if isinstance(given, single) or not isinstance(given, Sequence):
        return [given] * len(prompts)
    given = list(given)
    if len(given) != len(prompts):
        raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts: give one for all, or one each")
    return given
