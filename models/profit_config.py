"""How the profit model is built and trained; apart from it, since settings load without NumPy."""

from dataclasses import dataclass

from winback.models.errors import SettingsError


@dataclass(frozen=True)
class ProfitConfig:
    """How the Transformer is built and trained."""

    d_model: int = 32  # enough for 30 tokens of a few dozen categories; wider gains nothing
    layers: int = 1  # the coupon query attends once more; a second layer only slowed learning
    heads: int = 2  # 16 dimensions each; 4 take twice the time on a CPU for the same loss
    dropout: float = 0.05  # little: rows outnumber weights, and early stopping guards too
    batch_rows: int = 512  # smaller steps learn more per epoch; larger ones take as long
    learning_rate: float = 8e-3  # for AdamW at this width, with warm-up and cosine decay
    weight_decay: float = 0.01  # PyTorch's default for AdamW
    effect_decay: float = 0.1  # coupons differ only if the data insist
    max_epochs: int = 6  # the learning rate decays over these; two more gained nothing
    patience: int = 3  # epochs without a better validation loss
    validation_share: float = 0.25  # of the decision dates, the latest
    decision_days: int = 7  # length of a window in days
    max_rows: int = 200_000  # about a minute on one core
    unseen_share: float = 0.02  # of category tokens hidden in training, so that a new one is known
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 1  # the matrices are small: two gain little, and stall on cores that are shared

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise SettingsError(
                f"expected d_model to be a multiple of heads, got {self.d_model} and {self.heads}"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise SettingsError(f"expected device auto, cpu or cuda, got {self.device!r}")
        if not 0 < self.validation_share < 1:
            raise SettingsError(
                f"expected validation_share between 0 and 1, got {self.validation_share}"
            )
