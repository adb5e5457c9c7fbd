"""A job as it goes on: what is done otherwise than its procedure, said as soon as it is seen and never taken back."""

from collections.abc import Sequence
from typing import NamedTuple

from ace_dist.concepts.actions import normalise
from ace_dist.segment.procedure import Procedure


class Finding(NamedTuple):
    """`event`: done (the job), or a kind of `Deviation`; `label`: the step."""

    event: str
    label: str | None
    note: str


class LiveProcedure:
    """The steps of the present job that were seen. `Procedure.deviations`, which knows the whole video, may say less.

    A job is done when all its steps were seen but the optional ones. The next label then begins another job, except for
    an optional step that was not seen yet and one that may be repeated. A job that is not done is given up when a step
    that follows no other is seen once more after steps that do.
    """

    def __init__(self, procedure: Procedure) -> None:
        self.steps, self.above = procedure.steps, procedure.predecessors()
        self.seen: set[int] = set()
        self.label = ""  # of before: said again, it goes on

    def begin(self, label: str) -> list[Finding]:
        """What a label that begins says of the job."""
        label = normalise(label)
        if label == self.label:
            return []
        self.label = label
        places = [place for place, step in enumerate(self.steps) if step.label == label]
        if not places:
            return [Finding("extra", label, "is no step of the procedure")]
        found = self.give_up() if self.begins_another(places) else []
        unseen = [place for place in places if place not in self.seen]
        if not unseen:
            may_repeat = any(self.steps[place].repeat for place in places)
            return [] if may_repeat else [Finding("repeated", label, "is done more than once")]
        place = min(unseen, key=lambda place: len(self.awaited(place)))
        if awaited := self.awaited(place):
            found.append(Finding("swapped", label, f"comes before {', '.join(map(repr, awaited))}"))
        was_done = not self.missing()
        self.seen.add(place)
        if not was_done and not self.missing():
            found.append(Finding("done", None, "all steps were seen"))
        return found

    def begins_another(self, places: Sequence[int]) -> bool:
        """Whether a label at these places is of the next job."""
        if any(place not in self.seen for place in places):
            return False
        if not self.missing():
            return not any(self.steps[place].repeat and self.above[place] for place in places)
        is_first = any(not self.above[place] and not self.steps[place].repeat for place in places)
        return is_first and any(self.above[place] for place in self.seen)

    def give_up(self) -> list[Finding]:
        """End the job: the steps that are missing in it, if it was begun."""
        missing = [Finding("missing", label, "was not seen") for label in self.missing()] if self.seen else []
        self.seen.clear()
        return missing

    def missing(self) -> list[str]:
        return [step.label for place, step in enumerate(self.steps) if place not in self.seen and not step.optional]

    def awaited(self, place: int) -> list[str]:
        """The steps that must come before this one and were not seen."""
        steps = (self.steps[other] for other in sorted(self.above[place] - self.seen))
        return [step.label for step in steps if not step.optional]
