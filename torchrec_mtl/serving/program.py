"""The dense part of a trained model as programs of ``torch.export``: ids and tables in, predictions out.

Tables are inputs of a program, not part of it: all programs of a bundle read the same mapped files.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as fx_config

from torchrec_mtl.bottoms.base import Bottom
from torchrec_mtl.features import Features, FeaturesSpec, Jagged
from torchrec_mtl.heads.base import HeadOutput
from torchrec_mtl.objective import Objective, predict, represent
from torchrec_mtl.serving.layout import Layout, TableFile

# Shapes: B rows, R rows of a group (B, or 1 of one user), F fields of a group, M ids, N events, D0 dense columns,
# K tasks, O outputs.

Kind = Literal["rows", "one_user", "users", "items"]
"""rows: every row has its user; one_user: all are candidates for one; users and items: vectors of a retrieval head."""


_OF_SHAPES = frozenset({"val", "tensor_meta", "unbacked_bindings"})  # what is kept of a node's metadata


class Program(nn.Module):
    """Inputs of a batch, and tables, to predictions.

    Args:
        objective: of a trained model; nothing of it is changed.
        layout: of the tables.
        kind: what it is for.

    Attributes:
        outputs: names of what it returns: the tasks, then the head's further predictions; known after a forward.
    """

    def __init__(self, objective: Objective, layout: Layout, kind: Kind) -> None:
        """See the class."""
        super().__init__()
        self.layout, self.kind = layout, kind
        self.spec: FeaturesSpec = objective.reader.spec
        self.tasks = objective.tasks
        self.groups = layout.groups(one_user=kind == "one_user")
        self.bottoms = nn.ModuleList(
            copy.deepcopy(cast(Bottom, bottom).for_inference()) for bottom in objective.bottoms
        )
        self.head = copy.deepcopy(objective.head.for_inference())
        self.losses = copy.deepcopy(objective.losses)
        self.consistency = objective.consistency
        self.share = all(b.shares_histories for b in self.bottoms) and (
            self.head.shares_histories or not self.head.reads_features
        )
        self.outputs: tuple[str, ...] = ()
        self.eval().requires_grad_(False)

    def forward(
        self,
        dense: Tensor,
        pooled: Sequence[tuple[Tensor, Tensor, Tensor]],
        histories: Sequence[tuple[Tensor, ...]],
        tables: Sequence[Tensor],
    ) -> Tensor:
        """Return predictions [B, O]; vectors [B, K, D] of users, [B, D] of items.

        Args:
            dense: [B, D0], normalised.
            pooled: a group each: ids [M] as rows of its file, field by field; where each row's begin, [F, R]; and what
                their sum is divided by, [F, R, 1] float32.
            histories: a sequence each: ids [N] as rows of its file, lengths [B] ([1] of one user), and gaps [N] where
                it has times.
            tables: the files of the layout.
        """
        fields: dict[str, Tensor] = {}
        for group, parts in zip(self.groups, pooled, strict=True):
            found = _pooled(tables[group[0].file], self.layout.files[group[0].file], *parts)
            if self.kind == "one_user" and group[0].user:
                found = found.expand(-1, dense.shape[0], -1)
            fields.update(zip((f.name for f in group), found.unbind(0), strict=True))
        sequences = {
            h.name: self._history(dense, tables[h.file], self.layout.files[h.file], parts, user=h.user)
            for h, parts in zip(self.layout.histories, histories, strict=True)
        }
        features = Features(
            fields={f.name: fields[f.name] for f in self.spec.fields}, sequences=sequences, dense=dense, spec=self.spec
        )
        out: HeadOutput = self.head(represent(features, self.bottoms, self.head, self.tasks))
        if self.kind in {"users", "items"}:
            return out.vectors[{"users": "query", "items": "item"}[self.kind]]
        self.outputs = (*self.tasks, *out.predictions)
        return torch.cat(
            [
                predict(out, self.losses, self.consistency, self.tasks),
                *(p.unsqueeze(1) for p in out.predictions.values()),
            ],
            dim=1,
        )

    def _history(self, dense: Tensor, table: Tensor, file: TableFile, parts: Sequence[Tensor], *, user: bool) -> Jagged:
        ids, lengths, *gaps = parts
        readers = dense.shape[0] if self.kind == "one_user" and user else None
        found = Jagged(rows_of(table, file, ids), lengths, gaps[0] if gaps else None, readers)
        return found if self.share else found.repeated()


def rows_of(table: Tensor, file: TableFile, ids: Tensor) -> Tensor:
    """Return the rows [M, d] of ids [M], in fp32."""
    found = table.index_select(0, ids)
    if file.bits == 32:
        return found
    if file.bits == 16:
        return found.float()
    values: Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(found, file.bits)
    return values


def _pooled(table: Tensor, file: TableFile, ids: Tensor, starts: Tensor, divisor: Tensor) -> Tensor:
    """Return [F, R, d] for ids [M], starts [F, R], and divisors [F, R, 1]; zeros where a row has none."""
    if file.bits != 32:
        table, ids = rows_of(table, file, ids), torch.arange(ids.shape[0])
    # torch takes five times as long for means.
    found = nn.functional.embedding_bag(ids, table, starts.flatten(), mode="sum")
    return torch.unflatten(found, 0, (starts.shape[0], -1)) / divisor


Inputs = tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], list[tuple[Tensor, ...]], list[Tensor]]


def export_program(program: Program, inputs: Inputs) -> ExportedProgram:
    """Trace a program for any number of rows, ids, and events.

    Args:
        program: to trace.
        inputs: of a few rows, as ``forward`` takes them.
    """
    _, _, histories, tables = inputs
    any_size = {0: Dim.DYNAMIC}
    one = program.kind == "one_user"
    shapes = (
        any_size,
        [(any_size, *[None if one and group[0].user else {1: Dim.DYNAMIC}] * 2) for group in program.groups],
        [
            (any_size, None if one and h.user else any_size, *[any_size] * (len(parts) - 2))
            for h, parts in zip(program.layout.histories, histories, strict=True)
        ],
        [None] * len(tables),
    )
    # Without this, one row would be a program of its own.
    with fx_config.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
        program(*inputs)  # names the outputs
        exported = _without_writes(torch.export.export(program, inputs, dynamic_shapes=shapes))
    _forget_where_it_was_made(exported)
    _cut_out_views(exported)
    _drop_guards(exported)
    return exported


def _without_writes(exported: ExportedProgram) -> ExportedProgram:
    """Return the same program, in which no operation writes to its arguments (``relu_``): see `operations`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)  # torch's own
        made = cast(ExportedProgram, exported.run_decompositions({}))
    for node in made.graph.nodes:
        # Strides are those of the sizes it was traced with; a view is refused where those of others do not allow one.
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    made.graph_module.recompile()
    return made


def _forget_where_it_was_made(exported: ExportedProgram) -> None:
    """Leave out lines of source, with the paths of this machine, and the inputs that it was traced with."""
    for node in exported.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in _OF_SHAPES}
    exported.example_inputs = None


def _cut_out_views(exported: ExportedProgram) -> None:
    """Give tensors that are part of larger ones, or transposed, a storage of their own: torch warns of such."""
    for held in (exported.state_dict, exported.constants):
        for name, tensor in held.items():
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            if not whole or not tensor.is_contiguous():
                own = tensor.detach().clone(memory_format=torch.contiguous_format)
                held[name] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def _drop_guards(exported: ExportedProgram) -> None:
    """Leave out guards: they would be Python in the file, compiled by whoever loads it.

    They say which sizes were met while tracing. That a program holds for others too is tried (`parity`); one that held
    for a single size torch would not have exported, since all are declared dynamic.
    """
    exported._guards_code = []
