"""What may be asked of a language model: the settings, the tokens that are spent, and the ends that an ask may have."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ace_dist.utils.errors import ConfigError, RunError

CHARACTERS_PER_TOKEN = 4  # of English text under the usual byte-pair vocabularies; an estimate, never a limit
MESSAGE_OVERHEAD = 16  # tokens that a chat template adds around one message, generously


class BuildStopped(RunError):
    """No further question makes sense: the budget is spent, the server refuses, or the build was interrupted.

    `passing`: another build with the same settings may get further.
    """

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class NoAnswer(RunError):
    """One question has no answer after all attempts; another one may have."""


@dataclass
class ClientConfig:
    """Settings of the questions to a language model."""

    model: str | None = None
    base_url: str | None = None  # of any OpenAI-compatible server; null: OPENAI_BASE_URL, else OpenAI
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key
    temperature: float | None = None  # null: not sent, the server's default
    seed: int | None = None
    max_output_tokens: int = 1000  # of one answer
    output_limit_name: str = "max_tokens"  # some models of OpenAI want max_completion_tokens
    timeout_s: float = 60.0
    attempts: int = 5  # requests for one answer: after 429, 5xx, time-outs, broken responses
    requests_per_minute: float | None = None
    cache: str | None = None  # folder of answers; null: ~/.cache/ace-dist/synonyms
    price_input: float | None = None  # per million tokens, in any currency
    price_output: float | None = None
    budget_tokens: int | None = None  # of this build, input and output together
    budget_cost: float | None = None  # of this build, in the currency of the prices


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def most_tokens(prompt: str) -> int:
    """A bound on the tokens of a prompt: a byte-pair vocabulary never makes more tokens than bytes."""
    return len(prompt.encode()) + MESSAGE_OVERHEAD


@dataclass
class Budget:
    """Spent and reserved tokens of one build, shared by its threads.

    A question is asked only after its worst case (bytes of the prompt, output limit) was reserved, so what servers
    bill stays below the limits however many questions are on their way. An answer settles the reservation with the
    server's count; a request that ended without an answer, and may have been billed, keeps its worst case.
    """

    config: ClientConfig
    tokens_in: int = 0
    tokens_out: int = 0
    _reserved: list[tuple[int, int]] = field(default_factory=list)
    _change: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        limit = self.config.budget_cost
        if limit is not None and self.cost(0, 0) is None:
            raise ConfigError(
                f"budget_cost={limit:g} needs price_input and price_output (per million tokens); "
                f"without prices set budget_tokens"
            )

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """In the currency of the prices; `None` where they are not stated."""
        price_in, price_out = self.config.price_input, self.config.price_output
        return None if price_in is None or price_out is None else (tokens_in * price_in + tokens_out * price_out) / 1e6

    def describe(self, tokens_in: int, tokens_out: int) -> str:
        cost = self.cost(tokens_in, tokens_out)
        text = f"{tokens_in:,} input and {tokens_out:,} output tokens"
        return text if cost is None else f"{text}, {cost:.4f} at the stated prices"

    def reserve(self, tokens_in: int, tokens_out: int) -> tuple[int, int]:
        """Take the worst case of one request out of the budget; waits while answers on their way could free some.

        Raises `BuildStopped` when the request does not fit even alone.
        """
        with self._change:
            while reason := self._excess(tokens_in, tokens_out):
                if not self._reserved:
                    raise BuildStopped(reason, passing=self.tokens_in + self.tokens_out > 0)
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
        limit, limit_cost = self.config.budget_tokens, self.config.budget_cost
        if limit is not None and total_in + total_out > limit:
            spent = self.tokens_in + self.tokens_out
            return f"budget_tokens={limit}: {spent} spent, the next question may need {tokens_in + tokens_out}"
        if limit_cost is not None and (self.cost(total_in, total_out) or 0.0) > limit_cost:
            return (
                f"budget_cost={limit_cost:g}: {self.cost(self.tokens_in, self.tokens_out):.4f} spent, "
                f"the next question may cost {self.cost(tokens_in, tokens_out):.4f}"
            )
        return ""
