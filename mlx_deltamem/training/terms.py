"""The options of the training loss: its terms besides the cross-entropy (facts 3.3 and 3.4).

The first two terms are the reference's. The others are formulas of the reference that no released run used.
"""

from dataclasses import dataclass

from mlx_deltamem.options.option import check_options, option


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss besides the cross-entropy, and their weights. A weight of 0 leaves a term out.

    Raises:
        ValueError: A number is out of range.
    """

    sparsity: float = option(0.01, "Weight of (mean β - target)², averaged over layers; β is the write gate.", least=0)
    sparsity_target: float = option(0.05, "Target of the mean β.", least=0)
    sparsity_pass: str = option("read", "The pass over whose tokens the mean β is taken.", ("read", "write"))
    contrast_zeroed: float = option(0.0, "Weight of a hinge loss: answers must be worse with a zeroed state.", least=0)
    contrast_corrupted: float = option(
        0.0, "Weight of a hinge loss: answers must be worse with a corrupted state.", least=0
    )
    contrast_margin: float = option(0.01, "How much worse, in nats.", least=1e-6)
    teacher_kl: float = option(0.0, "Weight of KL(teacher || student); the teacher reads the whole chat.", least=0)

    def __post_init__(self) -> None:
        check_options(self)
