"""Drafts: the gaps of a text are filled in any order, some tokens a pass, and filled again where they are unlikely.

A model that has learned to predict any part of a text from any other (masked diffusion, 2406.07524, 2502.09992) writes
a draft in passes: every pass predicts all gaps and fills the most certain ones, of MaskGIT (2202.04200), or those that
another order names. A revision reads a draft with some of its tokens hidden, hides those again that are the least
likely between the others, and fills them anew (2503.00307).

Shapes: B rows, T tokens, n gaps of a row, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..parsing import check_range, check_types
from .prompt_reading import pad_rows

Order = Literal["surest", "margin", "entropy", "left", "random"]
Predict = Callable[[Tensor, Tensor, list[Any]], Tensor]
"""ids (B, T), their lengths (B,) and the source of each row -> logits (B, T, V)"""
REVISION_PARTS = 8  # a draft is judged in so many reads, in each of which another part of it is hidden
MAX_ROWS = 64  # of one read


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """How gaps are filled. Raises InputError on values that make no sense."""

    order: Order = "surest"
    """Which gaps a pass fills: those whose token is most probable (surest), furthest ahead of the second (margin), of
    the lowest entropy, the leftmost, or any."""
    passes: int | None = None
    """Passes in which a text is filled, about as many tokens in each. None: a token in each."""
    threshold: float | None = None
    """A pass also fills every gap whose token has at least this probability."""
    temperature: float = 0.0
    """Divides the logits that tokens are drawn by; 0 takes the likeliest."""
    revise: int = 0
    """How often the finished draft is revised."""
    remask: float = 0.25
    """The most tokens that a revision fills anew, as a fraction of those that were gaps."""
    remask_above: float = 0.0
    """A revision fills a token anew where another one is more probable by more nats than this."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "passes", at_least=1, at_most=1 << 24)
        check_range(self, "threshold", above=0, at_most=1)
        check_range(self, "temperature", at_least=0, at_most=1e6)
        check_range(self, "revise", at_least=0, at_most=10_000)
        check_range(self, "remask", above=0, at_most=1)
        check_range(self, "remask_above", at_least=0, at_most=1e6)
        check_range(self, "seed", at_least=0, below=1 << 40)


