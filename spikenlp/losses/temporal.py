"""Losses across time steps: SDT, TET, Temporal Model Calibration (TMC) and TRT.

With z_t the logits at step t, y the label, CE the cross entropy and sg the stop-gradient:

    SDT   CE(mean_t z_t, y)
    TET   (1 - a) * mean_t CE(z_t, y) + a * MSE(z_t, phi)             Deng et al., ICLR 2022
    TMC   mean_t [ CE(z_t, y) + w * theta_t ** lambda_t ]             Yan et al., ICML 2025
          zbar_t   = (sg(z_1 + ... + z_{t-1}) + z_t) / t
          p_t      = softmax(zbar_t)[y]
          theta_t  = mean_B(p_t) / mean_B(1 - p_t)    theta_reduction="batch" (the released code)
          theta_t  = p_t / (1 - p_t), one per sample  theta_reduction="sample" (the paper's analysis)
          lambda_t = (T - t + 1) / T
          theta_scope says whose batch mean_B is: this process's ("local") or all processes' ("global")
    TRT   mean_t [ (1 - eta) * CE(z_t, y) + eta * MSE(z_t, onehot y) ] + a penalty on the weights
                                                                      arXiv 2506.19256

Every loss takes `timestep_logits` [B, T, C] (or [B, T, L, C] for token labels [B, L]) of any
floating dtype, whatever network they come from, computes in float32 and returns the mean over the
samples whose label is not -100. In place of a class a label may be a distribution over the classes
(mixup): CE is then the cross entropy with it, and p_t = sum_c y_c softmax(zbar_t)[c].
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spikenlp.losses.collectives import logsumexp_over_processes, sum_over_processes
from spikenlp.neurons.first_order import first_order

IGNORE_INDEX = -100
THETA_MAX = 1e4
"""Upper bound of theta (p = 0.9999). Beyond it the term is constant and only CE has a gradient."""
LITERAL_CONFIDENCE = (3 - math.sqrt(5)) / 2
"""Target confidence at which literal TMC's first step settles, whatever the number of classes."""


