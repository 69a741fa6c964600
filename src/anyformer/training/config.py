"""Settings of training, as frozen dataclasses. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass
from typing import Literal

from ..parsing import check_range, check_types

MAX_SEED = 2**32 - 1  # torch's generator is seeded with 1_000_003 * seed + step, which must fit into 64 bits
MAX_BATCH = 1 << 20
MAX_MINUTES = 1e7  # 19 years
MAX_BFLOAT16_BETA2 = 0.995  # 1 - beta2 must exceed 2^-8, or a decayed average is rounded to what it was
MAX_STEPS = 10**12  # more than any training has: `eval_every` of this many never validates before the end


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop. Raises ValueError for a value that makes no sense."""

    steps: int = 1000
    """Updates of the weights."""
    batch: int = 32
    """Rows of a batch."""
    accumulate: int = 1
    """Batches whose gradients are summed before each update, for a larger batch than memory holds."""
    shard: int = 1
    """Processes that share one copy of weights, gradients and optimizer states (FSDP2); 1: each has a copy (DDP)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (1711.05101), or Muon for the matrices of Transformer blocks and AdamW for everything else."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr: float = 0.1
    """Lowest learning rate, as a fraction of lr."""
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    """After the warm-up: cosine to min_lr (1608.03983), or constant and then linear to min_lr (2405.18392)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Of matrices; vectors (biases, norms) do not decay."""
    beta2: float = 0.95
    """AdamW: decay rate of the squared gradient's average (beta1 is 0.9)."""
    clip: float = 1.0
    """Maximum norm of the gradient; 0 does not clip."""
    eval_every: int = 250
    """Steps between validations (each with a sample); the last step always validates."""
    eval_batches: int = 20
    """Batches of each validation during training."""
    final_every: int = 1
    """The final validation covers the entire split: every batch, or of a large split one batch in this many."""
    save_every: int = 1000
    """Steps between checkpoints; the best and the last are kept."""
    average: int = 1
    """Average the weights of the last checkpoints, this many, as a candidate for the best (1706.03762, section 6.1)."""
    patience: int = 0
    """Early stopping: end after this many validations without a lower validation loss; 0 never stops early."""
    seed: int = 1
    """Of all random numbers. The same seed, data and machine give the same run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of matrix products; weights stay in float32. auto: bfloat16 where the hardware supports it; float16 with loss
    scaling on GPUs without it; else float32."""
    activation_checkpointing: bool = False
    """Keep the input of each block only and compute the block again for the backward pass (1604.06174): less memory,
    the same gradients, about a third more time."""
    optimizer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the optimizer's averages between updates. bfloat16 halves their memory, and needs a beta2 up to 0.995."""
    compile: bool = False
    """torch.compile the loss: slower to start, faster afterwards. Needs a C++ compiler on CPU."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("steps", "eval_every", "eval_batches", "final_every", "save_every")
        check_range(self, *counts, at_least=1, at_most=MAX_STEPS)
        check_range(self, "batch", "accumulate", "shard", at_least=1, at_most=MAX_BATCH)
        check_range(self, "average", at_least=1, at_most=1000)
        check_range(self, "warmup", "patience", at_least=0, at_most=MAX_STEPS)
        check_range(self, "clip", "weight_decay", at_least=0, at_most=1e12)
        check_range(self, "seed", at_least=0, at_most=MAX_SEED)
        check_range(self, "min_lr", at_least=0, at_most=1)
        check_range(self, "beta2", at_least=0, below=1)
        check_range(self, "lr", above=0, at_most=1000)
        if self.optimizer_dtype == "bfloat16" and self.beta2 > MAX_BFLOAT16_BETA2:
            raise ValueError(
                f"beta2 is {self.beta2}; with optimizer_dtype bfloat16 it must be at most {MAX_BFLOAT16_BETA2}: an "
                "average of 8 significant bits does not follow smaller changes"
            )
        if self.lr * self.weight_decay > 1:  # the decoupled decay multiplies by 1 - lr * weight_decay
            raise ValueError(f"weight_decay is {self.weight_decay} and lr {self.lr}; their product must be at most 1")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of low-rank adapters (2106.09685). Raises ValueError for a value that makes no sense."""

    rank: int = 0
    """Rows of A and columns of B; 0 trains all weights instead."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    where: Literal["attention", "all"] = "all"
    """Which linear layers of each block: those of attention, or the MLP's too."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "rank", at_least=0, at_most=1 << 16)
        check_range(self, "alpha", above=0, at_most=1e6)
