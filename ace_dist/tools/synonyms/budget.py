"""What questions cost: token estimates, prices that the user states, and a budget that cannot be passed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ace_dist.utils.errors import UserError

CHARACTERS_PER_TOKEN = 4  # of English text under the usual byte-pair vocabularies; an estimate, never a limit
MESSAGE_OVERHEAD = 16  # tokens that a chat template adds around one message, generously


class BudgetReached(UserError):
    """The next question could pass the budget."""


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def most_tokens(prompt: str) -> int:
    """A bound on the tokens of a prompt: a byte-pair vocabulary never makes more tokens than bytes."""
    return len(prompt.encode()) + MESSAGE_OVERHEAD


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens in one currency; `None`: unknown, only tokens are reported."""

    input: float | None = None
    output: float | None = None

    @property
    def known(self) -> bool:
        """True when both prices are stated."""
        return self.input is not None and self.output is not None

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Cost of tokens; call it only when the prices are known."""
        assert self.input is not None and self.output is not None
        return (tokens_in * self.input + tokens_out * self.output) / 1e6

    def describe(self, tokens_in: int, tokens_out: int) -> str:
        """Tokens, and the cost where the prices are known."""
        text = f"{tokens_in:,} input and {tokens_out:,} output tokens"
        return f"{text}, {self.cost(tokens_in, tokens_out):.4f} at the stated prices" if self.known else text


@dataclass
class Budget:
    """Spent and reserved tokens of one build, shared by its threads.

    A question is asked only after its worst case (bytes of the prompt, output limit) was reserved, so what servers
    bill stays below the limits however many questions are on their way. An answer settles the reservation with the
    server's count; a request that ended without an answer, and may have been billed, keeps its worst case.
    """

    prices: Prices = field(default_factory=Prices)
    limit_tokens: int | None = None
    limit_cost: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    _reserved: list[tuple[int, int]] = field(default_factory=list)
    _change: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        if self.limit_cost is not None and not self.prices.known:
            raise UserError(
                f"budget_cost={self.limit_cost:g} needs price_input and price_output (per million tokens); "
                f"without prices set budget_tokens"
            )

    def reserve(self, tokens_in: int, tokens_out: int) -> tuple[int, int]:
        """Take the worst case of one request out of the budget; waits while answers on their way could free some.

        Raises `BudgetReached` when the request does not fit even alone.
        """
        with self._change:
            while reason := self._excess(tokens_in, tokens_out):
                if not self._reserved:
                    raise BudgetReached(reason)
                self._change.wait()
            self._reserved.append((tokens_in, tokens_out))
            return tokens_in, tokens_out

    def settle(self, reservation: tuple[int, int], tokens_in: int, tokens_out: int) -> None:
        """Replace a reservation by what was used: nothing when the server refused, all of it when nobody knows."""
        with self._change:
            self._reserved.remove(reservation)
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self._change.notify_all()

    def _excess(self, tokens_in: int, tokens_out: int) -> str:
        """Why the worst case of everything under way and this request would pass a limit, or ""."""
        total_in = self.tokens_in + tokens_in + sum(r[0] for r in self._reserved)
        total_out = self.tokens_out + tokens_out + sum(r[1] for r in self._reserved)
        if self.limit_tokens is not None and total_in + total_out > self.limit_tokens:
            return (
                f"budget_tokens={self.limit_tokens}: {self.tokens_in + self.tokens_out} spent, "
                f"the next question may need {tokens_in + tokens_out}"
            )
        if self.limit_cost is not None and self.prices.cost(total_in, total_out) > self.limit_cost:
            return (
                f"budget_cost={self.limit_cost:g}: {self.prices.cost(self.tokens_in, self.tokens_out):.4f} spent, "
                f"the next question may cost {self.prices.cost(tokens_in, tokens_out):.4f}"
            )
        return ""
