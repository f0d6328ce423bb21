"""Optimiser, learning-rate schedule and averaged weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from tellapart.training.loop_recipe import LoopRecipe, Schedule

_KERAS_ADAM_EPSILON = 1e-7  # so that curves can be compared with the tutorial's
_ONE_CYCLE_RISE = 0.3  # share of the run
_FLOOR = 0.01  # of the peak, where one-cycle begins and ends


def same_lr(_name: str) -> float:
    """One learning rate for all."""
    return 1.0


class Optimizer:
    """Adam, AdamW or SGD on a network's weights; only matrices and kernels decay, biases and batch norm do not.

    The arithmetic is PyTorch's own. Its optimiser classes are not used: the first that is made imports PyTorch's compiler, which
    takes longer than a small training.

    Args:
        network: whose weights are changed, except frozen ones.
        recipe: optimiser, momentum and weight decay.
        lr_scale: what the learning rate of a parameter is multiplied by, by its name.

    Attributes:
        state: the moments and the number of steps, by name; changed in place.
    """

    def __init__(self, network: nn.Module, recipe: LoopRecipe, lr_scale: Callable[[str], float] = same_lr) -> None:
        self._kind = recipe.optimizer
        self._momentum = recipe.momentum
        by_kind: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
                by_kind.setdefault((decay, lr_scale(name)), []).append(parameter)
        self._groups = [(parameters, decay, scale) for (decay, scale), parameters in by_kind.items()]
        self.state: dict[str, Tensor] = {}
        for g, (members, _, _) in enumerate(self._groups):
            for i, member in enumerate(members):
                self.state[f"first.{g}.{i}"] = torch.zeros_like(member)
                if self._kind != "sgd":
                    self.state[f"second.{g}.{i}"] = torch.zeros_like(member)
                    self.state[f"steps.{g}.{i}"] = torch.zeros((), device=member.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Change the weights once, by their gradients; then forget the gradients.

        Args:
            lr: learning rate of this step, where no scale changes it.
        """
        for g, (parameters, weight_decay, scale) in enumerate(self._groups):
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not gradients:
                continue
            if self._kind == "sgd":
                self._step_sgd(g, parameters, gradients, lr * scale, weight_decay)
            else:
                self._step_adam(g, parameters, gradients, lr * scale, weight_decay)
            for parameter in parameters:
                parameter.grad = None

    def _step_adam(
        self, g: int, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float
    ) -> None:
        (adamw if self._kind == "adamw" else adam)(
            parameters,
            gradients,
            self._of(g, "first"),
            self._of(g, "second"),
            [],
            self._of(g, "steps"),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=decay,
            eps=_KERAS_ADAM_EPSILON,
            maximize=False,
        )

    def _step_sgd(
        self, g: int, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float
    ) -> None:
        sgd(
            parameters,
            gradients,
            list(self._of(g, "first")),
            fused=True,
            weight_decay=decay,
            momentum=self._momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self._momentum > 0,
            maximize=False,
        )

    def _of(self, g: int, name: str) -> list[Tensor]:
        return [value for key, value in self.state.items() if key.startswith(f"{name}.{g}.")]


def lr_factor(step: int, total: int, *, schedule: Schedule, warmup_steps: int = 0) -> float:
    """What the peak learning rate is multiplied by at a step, above 0 and at most 1.

    Args:
        step: 0 to ``total`` - 1.
        total: steps of the whole run.
        schedule: ``constant``; ``cosine`` falls to 0 along half a wave; ``one-cycle`` rises for 30 % of the run and falls.
        warmup_steps: steps of a linear rise before the schedule proper; one-cycle has its own.

    Source: Smith and Topin 2017, "Super-Convergence"; Loshchilov and Hutter 2017, "SGDR", equation 5 without restarts.
    """
    if schedule == "one-cycle":
        rise = max(1.0, _ONE_CYCLE_RISE * total)
        part = (step + 1) / rise if step + 1 <= rise else (total - step) / max(1.0, total - rise + 1)
        return _FLOOR + (1 - _FLOOR) * (1 - math.cos(math.pi * min(1.0, part))) / 2
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total - warmup_steps))) / 2
    return 1.0


class AveragedWeights:
    """Exponential moving average of a network's weights and of batch norm's running moments.

    Args:
        network: followed from here on.
        decay: share that is kept at each step; smaller at first, so that the random start is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.steps = 0
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Follow the network one step."""
        self.steps += 1
        decay = min(self._decay, self.steps / (self.steps + 10))
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)
