"""torch's Muon, at the speed of any CPU, and over several processes: each matrix is orthogonalized by one of them, its
owner, and all get the same bits as on one process."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from .device import has_native_bfloat16
from .distributed import gather, get_local, get_rank, get_size, is_sharded
from .uncompiled import Uncompiled


class Muon(Uncompiled, torch.optim.Muon):
    """torch's Muon, but for the dtype in which a CPU orthogonalizes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # ty: ignore[incompatible-method-override]
        group = self.param_groups[0]
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        if trained and trained[0].device.type != "cpu":
            return self.step_by_shape(trained, group)
        for parameter in trained:
            apply_update(parameter, orthogonalize(self.update_momentum(parameter, group), group), group)

    def step_by_shape(self, trained: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Update all matrices of a shape at once: a GPU would wait for the launches of so many small products."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in trained:
            shapes.setdefault(parameter.shape, []).append(parameter)
        for parameters in shapes.values():
            moments = torch.stack([self.update_momentum(parameter, group) for parameter in parameters])
            updates = orthogonalize_batch(moments, group)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            alpha = -_adjust_lr(group["lr"], group["adjust_lr_fn"], parameters[0].shape)
            torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=alpha)

    def update_momentum(self, parameter: Any, group: dict[str, Any]) -> Tensor:
        """Return what is to be orthogonalized, of the rows that this process has, as Newton-Schulz takes it."""
        if "momentum_buffer" not in (state := self.state[parameter]):
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        gradient, buffer = get_local(parameter.grad), get_local(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - group["momentum"])
        return (gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer).bfloat16()