class Draft:
    """A row of ids as it is filled.

    Attributes:
        gaps: The positions that may be revised.
        open: Those that are hidden now.
        logprobs: Of the tokens that were filled, by position.
        source: What the model reads besides, if anything.
        n_reads: How often the model has read the row.
    """

    def __init__(
        self,
        ids: Sequence[int],
        gaps: Sequence[int],
        hidden: Sequence[int],
        settings: DraftSettings,
        seed: int,
        source: Any = None,
    ):
        self.source = source
        self.ids, self.gaps, self.settings = list(ids), list(gaps), settings
        self.generator = torch.Generator().manual_seed(seed)
        self.n_reads, self.logprobs = 0, dict[int, float]()
        self.hide(hidden)

    def rate(self) -> float:
        """Return the mean log-probability of the tokens that were filled."""
        return sum(self.logprobs.values()) / max(1, len(self.logprobs))

    def hide(self, positions: Sequence[int], passes: int | None = None) -> None:
        """Open gaps, to be filled in so many passes (None: as the settings say)."""
        self.open, self.n_hidden, self.n_passes = sorted(positions), len(positions), 0
        self.passes = passes or self.settings.passes or max(1, self.n_hidden)
        self.ranks = dict(zip(self.open, torch.rand(self.n_hidden, generator=self.generator).tolist()))

    def fill(self, logits: Tensor) -> None:
        """Fill the gaps of a pass. logits: of the open gaps, (n, V)"""
        self.n_reads, self.n_passes = self.n_reads + 1, self.n_passes + 1
        logprobs = logits.float().log_softmax(-1)
        tokens = self.choose_tokens(logprobs)
        n_left = self.n_hidden - -(-self.n_hidden * self.n_passes // self.passes)  # after this pass
        scores = self.score(logprobs, tokens)
        ranking = sorted(range(len(self.open)), key=lambda i: -scores[i])
        filled = set(ranking[: max(1, len(self.open) - n_left)])
        if self.settings.threshold is not None:
            chosen = logprobs.gather(1, tokens[:, None])[:, 0].exp()
            filled |= set(torch.nonzero(chosen >= self.settings.threshold)[:, 0].tolist())
        for i in filled:
            self.ids[self.open[i]], self.logprobs[self.open[i]] = int(tokens[i]), float(logprobs[i, tokens[i]])
        self.open = [position for i, position in enumerate(self.open) if i not in filled]

    def choose_tokens(self, logprobs: Tensor) -> Tensor:
        """Choose a token for each gap: (n, V) -> (n,)"""
        if self.settings.temperature == 0:
            return logprobs.argmax(-1)
        cumulative = (logprobs.double() / self.settings.temperature).softmax(-1).cumsum(-1)
        draws = torch.rand(len(logprobs), 1, dtype=torch.float64, generator=self.generator).to(logprobs.device)
        tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)[:, 0]
        return tokens.clamp(max=logprobs.shape[-1] - 1)

    def score(self, logprobs: Tensor, tokens: Tensor) -> list[float]:
        """Return how early each gap is filled: the highest first."""
        if self.settings.order == "left":
            return [-position for position in self.open]
        if self.settings.order == "random":
            return [self.ranks[position] for position in self.open]
        if self.settings.order == "entropy":
            return torch.nan_to_num(logprobs.exp() * logprobs).sum(-1).tolist()
        if self.settings.order == "margin":
            best = logprobs.topk(2).values.exp()
            return (best[:, 0] - best[:, 1]).tolist()
        return logprobs.gather(1, tokens[:, None])[:, 0].tolist()

    def reopen(self, losses: Sequence[float]) -> None:
        """Hide tokens again that another one beats by the most. losses: of each gap, the log-probability of the best
        token less that of the one that is there."""
        most = -(-len(self.gaps) * self.settings.remask // 1)
        worst = sorted(range(len(self.gaps)), key=lambda i: -losses[i])[: int(most)]
        self.hide([self.gaps[i] for i in worst if losses[i] > self.settings.remask_above])


@torch.inference_mode()
def write_drafts(predict: Predict, drafts: Sequence[Draft], mask_id: int, is_allowed: Tensor) -> Iterator[None]:
    """Fill and revise all drafts, in place; yields after every pass.

    Args:
        is_allowed: Which tokens may be written, (V,) bool, on the device of the model.
    """
    if not bool(is_allowed.any()):
        raise InputError("no token is allowed in the gaps")
    for revision in range(1 + max((draft.settings.revise for draft in drafts), default=0)):
        if revision:
            revised = [draft for draft in drafts if draft.settings.revise >= revision and draft.gaps]
            revise(predict, revised, mask_id, is_allowed)
        while unfinished := [draft for draft in drafts if draft.open]:
            for start in range(0, len(unfinished), MAX_ROWS):
                part = unfinished[start : start + MAX_ROWS]
                rows = [hide_tokens(draft.ids, draft.open, mask_id) for draft in part]
                logits = read_gaps(predict, rows, [draft.open for draft in part], part, is_allowed)
                for draft, row_logits in zip(part, logits):
                    draft.fill(row_logits)
            yield


def revise(predict: Predict, drafts: Sequence[Draft], mask_id: int, is_allowed: Tensor) -> None:
    """Judge every token between the others, and open the gaps of the least likely ones."""
    reads = [
        (draft, draft.gaps[i::REVISION_PARTS]) for draft in drafts for i in range(min(REVISION_PARTS, len(draft.gaps)))
    ]
    losses: dict[tuple[int, int], float] = {}  # by draft and position
    for start in range(0, len(reads), MAX_ROWS):
        owners, parts = zip(*reads[start : start + MAX_ROWS])
        rows = [hide_tokens(draft.ids, part, mask_id) for draft, part in zip(owners, parts)]
        for draft, part, logits in zip(owners, parts, read_gaps(predict, rows, parts, owners, is_allowed)):
            logprobs, own = logits.float().log_softmax(-1), torch.tensor([draft.ids[i] for i in part])
            loss = logprobs.amax(-1) - logprobs.gather(1, own.to(logprobs.device)[:, None])[:, 0]
            losses |= {(id(draft), position): x for position, x in zip(part, loss.tolist())}
            draft.n_reads += 1
    for draft in drafts:
        draft.reopen([losses[id(draft), position] for position in draft.gaps])


def hide_tokens(ids: Sequence[int], positions: Sequence[int], mask_id: int) -> list[int]:
    hidden = list(ids)
    for position in positions:
        hidden[position] = mask_id
    return hidden


def read_gaps(
    predict: Predict,
    rows: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[int]],
    drafts: Sequence[Draft],
    is_allowed: Tensor,
) -> list[Tensor]:
    """Return the logits of the gaps of each row, (n, V); of tokens that are not allowed -inf."""
    logits = predict(*pad_rows(rows, is_allowed.device), [draft.source for draft in drafts])
    logits = logits[..., : len(is_allowed)].masked_fill(~is_allowed, -torch.inf)
    return [row[torch.tensor(positions, device=row.device)] for row, positions in zip(logits, gaps)]