def sdt_loss(timestep_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Standard direct training: cross entropy of the mean logits (one output: MSE of the mean).

    Args:
        timestep_logits: z, [B, T, C].
        labels: y, integers [B] in [0, C), -100 is ignored; or probabilities [B, C]; with C = 1, float
            targets [B].
        label_smoothing: in [0, 1), of the cross entropy; 0 in regression.

    Returns:
        float32 scalar.

    Raises:
        ValueError: shapes that do not fit, labels out of range, probabilities that do not sum to 1,
            NaN or infinite logits.

    >>> sdt_loss(torch.zeros(2, 4, 2), torch.tensor([0, 1])).item()
    0.6931471824645996
    """
    logits, labels, share = _prepare(timestep_logits, labels, label_smoothing)
    if logits.shape[-1] == 1:
        return _mean((logits.mean(1)[:, 0] - labels).square(), share)
    return _mean_cross_entropy(logits.mean(1, keepdim=True), labels, share, label_smoothing)


def tet_loss(
    timestep_logits: Tensor,
    labels: Tensor,
    *,
    mse_weight: float = 0.0,
    mse_target: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Temporal efficient training (Deng et al., ICLR 2022, eq. 9): the mean of the losses per step.

    Args:
        timestep_logits, labels, label_smoothing: as in `sdt_loss`.
        mse_weight: a, weight in [0, 1] of the mean squared distance of all logits from a constant.
        mse_target: phi, that constant.

    Returns:
        float32 scalar.

    Raises:
        ValueError: as `sdt_loss`; `mse_weight` outside [0, 1], or not 0 in regression.
    """
    if not 0 <= mse_weight <= 1:
        raise ValueError(f"mse_weight must be in [0, 1], got {mse_weight}")
    logits, labels, share = _prepare(timestep_logits, labels, label_smoothing)
    if logits.shape[-1] == 1:
        if mse_weight:
            raise ValueError("mse_weight regularises class logits; in regression it must be 0")
        return _mean((logits[..., 0] - labels[:, None]).square().mean(1), share)
    loss = _mean_cross_entropy(logits, labels, share, label_smoothing)
    if mse_weight:
        distance = _mean((logits - mse_target).square().mean((1, 2)), share)
        loss = (1 - mse_weight) * loss + mse_weight * distance
    return loss


def tmc_loss(
    timestep_logits: Tensor,
    labels: Tensor,
    *,
    theta_reduction: Literal["batch", "sample"] = "batch",
    theta_scope: Literal["local", "global"] = "local",
    theta_weight: float | Literal["auto"] = 1.0,
    theta_lambda: Literal["linear", "constant"] = "linear",
    theta_odds: bool = True,
    theta_max: float = THETA_MAX,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Temporal model calibration (Yan et al., ICML 2025): CE plus the odds of the running mean.

    Args:
        timestep_logits, labels, label_smoothing: as in `sdt_loss`. TMC has no regression form.
        theta_reduction: "batch" takes the odds of the mean confidence of the batch, as the authors'
            code does (the loss then depends on how a batch is cut into micro-batches); "sample"
            takes the odds of each sample.
        theta_scope: of "batch". "local" takes the means of the samples in this call: with N processes
            theirs are N different odds of smaller batches. "global" takes them over all processes of
            torch.distributed's default group (with gradients), each of which must call this as often
            as the others; without a process group, or with one process, it is "local".
        theta_weight: w. 1 is the paper; "auto" is `few_class_weight(C)`, which tasks with few
            classes need: literal TMC trains a binary task at T = 2 towards the wrong class.
        theta_lambda: "linear" (the paper) or "constant" (ablation: lambda_t = 1).
        theta_odds: False is the ablation theta_t = p_t.
        theta_max: upper bound of theta, > 0.

    Returns:
        float32 scalar, finite for finite logits.

    Raises:
        ValueError: as `sdt_loss`; C = 1; an argument outside the above.

    >>> tmc_loss(torch.zeros(2, 1, 2), torch.tensor([0, 1]), theta_weight="auto").item()
    0.831...
    """
    _check_theta(theta_reduction, theta_scope)
    if theta_lambda not in ("linear", "constant"):
        raise ValueError(f"theta_lambda must be 'linear' or 'constant', got {theta_lambda!r}")
    if not theta_max > 0:
        raise ValueError(f"theta_max must be > 0, got {theta_max}")
    logits, labels, share = _prepare(timestep_logits, labels, label_smoothing)
    _, steps, classes = logits.shape
    if classes == 1:
        raise ValueError(
            "TMC calibrates the confidence of classes, and regression (one output) has none: use "
            "'sdt' or 'tet'"
        )
    weight = _resolve_weight(theta_weight, classes, steps)
    log_p, log_not_p = _log_confidence(_running_mean(logits), labels)
    if theta_reduction == "batch":
        log_p, log_not_p = _log_means(torch.stack([log_p, log_not_p]), share, theta_scope)
    log_theta = log_p - log_not_p if theta_odds else log_p
    exponent = _lambdas(steps, logits.device) if theta_lambda == "linear" else 1.0
    term = (exponent * log_theta.clamp_max(math.log(theta_max))).exp().mean(-1)
    term = term if theta_reduction == "batch" else _mean(term, share)
    return _mean_cross_entropy(logits, labels, share, label_smoothing) + weight * term


def trt_loss(
    timestep_logits: Tensor,
    labels: Tensor,
    *,
    mse_weight: float = 0.05,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The part of temporal regularisation training (TRT, arXiv 2506.19256) that reads the outputs.

    The mean over steps of (1 - eta) CE(z_t, y) + eta MSE(z_t, one-hot y); `trt_weight_penalty` is the
    other part.

    Args:
        timestep_logits, labels, label_smoothing: as in `sdt_loss`, C >= 2.
        mse_weight: eta, in [0, 1].

    Returns:
        float32 scalar.

    Raises:
        ValueError: as `sdt_loss`; C = 1; `mse_weight` outside [0, 1].
    """
    if not 0 <= mse_weight <= 1:
        raise ValueError(f"mse_weight must be in [0, 1], got {mse_weight}")
    logits, labels, share = _prepare(timestep_logits, labels, label_smoothing)
    classes = logits.shape[-1]
    if classes == 1:
        raise ValueError("TRT is defined for classification (C >= 2): use 'sdt' or 'tet'")
    target = labels if labels.is_floating_point() else F.one_hot(labels, classes)
    distance = (logits - target[:, None]).square().mean((1, 2))
    cross_entropy = _mean_cross_entropy(logits, labels, share, label_smoothing)
    return (1 - mse_weight) * cross_entropy + mse_weight * _mean(distance, share)


def trt_weight_penalty(
    weights: Iterable[Tensor], steps: int, *, strength: float = 1e-5, growth: float = 0.5
) -> Tensor:
    """TRT's penalty on weights, which early steps feel more than late ones.

    The mean over t = 1 ... T of sum_w w^2 lambda / (1 + (exp(delta t) - 1) (|w| + 1e-5)), with lambda =
    `strength` and delta = `growth` (arXiv 2506.19256).

    Args:
        weights: tensors of any shape, at least one.
        steps: T >= 1.
        strength, growth: > 0.

    Returns:
        Scalar, differentiable in the weights.
    """
    penalties = [_WeightPenalty.apply(w, steps, growth) for w in weights]
    return torch.stack(penalties).sum() * (strength / steps)


class _WeightPenalty(torch.autograd.Function):
    """The sum over t and w of w^2 / (1 + a_t (|w| + 1e-5)), a_t = exp(delta t) - 1: keeps w alone for its
    gradient, whatever T is."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, steps: int, growth: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.slopes = [math.expm1(growth * t) for t in range(1, steps + 1)]
        size = w.abs() + 1e-5
        terms = [(w.square() / (1 + a * size)).sum() for a in ctx.slopes]
        return torch.stack(terms).sum()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        size, found = w.abs() + 1e-5, torch.zeros_like(w)
        for a in ctx.slopes:
            divisor = 1 + a * size
            found += (2 * w - a * w * w.abs() / divisor) / divisor
        return gradient * found, None, None


def gradient_scaling_factor(
    timestep_logits: Tensor, labels: Tensor, *, theta_weight: float | Literal["auto"] = 1.0
) -> Tensor:
    """g_t, by which TMC ("sample") scales the cross entropy's gradient of the target logit.

    g_t = 1 - w * (lambda_t * theta_t ** lambda_t / t) / (1 - P_t) with P_t = softmax(z_t)[y]: below
    1 where the running mean is sure already, negative where TMC lowers the target logit.

    Args:
        timestep_logits: [B, T, C]; labels: classes [B].

    Returns:
        float32 [B, T] (samples labelled -100 left out), at most 1; -inf where P_t is so near 1 that
        float32 has no number for it.
    """
    with torch.no_grad():
        logits, labels, share = _prepare(timestep_logits, labels)
        logits, labels = logits[share > 0], labels[share > 0]
        _, steps, classes = logits.shape
        if classes == 1 or labels.is_floating_point():
            raise ValueError("g_t is defined for labels that are classes (C >= 2)")
        weight = _resolve_weight(theta_weight, classes, steps)
        log_p, log_not_p = _log_confidence(_running_mean(logits), labels)
        _, log_not_p_step = _log_confidence(logits, labels)
        lambdas = _lambdas(steps, logits.device)
        log_theta = log_p - log_not_p
        t = torch.arange(1, steps + 1, device=logits.device)
        term = weight * lambdas / t * (lambdas * log_theta - log_not_p_step).exp()
        return 1 - term.where(log_theta <= math.log(THETA_MAX), 0.0)


@torch.no_grad()
def theta_at_bound(
    timestep_logits: Tensor,
    labels: Tensor,
    *,
    theta_reduction: Literal["batch", "sample"] = "batch",
    theta_scope: Literal["local", "global"] = "local",
    theta_max: float = THETA_MAX,
) -> Tensor:
    """Where TMC's theta is cut off at `theta_max`, so that its term has no gradient.

    Args:
        As in `tmc_loss`; with theta_scope="global" every process must call this.

    Returns:
        bool, [T] for "batch", [B, T] for "sample" (samples labelled -100 left out).

    >>> theta_at_bound(torch.tensor([[[20.0, 0.0], [-10.0, 0.0]]]), torch.tensor([0])).tolist()
    [True, False]
    """
    _check_theta(theta_reduction, theta_scope)
    logits, labels, share = _prepare(timestep_logits, labels)
    log_p, log_not_p = _log_confidence(_running_mean(logits), labels)
    if theta_reduction == "batch":
        log_p, log_not_p = _log_means(torch.stack([log_p, log_not_p]), share, theta_scope)
        return log_p - log_not_p >= math.log(theta_max)
    return (log_p - log_not_p >= math.log(theta_max))[share > 0]


def few_class_weight(num_classes: int) -> float:
    """w_C, the weight with which TMC's first step settles at the same chance-normalised confidence.

    Literal TMC's first step settles at p* = 0.382 whatever C is, which is below chance for C = 2.
    Asking for p*_C = 1 / C + 0.382 (1 - 1 / C) gives w_C = (1 - p*_C)^2 / p*_C: 0.138 for C = 2,
    0.289 for 3, 0.697 for 10, and 1 as C grows. Our own, for the odds; derived in docs/tmc.md.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    confidence = 1 / num_classes + LITERAL_CONFIDENCE * (1 - 1 / num_classes)
    return (1 - confidence) ** 2 / confidence


TEMPORAL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "sdt": sdt_loss,
    "tet": tet_loss,
    "tmc": tmc_loss,
    "trt": trt_loss,
}
"""Name -> loss(timestep_logits, labels, **options) -> scalar. To add one, name it here: `SpikingTrainingArguments`
takes any of these names."""


def get_temporal_loss(name: str, **options) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss called `name`, with `options` bound: a function of (timestep_logits, labels).

    Raises:
        ValueError: unknown name, or an option that this loss does not have.
    """
    if name not in TEMPORAL_LOSSES:
        raise ValueError(f"unknown temporal loss {name!r}: choose from {sorted(TEMPORAL_LOSSES)}")
    loss = TEMPORAL_LOSSES[name]
    known = {
        p.name for p in inspect.signature(loss).parameters.values() if p.kind == p.KEYWORD_ONLY
    }
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{name} has no option {unknown}: choose from {sorted(known)}")
    return functools.partial(loss, **options)


def _check_theta(theta_reduction: str, theta_scope: str) -> None:
    if theta_reduction not in ("batch", "sample"):
        raise ValueError(f"theta_reduction must be 'batch' or 'sample', got {theta_reduction!r}")
    if theta_scope not in ("local", "global"):
        raise ValueError(f"theta_scope must be 'local' or 'global', got {theta_scope!r}")
    if theta_scope == "global" and theta_reduction != "batch":
        raise ValueError(
            "theta_scope='global' is for the means of theta_reduction='batch', which "
            f"{theta_reduction!r} does not take: leave it at 'local'"
        )


def _prepare(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked logits [N, T, C] in float32, labels [N] or [N, C] and each sample's share [N] of a mean.

    Ignored samples get the share 0: to drop them, a GPU would have to be asked how many there are.
    """
    if logits.dim() not in (3, 4):
        raise ValueError(
            "timestep_logits must have shape [B, T, C], or [B, T, L, C] for token labels, got "
            f"{tuple(logits.shape)}"
        )
    if logits.dim() == 4:
        logits = logits.transpose(1, 2)
    if labels.dim() == logits.dim() - 1 and labels.shape[-1] == 1 == logits.shape[-1]:
        labels = labels.squeeze(-1)
    classes = logits.shape[-1]
    if not 0 <= label_smoothing < 1 or (label_smoothing and classes == 1):
        raise ValueError(
            f"label_smoothing must be in [0, 1), and 0 in regression (C = 1), got {label_smoothing}"
        )
    soft = classes > 1 and labels.is_floating_point()
    expected = (*logits.shape[:-2], classes) if soft else logits.shape[:-2]
    if labels.shape != expected:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit timestep_logits of "
            f"shape {tuple(logits.shape)}: expected {tuple(logits.shape[:-2])}, or probabilities "
            f"{(*logits.shape[:-2], classes)}"
        )
    if logits.shape[-2] < 1 or classes < 1:
        raise ValueError(f"timestep_logits need T >= 1 and C >= 1, got shape {tuple(logits.shape)}")
    logits = logits.reshape(-1, *logits.shape[-2:]).float()
    labels = labels.reshape(-1, classes) if soft else labels.reshape(-1)
    nothing = f"no sample to learn from: the batch is empty or all {IGNORE_INDEX}"
    if len(labels) == 0:
        raise ValueError(nothing)
    labels, kept = _checked_labels(labels, classes)
    require(kept.any(), nothing)
    logits = logits.where(kept[:, None, None], 0)
    require(torch.isfinite(logits).all(), "timestep_logits contain NaN or infinity")
    return logits, labels, kept / kept.sum()


