"""Entire space counterfactual multi-task model, ESCM2-IPS and ESCM2-DR (Wang et al., SIGIR 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig, HeadOfKinds, HeadOutput, Term
from torchrec_mtl.heads.chain import chain_logits, chain_names, chain_problems, conditional_predictions
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers

# Shapes: B batch, K tasks, T chained tasks.

Estimator = Literal["ips", "dr"]


class ESCM2(HeadOfKinds):
    """ESMM, and a risk of each conditional probability that is unbiased though its labels are seen on clicks alone.

    As in `ESMM`, binary tasks are a chain, and a task's loss is over all rows: ``L_ctr + lambda_g L_ctcvr``, where
    ``lambda_g`` is the task's weight. Each consecutive pair (click, buy) adds, with o the label of click and o' its
    predicted probability, ``delta`` the cross-entropy of buy's label and P(buy | click), and ``delta'`` what an
    imputation tower predicts of delta:

    * ips: ``lambda_c mean(o delta / o')``
    * dr: ``lambda_c mean(delta' + o (delta - delta') / o')``, and a term ``lambda_c mean(o (delta - delta')^2 / o')``

    Nothing of this trains o' (it is detached), and ``1 / o'`` is clipped. The imputation tower is separate from that of
    P(buy | click): dr then pulls on the latter as ips does, and through the imputation's error. Choices of ours: the
    imputed error is a softplus, since a cross-entropy is not negative; means are weighed as the later task's loss, over
    rows that both tasks have.

    Under a bottom that makes one representation a task, each tower reads its task's, and buy's imputation tower buy's.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order.
        config: options.
        binary: names of the binary tasks; None: all tasks are.

    Example:
        >>> ESCM2(8, ["click", "buy"], ESCM2.Config(estimator="dr")).term_names
        ('escm2/buy_given_click', 'escm2/buy_given_click/imputation')
    """

    class Config(HeadConfig):
        """Options of ``head: {type: escm2}``."""

        type: str = "escm2"
        tower: tuple[PositiveInt, ...] = (256, 128, 64)
        """Widths of each task's layers, and of the imputation towers'."""
        norm: Norm = "none"
        estimator: Estimator = "ips"
        """ips: inverse propensity score; dr: doubly robust, with an imputation tower for each pair of tasks."""
        weight: PositiveFloat = 0.5
        """lambda_c, of the counterfactual risk."""
        clip: Annotated[float, Field(ge=1)] = 15.0
        """Largest ``1 / o'``."""

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The binary tasks must make a chain over one space."""
            return chain_problems("escm2", tasks)

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: Config | None = None,
        *,
        binary: Sequence[str] | None = None,
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.options = config
        self.chain = chain_names("escm2", self.outputs, binary)
        self.risks = tuple(f"escm2/{task}_given_{before}" for before, task in pairwise(self.chain))
        self.imputations = tuple(f"{name}/imputation" for name in self.risks if config.estimator == "dr")
        self.term_names = self.risks + self.imputations
        # The imputation towers stand behind those of the tasks, all in one product a layer.
        self._position = {task: k for k, task in enumerate(self.outputs)}
        self._imputes = [self._position[task] for task in self.chain[1:]] if self.imputations else []
        widths = self.outputs | dict.fromkeys(self.imputations, 1)
        self.towers = Towers(in_features, config.tower, widths, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return the logits of the products, the conditional probabilities, and what the risks need."""
        found = self.towers.logits(self._inputs(representation), representation.valid)
        logits = {task: found[task] for task in self.outputs}
        if not self.risks:
            return HeadOutput(logits=logits)
        conditional = torch.stack([logits[task] for task in self.chain])
        products, log_p = chain_logits(conditional)
        hidden = {"conditional": conditional[1:], "propensity": log_p[:-1]}
        if self.imputations:
            hidden["imputed"] = F.softplus(torch.stack([found[name] for name in self.imputations]))
        return HeadOutput(
            logits=logits | dict(zip(self.chain, products, strict=True)),
            predictions=conditional_predictions(self.chain, conditional),
            hidden=hidden,
        )

    def terms(self, output: HeadOutput, labels: Tensor, weights: Tensor) -> Mapping[str, Term]:
        """Return the counterfactual risks, and with dr the imputations' errors, one each a pair of tasks."""
        if not self.risks:
            return {}
        columns = [self._position[task] for task in self.chain]
        y, w = labels.T[columns], weights.T[columns]
        delta = F.binary_cross_entropy_with_logits(output.hidden["conditional"], y[1:], reduction="none")
        inverse = torch.exp((-output.hidden["propensity"].detach()).clamp_max(math.log(self.options.clip)))
        seen = y[:-1] * inverse
        if self.imputations:
            imputed = output.hidden["imputed"]
            values = torch.cat([imputed + seen * (delta - imputed), seen * (delta - imputed).square()])
        else:
            values = seen * delta
        both = w[1:] * (w[:-1] > 0)
        rows = zip(self.term_names, values * self.options.weight, both.repeat(len(values) // len(both), 1), strict=True)
        return {name: Term(value, weight) for name, value, weight in rows}

    def _inputs(self, representation: Representation) -> Tensor:
        """Return [B, D], or [K + number of imputations, B, D]; an imputation reads what its task reads."""
        x = representation.by_task()
        return x if x.dim() == 2 or not self._imputes else torch.cat([x, x[self._imputes]])