def orthogonalize(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the result of Newton-Schulz iterations on a matrix of bfloat16, in bfloat16. Most CPUs have no
    instructions for products of that dtype, and take 50 times as long for one as in float32: they iterate in float32.
    """
    settings = (group["ns_coefficients"], group["ns_steps"], group["eps"])
    if matrix.device.type != "cpu" or has_native_bfloat16():
        return _zeropower_via_newtonschulz(matrix, *settings)
    (a, b, c), n_steps, eps = settings
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).bfloat16()


def orthogonalize_batch(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """`orthogonalize` of matrices of one shape, (n, rows, columns), by batched products."""
    (a, b, c), is_tall = group["ns_coefficients"], matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def apply_update(parameter: Any, update: Tensor, group: dict[str, Any]) -> None:
    """Let a matrix decay and move it, or the rows of it that this process has."""
    own, lr = get_local(parameter), group["lr"]
    own.mul_(1 - lr * group["weight_decay"])
    own.add_(update, alpha=-_adjust_lr(lr, group["adjust_lr_fn"], parameter.shape))


class OwnedMuon(Muon):
    """Of matrices that every process has (DDP), or whose rows several of them share (FSDP2).

    Of a copied matrix, only the owner keeps the momentum. Of a shared one, each process keeps that of its rows.
    """

    state_dtype = torch.float32
    """Of the momentum between updates (`optimizer_dtype.py`)."""

    def __init__(self, matrices: Sequence[Tensor], lr: float, weight_decay: float, **settings: Any):
        super().__init__(matrices, lr, weight_decay, **settings)
        self.owners = choose_owners([min(p.shape) * p.numel() for p in matrices], get_size())

    @property
    def matrices(self) -> list[tuple[Tensor, int]]:
        """The matrices, each with its owner."""
        return list(zip(self.param_groups[0]["params"], self.owners, strict=True))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        trained = [(p, owner) for p, owner in self.matrices if p.grad is not None]
        moves: list[Any] = [(SharedMove if is_sharded(p) else CopiedMove)(p, owner) for p, owner in trained]
        for move in moves:
            if is_sharded(move.parameter) or move.is_owner:
                move.send(self.update_momentum(move.parameter, group))
        updates = [orthogonalize(move.gather(), group) if move.is_owner else None for move in moves]
        for move, update in zip(moves, updates):
            move.spread(None if update is None else update.contiguous())
        for move in moves:
            apply_update(move.parameter, move.receive(), group)

    def gather_state(self) -> None:
        """Give the first process the momentum that only the owners have. All processes must call this."""
        has_state = gather([bool(self.state.get(parameter)) for parameter, _ in self.matrices])  # not before an update
        for i, (parameter, owner) in enumerate(self.matrices):
            if is_sharded(parameter) or owner == 0 or get_rank() not in (0, owner) or not has_state[owner][i]:
                continue
            if get_rank() == owner:
                dist.send(as_bytes(self.state[parameter]["momentum_buffer"]), 0)
            else:
                buffer = torch.empty_like(parameter, dtype=self.state_dtype)
                self.state[parameter]["momentum_buffer"] = buffer
                dist.recv(as_bytes(buffer), owner)

    def drop_state(self) -> None:
        """Forget the momentum that other processes keep."""
        for parameter, owner in self.matrices:
            if not is_sharded(parameter) and owner != get_rank():
                self.state.pop(parameter, None)


def choose_owners(costs: Sequence[int], size: int) -> list[int]:
    """Return a process for each matrix, such that all have about as much work."""
    loads, owners = [0] * size, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def as_bytes(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as bytes: not every backend sends bfloat16."""
    return tensor.view(torch.uint8)


class CopiedMove:
    """The way of a matrix that every process has: the owner sends the others its update."""

    def __init__(self, parameter: Tensor, owner: int):
        self.parameter, self.owner, self.is_owner = parameter, owner, owner == get_rank()

    def send(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def gather(self) -> Tensor:
        return self.matrix

    def spread(self, update: Tensor | None) -> None:
        self.update = torch.empty_like(self.parameter, dtype=torch.bfloat16) if update is None else update
        self.work = dist.broadcast(as_bytes(self.update), self.owner, async_op=True)

    def receive(self) -> Tensor:
        self.work.wait()
        return self.update


class SharedMove:
    """The way of a matrix whose rows are shared: those who share it with the owner send it their rows and get those of
    the update, and pass them on to the copies."""

    def __init__(self, parameter: Any, owner: int):
        mesh = parameter.device_mesh
        has_copies = mesh.ndim > 1
        self.parameter, self.is_owner = parameter, owner == get_rank()
        self.shards, self.copies = mesh.get_group("shards"), mesh.get_group("copies") if has_copies else None
        self.n_shards = mesh.size(mesh.ndim - 1)
        self.row, self.column = divmod(owner, self.n_shards)  # of the owner in the mesh
        self.is_near = not has_copies or mesh.get_local_rank("copies") == self.row
        self.n_rows = -(-parameter.shape[0] // self.n_shards)  # of each process, but for the last ones
        self.work: Any = None

    def send(self, rows: Tensor) -> None:
        padded = rows.new_zeros(self.n_rows, rows.shape[1])
        padded[: len(rows)] = rows
        self.piece, self.pieces = padded, [torch.empty_like(padded) for _ in range(self.n_shards)]
        if self.is_near:
            target = [as_bytes(piece) for piece in self.pieces] if self.is_owner else None
            settings: dict[str, Any] = {"group": self.shards, "group_dst": self.column, "async_op": True}
            self.work = dist.gather(as_bytes(padded), target, **settings)

    def gather(self) -> Tensor:
        self.work.wait()
        return torch.cat(self.pieces)[: self.parameter.shape[0]]

    def spread(self, update: Tensor | None) -> None:
        if self.work is not None:
            self.work.wait()
        if not self.is_near:
            return
        pieces = None
        if update is not None:
            padded = update.new_zeros(self.n_rows * self.n_shards, update.shape[1])
            padded[: len(update)] = update
            pieces = [as_bytes(piece) for piece in padded.split(self.n_rows)]
        settings: dict[str, Any] = {"group": self.shards, "group_src": self.column, "async_op": True}
        self.work = dist.scatter(as_bytes(self.piece), pieces, **settings)

    def receive(self) -> Tensor:
        if self.is_near:
            self.work.wait()
        if self.copies is not None:
            dist.broadcast(as_bytes(self.piece), group=self.copies, group_src=self.row)
        return self.piece[: get_local(self.parameter).shape[0]]