def _checked_labels(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Classes or targets [N] with 0 for what is ignored, or probabilities [N, C]; which [N] are kept."""
    if labels.dim() == 2:
        labels = labels.float()
        sums = labels.sum(-1)
        valid = (labels >= 0).all(-1) & ((sums - 1).abs() < 1e-2)
        require(
            valid.all(),
            "labels that are probabilities must be >= 0 and sum to 1 over the classes (several labels at once: "
            "make the model with problem_type='multi_label_classification')",
        )
        return labels, torch.ones_like(valid)
    labels = labels.float() if classes == 1 else labels.long()
    kept = labels != IGNORE_INDEX
    labels = labels.where(kept, 0)
    if classes == 1:
        require(torch.isfinite(labels).all(), "labels contain NaN or infinity")
    else:
        require(
            ((labels >= 0) & (labels < classes)).all(),
            f"labels must lie in [0, {classes}), or be {IGNORE_INDEX} to be ignored",
        )
    return labels, kept


def require(condition: Tensor, message: str) -> None:
    """Raises ValueError unless `condition` holds; on a GPU, which is not waited for, an assertion fails there."""
    if condition.device.type == "cpu":
        if not condition:
            raise ValueError(message)
    else:
        torch._assert_async(condition, message)


def _mean(x: Tensor, share: Tensor) -> Tensor:
    return (x * share).sum()


def _log_means(log_x: Tensor, share: Tensor, scope: str) -> Tensor:
    """log of the mean over samples of exp(`log_x`) [..., N, T]."""
    if scope == "local":
        return (log_x + share.log()[:, None]).logsumexp(-2)
    kept = share > 0
    share = kept / sum_over_processes(kept.sum())
    return logsumexp_over_processes((log_x + share.log()[:, None]).logsumexp(-2))


def _mean_cross_entropy(
    logits: Tensor, labels: Tensor, share: Tensor, label_smoothing: float
) -> Tensor:
    soft = labels.is_floating_point()
    targets = labels[:, None].expand(logits.shape if soft else logits.shape[:2])
    loss = F.cross_entropy(
        logits.transpose(1, 2),
        targets.transpose(1, 2) if soft else targets,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return _mean(loss.mean(1), share)


def _running_mean(logits: Tensor) -> Tensor:
    """zbar [N, T, C], with gradient to the present step only."""
    history = (logits.cumsum(1) - logits).detach()
    t = torch.arange(1, logits.shape[1] + 1, device=logits.device)[:, None]
    return (history + logits) / t


def _log_confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of the label, [N, T], from logits [N, T, C]."""
    if labels.is_floating_point():
        log_p = logits.log_softmax(-1)
        shares = torch.stack([labels, (1 - labels).clamp_min(0)])[:, :, None]
        log_p, log_not_p = (log_p + shares.log()).logsumexp(-1)
        return log_p, log_not_p
    index = labels[:, None, None].expand(*logits.shape[:2], 1)
    total = logits.logsumexp(-1)
    others = logits.scatter(-1, index, -math.inf).logsumexp(-1)
    return logits.gather(-1, index)[..., 0] - total, others - total


def _lambdas(steps: int, device: torch.device) -> Tensor:
    return torch.arange(steps, 0, -1, device=device) / steps


def _resolve_weight(theta_weight: float | str, classes: int, steps: int) -> float:
    if theta_weight == "auto":
        return few_class_weight(classes)
    if isinstance(theta_weight, str) or not 0 <= theta_weight < math.inf:
        raise ValueError(
            f"theta_weight must be a finite number >= 0 or 'auto', got {theta_weight!r}"
        )
    if theta_weight == 1 and classes <= 3 and steps <= 4:
        warnings.warn(
            f"literal TMC (theta_weight=1) with {classes} classes and T={steps}: at chance its "
            "first steps push towards the wrong class. Use theta_weight='auto' unless you want to "
            "show that.",
            stacklevel=3,
        )
    return float(theta_weight)
