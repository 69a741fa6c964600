"""How training goes, in one frozen record. Loads no torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the loop needs to know. Raises ValueError where a number makes no sense."""

    steps: int = 1000
    """Updates of the weights."""
    batch: int = 32
    """Rows of a batch."""
    accumulate: int = 1
    """Batches summed before each update, for a larger batch than memory holds."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (1711.05101), or Muon for the matrices of the body and AdamW for the rest."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr: float = 0.1
    """Lowest learning rate, as a fraction of lr."""
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    """After the warm-up: cosine to min_lr (1608.03983), or level and then straight down (2405.18392)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Of matrices; vectors (biases, norms) do not decay."""
    beta2: float = 0.95
    """AdamW: memory of the gradient's square (that of the gradient itself is 0.9)."""
    clip: float = 1.0
    """Longest gradient; 0 does not clip."""
    eval_every: int = 250
    """Steps from one validation (and sample) to the next; the last step always validates."""
    eval_batches: int = 20
    """Batches of each validation during training."""
    final_every: int = 1
    """The validation at the end takes the whole split: every batch, or of a large one every so many."""
    save_every: int = 1000
    """Steps from one checkpoint to the next; the best and the last are kept."""
    average: int = 1
    """The mean of the last so many checkpoints is a candidate for the best (1706.03762, section 6.1)."""
    patience: int = 0
    """Stop when the validation loss has not fallen for so many validations; 0 goes on."""
    seed: int = 1
    """Of everything random. The same seed, data and machine give the same run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; weights stay in float32. auto: bfloat16 where the device is quick at it."""
    compile: bool = False
    """torch.compile the model: slower to start, quicker afterwards. Needs a C++ compiler on CPU."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "accumulate",
            "eval_every",
            "eval_batches",
            "final_every",
            "save_every",
            "average",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        for name in ("seed", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """How much a fine-tuning may change. Raises ValueError where a number makes no sense."""

    rank: int = 0
    """Rows of A and columns of B; 0 trains all weights instead."""
    alpha: float = 16.0
    """What they write is scaled by alpha / rank."""
    where: Literal["attention", "all"] = "all"
    """Which maps of each block: those of attention, or the MLP's too."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}; it must be 0 or more")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha}; it must be above 0")
