"""A gradient rule in a TorchRec training loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.gradients.layout import Layout, PooledField, order_tables
from torchrec_mtl.gradients.rows import Ids
from torchrec_mtl.registry import resolve


class GradientHook(nn.Module):
    """Combines the tasks' gradients below an ``EmbeddingBagCollection``'s output, in one backward.

    Three lines of a model's own code: make it in ``__init__``, call it on the losses in ``forward`` (in a submodule
    without sharded children, where a train pipeline traces), sum what it returns. Data parallel averages over ranks, so
    each loss should be this rank's mean, or its sum times the world size over the global weight sum.

    Args:
        config: options of the rule, such as ``HTLNetRule.Config(core="watch", exact="rows")``.
        tasks: names, in the order of the losses.
        tables: of the collection, needed for ``exact="rows"`` and for rules by table.
        seed: of rules that draw.

    Raises:
        ValueError: the options need something that is not given.

    Example:
        >>> from torchrec_mtl.gradients.htlnet import HTLNetRule
        >>> hook = GradientHook(HTLNetRule.Config(core="watch", alpha=1.0, gamma=0.0), ["click", "watch"])
        >>> table = torch.zeros(2, requires_grad=True)
        >>> pooled = table * 1.0  # stands for the output of the tables
        >>> losses = torch.stack([(pooled * torch.tensor([3.0, -1.0])).sum(), pooled[1]])
        >>> hook(losses, pooled).sum().backward()
        >>> table.grad  # the click's pull against the watch time, -1, is gone
        tensor([3., 1.])
    """

    steps: Tensor

    def __init__(
        self,
        config: RuleConfig,
        tasks: Sequence[str],
        *,
        tables: Sequence[EmbeddingBagConfig] = (),
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        rule_class: type[GradientRule] = resolve("rule", config.type)
        core = getattr(config, "core", None)
        if core is not None and core not in tasks:
            raise ValueError(f"core: no task '{core}'.{did_you_mean(core, tasks)}")
        if config.at != "embeddings":
            raise ValueError("at: a hook acts on the tensor it is given; leave `at` out, and give it that tensor")
        if config.exact == "dense":
            raise ValueError("exact: dense needs the tables' own gradients; use exact: rows, or Boundary.tables")
        if not tables and (config.exact == "rows" or rule_class.groups == "table"):
            raise ValueError(
                f"gradient rule '{config.type}' with exact: {config.exact} must know the tables; pass "
                "tables=ebc.embedding_bag_configs(), taken before sharding"
            )
        self._looks = config.exact == "rows" or rule_class.groups == "table"
        self.configs = {table.name: table for table in tables}
        self.tables, self.dims = order_tables({t.name: t.embedding_dim for t in tables})
        groups = len(self.tables) if rule_class.groups == "table" else 1
        self.rule = rule_class(config, tasks, groups)
        self.boundary = Boundary(self.rule, exact=config.exact, seed=seed)
        self.register_buffer("steps", torch.tensor(0))
        self._step = 0
        self._layouts: dict[tuple[str, ...], tuple[Layout, list[str]]] = {}

    def forward(
        self,
        losses: Tensor,
        pooled: Tensor | KeyedTensor,
        sparse: KeyedJaggedTensor | None = None,
        *,
        others: Tensor | None = None,
    ) -> Tensor:
        """Return the losses to be summed, and arrange that their one backward carries the combined gradient.

        Whatever else in the model depends on ``pooled`` is handed in as ``others``: the gradient of a loss that the
        hook does not know ends at ``pooled`` and never reaches the tables.

        Args:
            losses: [K], each a function of ``pooled`` alone, as far as tables go.
            pooled: output of the collection; a plain tensor [B, P] will do for ``exact="boundary"``.
            sparse: the ids that were looked up, for ``exact="rows"``.
            others: [M], losses that belong to no task (a regulariser, a hinge between tasks); they weigh 1.

        Returns:
            [K + M], ``others`` last; one more in training where the rule learns parameters (``uncertainty``): the
            last is their penalty.

        Raises:
            ValueError: another number of losses than tasks; ``exact="rows"`` without ids, or with weighted ones.
        """
        if len(losses) != len(self.rule.tasks):
            raise ValueError(f"expected one loss for each of {', '.join(self.rule.tasks)}, found {len(losses)} losses")
        others = losses.new_zeros(0) if others is None else others
        if not self.training or not torch.is_grad_enabled():
            return torch.cat([losses, others]) if len(others) else losses
        layout, ids = self._looked_up(pooled, sparse)
        self.boundary.prepare(step=self._step, losses=all_sum(losses) / world_size(), layout=layout, ids=ids)
        self._step += 1
        self.steps += 1
        penalty = self.rule.penalty()
        if self.rule.needs == "losses":
            losses = losses * self.boundary.loss_weights()
        losses = torch.cat([losses, others])
        if self.rule.needs == "gramian":
            # A sharded collection returns what becomes a KeyedTensor when it is read.
            self.boundary.per_task_passes(losses, [pooled if isinstance(pooled, Tensor) else pooled.values()])
        return losses if penalty is None else torch.cat([losses, penalty.reshape(1)])

    def _looked_up(
        self, pooled: Tensor | KeyedTensor, sparse: KeyedJaggedTensor | None
    ) -> tuple[Layout | None, Ids | None]:
        if not self._looks:
            return None, None
        if isinstance(pooled, Tensor):
            raise ValueError("pass the KeyedTensor itself, which knows the columns of each table")
        layout, features = self._layout(pooled)
        if self.boundary.exact != "rows":
            return layout, None
        if sparse is None or sparse.weights_or_none() is not None:
            raise ValueError("exact: rows needs the ids that were looked up, unweighted; pass the KeyedJaggedTensor")
        order = [sparse.keys().index(feature) for feature in features]
        return layout, Ids(sparse if order == list(range(len(sparse.keys()))) else sparse.permute(order))

    def _layout(self, pooled: KeyedTensor) -> tuple[Layout, list[str]]:
        """Return the layout of the output, whose columns are in the order of the sharding plan, and its features."""
        keys = tuple(pooled.keys())
        if keys not in self._layouts:
            columns = dict(zip(keys, pooled.offset_per_key(), strict=False))
            fields: list[PooledField] = []
            features: list[str] = []
            for number, name in enumerate(self.tables):
                table = self.configs[name]
                for feature in table.feature_names:
                    key = feature if feature in columns else f"{feature}@{name}"  # read by several tables
                    fields.append(PooledField(number, columns[key], table.pooling == PoolingType.MEAN))
                    features.append(feature)
            self._layouts[keys] = Layout(self.tables, self.dims, tuple(fields), ()), features
        return self._layouts[keys]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._step = int(self.steps)
