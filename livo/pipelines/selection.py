"""ValueSelector: which values each image of each prompt receives, how strongly, in which steps, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from numbers import Real

from transformers import CLIPTextModel

from livo.pipelines.allocation import Shares, share_out, text_seed
from livo.pipelines.calibration import Calibration
from livo.pipelines.decision_record import AssignedValue, ImageDecision
from livo.pipelines.ledger import Reservation
from livo.principles.principle import MAX_SCALE, RESERVED, ValuePrinciple, refuse_unknown_id
from livo.retrieval.retriever import ValueRetriever
from livo.utils.logs import warn_once

logger = logging.getLogger(__name__)

Candidate = tuple[AssignedValue, ValuePrinciple | None]  # a value, and the principle that it belongs to


@dataclass(frozen=True)
class ValueRequest:
    """What a call asks for, with one entry for each prompt.

    Attributes:
        values: "auto", a principle, its id, a statement, a tuple of these, or None.
        scales: A strength, or a mapping of principles' ids to strengths.
        starts: Share of the steps after which tokens act, 0 to 1.
        ends: Share of the steps after which tokens no longer act, 0 to 1.
    """

    values: list
    scales: list
    starts: list[float]
    ends: list[float]

    @property
    def limited(self) -> bool:
        """Whether any value acts in only a part of the steps."""
        return any(pair != (0, 1) for pair in zip(self.starts, self.ends, strict=True))

    @classmethod
    def for_prompts(cls, prompts: Sequence[str], value, value_scale, value_start, value_end) -> ValueRequest:
        """The arguments of a call with one entry for each prompt.

        Args:
            prompts: The call's prompts.
            value: One for all prompts, or a list with one each; likewise the other arguments (see `ValueMixin.__call__`).
            value_scale: Strengths.
            value_start: Starts.
            value_end: Ends.

        Raises:
            ValueError: a list has another length than `prompts`, or a start is not below its end.
        """
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
class Selection:
    """The values that apply to a prompt.

    Attributes:
        candidates: The values, with their principles; empty where none applies.
        reason: Why none applies; None where any does.
        text: What the retriever read; None where it was not asked.
    """

    candidates: list[Candidate]
    reason: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class ValueSelector:
    """Selects values with a retriever, or as requested by name, and assigns them to images and to value encoders.

    `NamedEncoders` says which encoder carries out which value.

    Attributes:
        retriever: Chooses the principles where the request is "auto".
        encoders: The value encoders by name.
        default_scale: The strength of principles that a mapping of scales does not name.
        scales: By encoder name, what the strength of its values is multiplied by.
    """

    retriever: ValueRetriever | None
    encoders: Mapping[str, CLIPTextModel]
    default_scale: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def principles(self) -> list[ValuePrinciple]:
        """The principles of the retriever."""
        return self.retriever.principles if self.retriever else []

    def select(
        self,
        prompts: Sequence[str],
        request: ValueRequest,
        number: int,
        seeds: Sequence[Sequence[int]],
        reservation: Reservation | None = None,
    ) -> list[ImageDecision]:
        """`number` decisions for each prompt, one for each image.

        Args:
            prompts: The call's prompts.
            request: What the call asks for.
            number: Images of each prompt.
            seeds: For each prompt what its draw depends on, beside its text.
            reservation: Takes the shares from a ledger.

        Raises:
            ValueError: a value was asked for that cannot be honoured; the message says what to do.
        """
        for value, scale in zip(request.values, request.scales, strict=True):
            self._check_scale(value, scale)
        found = iter(self._retrieve([text for text, value in zip(prompts, request.values, strict=True) if value == "auto"]))
        decisions = []
        for i, (text, value, scale) in enumerate(zip(prompts, request.values, request.scales, strict=True)):
            selection = next(found) if value == "auto" else self._requested(value)
            candidates = [
                (self._carried(candidate, principle, scale, request.starts[i], request.ends[i]), principle)
                for candidate, principle in _with_conflicts(selection.candidates)
            ]
            images = self._assign(candidates, text, number, (*seeds[i], text_seed(text)), reservation)
            decisions += [ImageDecision(text, values, selection.reason, selection.text) for values in images]
        return decisions

    def _carried(self, value: AssignedValue, principle: ValuePrinciple | None, scale, start: float, end: float) -> AssignedValue:
        """The value with the encoder that carries it out, how strongly, and when."""
        name = self._encoder_for(value.statement, principle)
        scale = self._scale_of(value, scale) * self.scales.get(name, 1.0)
        return replace(value, encoder_name=name, scale=scale, start=start, end=end)

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

    def _check_scale(self, value, scale) -> None:
        """Raise ValueError where `scale` cannot be used, whether a value applies to the prompt or not."""
        if not isinstance(scale, Mapping):
            checked_scale(scale)
            return
        given = [one.id for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, ValuePrinciple)]
        ids = list(dict.fromkeys([*(principle.id for principle in self.principles), *given]))
        if unknown := [name for name in scale if name not in ids]:
            there = f"there are {', '.join(ids)}" if ids else "none are loaded"
            raise ValueError(f"value_scale names {', '.join(map(repr, unknown))}, and no principle has that id: {there}")
        for one in scale.values():
            checked_scale(one)

    def _scale_of(self, value: AssignedValue, scale) -> float:
        return float(scale.get(value.id, self.default_scale) if isinstance(scale, Mapping) else scale)

    def _assign(
        self, candidates: list[Candidate], prompt: str, number: int, seed: Sequence[int], reservation: Reservation | None
    ) -> list[tuple[AssignedValue, ...]]:
        """The values of each of a prompt's images: their directions, or whether the image receives the plain token."""
        if not candidates:
            return [()] * number
        prepared = [self._prepared(value, principle) for value, principle in candidates]
        targets = [shares for _, _, shares in prepared]
        if reservation is None:
            rows = share_out(number, targets, seed)
        else:  # at scale 0 an image is given nothing
            keys = [(prompt, value.name) if value.scale > 0 else None for value, _, _ in prepared]
            rows = reservation.share_out(number, targets, seed, keys)
        return [
            tuple(
                replace(value, statement=directions[name], direction=name, applied=value.scale > 0)
                if directions
                else replace(value, applied=bool(name and value.scale > 0))
                for (value, directions, _), name in zip(prepared, classes, strict=True)
            )
            for classes in rows
        ]

    def _prepared(self, value: AssignedValue, principle: ValuePrinciple | None) -> tuple[AssignedValue, Mapping[str, str], Shares]:
        """A value, the directions that its encoder knows, and the share of the images for each direction or for the plain token."""
        directions = principle.directions if principle is not None else {}
        statements = getattr(self.encoders[value.encoder_name], "statements", None)
        if principle is not None and directions and set(directions.values()) - set(statements or ()):
            rate = f"{principle.apply_rate:.0%} of the images get the plain token"
            why = f"{value.reason}; the value encoder was not trained with its directions, so {rate}"
            if principle.target:
                warn_once(
                    logger, "%s: the value encoder was not trained with its directions, so its target is not met", principle.id
                )
            value, directions = replace(value, reason=why), {}
        if not directions and statements is not None and value.statement not in statements:
            warn_once(
                logger,
                "the value encoder was not trained with %r, so it may do nothing; it knows: %s. Use one of these words, or train an "
                "encoder with yours (livo train)",
                value.statement,
                "; ".join(statements),
            )
            value = replace(value, reason=f"{value.reason}; the value encoder was not trained with these words")
        value = replace(value, known=None if statements is None else bool(directions) or value.statement in statements)
        if principle is not None and directions:
            value, shares = self._calibrated(value, principle)
            return value, directions, shares
        rate = 1.0 if principle is None else principle.apply_rate
        return value, {}, {True: rate, False: 1 - rate}

    def _calibrated(self, value: AssignedValue, principle: ValuePrinciple) -> tuple[AssignedValue, dict[str, float]]:
        """The shares of a principle's directions: its target, or what meets it by the encoder's calibration."""
        measured = getattr(self.encoders[value.encoder_name], "calibrations", {}).get(principle.id)
        if measured is None or set(measured["classes"]) != set(principle.directions) or value.scale != 1:
            return value, principle.shares  # it was measured at the strength that was trained
        shares, miss = Calibration.from_dict(measured).shares(principle.shares)
        why = f"{value.reason}; shares of the directions calibrated by {measured['judge']}"
        if miss > 0.05:
            why += f", which can come no nearer to the target than {miss:.0%} in its worst class"
            warn_once(logger, "%s: the encoder's directions miss the target by %.0f%% in its worst class", principle.id, 100 * miss)
        return replace(value, reason=why), shares

    def _retrieve(self, prompts: list[str]) -> list[Selection]:
        """What the retriever selects for each prompt."""
        if not prompts:
            return []
        if not self.encoders:
            warn_once(
                logger, "no value encoder is loaded: these are the base pipeline's images (load_value_encoder, or value=None)"
            )
            return [Selection([], NO_ENCODER)] * len(prompts)
        if self.retriever is None:
            raise ValueError("value='auto' needs principles: call load_value_principles first, or pass value=None")
        by_id = {principle.id: principle for principle in self.principles}
        selections = []
        for decisions in self.retriever.retrieve_batch(prompts):
            found: list[Candidate] = [(AssignedValue.of(decision), by_id.get(decision.id)) for decision in decisions if decision.id]
            selections.append(Selection(found, None if found else decisions[0].reason, decisions[0].text))
        return selections

    def _requested(self, wanted) -> Selection:
        """What was requested by name: one value, a tuple of values that act together, or None."""
        if wanted is None:
            return Selection([], NO_VALUE)
        if not isinstance(wanted, tuple):
            return Selection([self._by_name(wanted)])
        candidates = [self._by_name(one) for one in wanted if one is not None and one != "auto"]
        if not wanted or len({value.statement for value, _ in candidates}) < len(wanted):
            raise ValueError(f"value is {wanted!r}: a tuple names principles or statements that act together, each once")
        return Selection(candidates)

    def _by_name(self, wanted: str | ValuePrinciple) -> Candidate:
        """A value that was requested by its principle, its id, or its statement."""
        if not self.encoders:
            raise ValueError(f"value={wanted!r} needs a value encoder: call load_value_encoder first, or pass value=None")
        if not isinstance(wanted, (str, ValuePrinciple)):
            raise ValueError(f"value is {wanted!r}: give 'auto', a principle's id, a statement, or None")
        by_name = {p.statement: p for p in self.principles} | {p.id: p for p in self.principles}
        found = by_name.get(wanted, wanted) if isinstance(wanted, str) else wanted
        if isinstance(found, ValuePrinciple):
            return AssignedValue(found.id, found.statement, reason=f"{found.id} was asked for"), found
        if not found.strip() or found.lower() in RESERVED:
            raise ValueError(f"value is {found!r}: give 'auto', a principle's id or a statement, or None for the base pipeline")
        refuse_unknown_id(found, self.principles)
        return AssignedValue(None, found, reason="the statement was asked for"), None


NO_VALUE, NO_ENCODER = "value=None", "no value encoder is loaded"  # reasons why an image is the base pipeline's


def checked_scale(scale) -> float:
    """`scale` as a number. Raises ValueError unless it is from 0 to `MAX_SCALE`."""
    try:
        number = -1.0 if isinstance(scale, (bool, str)) else float(scale)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= MAX_SCALE:
        raise ValueError(f"value_scale is {scale!r}: give a number from 0 (the base) to {MAX_SCALE}; 1 is what was trained")
    return number


def _with_conflicts(candidates: list[Candidate]) -> list[Candidate]:
    """Each value with what works against it among the others, which is also logged as a warning."""
    against: list[list[str]] = [[] for _ in candidates]
    for (i, (_, one)), (j, (_, other)) in combinations(enumerate(candidates), 2):
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
    return [(replace(value, conflicts=tuple(what)), p) for (value, p), what in zip(candidates, against, strict=True)]


def _one_each(given, prompts: Sequence[str], name: str, single) -> list:
    if isinstance(given, single) or not isinstance(given, Sequence):
        return [given] * len(prompts)
    given = list(given)
    if len(given) != len(prompts):
        raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts: give one for all, or one each")
    return given
