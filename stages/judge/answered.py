"""An answer to be judged."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answered:
    """`question` as the judge is shown it; `references`: right answers, where there are any."""

    question: str
    answer: str
    references: list[str] = field(default_factory=list)
