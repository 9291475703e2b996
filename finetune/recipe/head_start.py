"""Fit the new output layer to frozen features before the first step (linear probing, then fine-tuning; Kumar et al.
2022).

A random output layer sends random gradients into the pretrained layers, and a short run spends most of its steps to
undo that. The fit reads some of the texts once, which costs no more than a few steps.

Shapes: N texts, C classes, H features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_llm.engine.batch import ordered_batches
from mini_llm.engine.device import default_device
from mini_llm.model import SequenceClassifier

from ..encode import collate

MOST_TEXTS = 1000
# Texts that are read, per second of the budget: about a twentieth of it on two cores.
TEXTS_PER_SECOND = 8
BATCH = 32
# Candidates for the weight decay of standardized features; 1 is scikit-learn's default C. Cross-validation chooses.
WEIGHT_DECAYS = (1.0, 10.0, 100.0)
FOLDS = 4
# With more texts, one of the folds is enough.
FEW_TEXTS = 400
ITERATIONS = 100
LEAST_DEVIATION = 0.1  # over the root mean square of all features


def fit_output_layer(
    model: SequenceClassifier,
    tokens: Sequence[np.ndarray],
    answers: np.ndarray,
    pad: int,
    max_length: int,
    budget_seconds: float | None,
    seed: int,
) -> tuple[str, int, float] | None:
    """Fit the last linear layer of `model` to `answers`: labels (N,) or target distributions (N, C) of `tokens`.

    Reads at most MOST_TEXTS texts, chosen by `seed`. Returns a note, the number of texts and the cross-validated
    loss, or None where there is too little to fit.
    """
    most = min(MOST_TEXTS, int((budget_seconds or np.inf) * TEXTS_PER_SECOND) if budget_seconds else MOST_TEXTS)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(tokens))[:most])
    if len(chosen) < 2 * model.config.num_labels:
        return None
    features = _features(model, [tokens[i] for i in chosen], pad, max_length)
    targets = distributions(answers[chosen], model.config.num_labels)
    layer = model.score if model.config.classifier_head == "linear" else model.classifier
    with_bias = layer.bias is not None
    decay, held_out_loss = choose_weight_decay(features, targets, with_bias)
    weight, bias = fit_logistic_regression(features, targets, with_bias, decay)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        loss = F.cross_entropy(layer(features.to(layer.weight.device)).cpu(), targets)
    floor = -(targets * targets.clamp(min=1e-9).log()).sum(-1).mean()
    note = (
        f"output layer fitted to the features of {len(chosen):,} texts: divergence from their targets "
        f"{loss - floor:.3f} nats"
    )
    return note, len(chosen), held_out_loss


def distributions(answers: np.ndarray, classes: int) -> Tensor:
    """Target distributions (N, C) of labels (N,), or of distributions as they are."""
    targets = torch.from_numpy(answers)
    return targets.float() if targets.is_floating_point() else F.one_hot(targets, classes).float()


def choose_weight_decay(features: Tensor, targets: Tensor, with_bias: bool) -> tuple[float, float]:
    """The candidate with the smallest cross-validated loss, and that loss."""

    def loss(decay: float) -> float:
        total, count = 0.0, 0
        for fold in range(FOLDS if len(features) < FEW_TEXTS else 1):
            held_out = torch.arange(len(features)) % FOLDS == fold
            weight, bias = fit_logistic_regression(features[~held_out], targets[~held_out], with_bias, decay)
            logits = F.linear(features[held_out], weight, bias)
            total += F.cross_entropy(logits, targets[held_out], reduction="sum").item()
            count += len(logits)
        return total / count

    losses = [loss(decay) for decay in WEIGHT_DECAYS]
    return WEIGHT_DECAYS[int(np.argmin(losses))], min(losses)


def fit_logistic_regression(
    features: Tensor, targets: Tensor, with_bias: bool, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """Weights (C, H) and biases (C,) of multinomial logistic regression on target distributions (N, C), with L2."""
    # torch.optim.LBFGS imports torch._dynamo, which takes seconds of the budget.
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    x, wanted = features.double().numpy(), targets.double().numpy()
    mean = x.mean(0) if with_bias else np.zeros(x.shape[1])
    # A feature that hardly varies would get a weight that multiplies every rounding error.
    least = LEAST_DEVIATION * max(np.sqrt(np.square(x).mean()), 1e-6)
    scale = np.maximum(np.sqrt(np.square(x - mean).mean(0)), least)
    x = (x - mean) / scale
    classes = wanted.shape[1]

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = parameters[:-classes].reshape(classes, -1), parameters[-classes:]
        logs = log_softmax(x @ weight.T + bias, axis=1)
        loss = -(wanted * logs).sum() + weight_decay / 2 * np.square(weight).sum()
        errors = np.exp(logs) * wanted.sum(1, keepdims=True) - wanted
        gradient = np.append(errors.T @ x + weight_decay * weight, errors.sum(0) * with_bias)
        return loss / len(x), gradient / len(x)

    start = np.zeros(classes * (x.shape[1] + 1))
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    weight, bias = found[:-classes].reshape(classes, -1) / scale, found[-classes:]
    return torch.from_numpy(weight).float(), torch.from_numpy(bias - weight @ mean).float()


@torch.no_grad()
def _features(model: SequenceClassifier, tokens: Sequence[np.ndarray], pad: int, max_length: int) -> Tensor:
    """The input (N, H) of the last layer, in fp32 on the CPU, without dropout."""
    layer: nn.Module = model.score if model.config.classifier_head == "linear" else model.classifier
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float().cpu()))
    training, device = model.training, default_device()
    model.eval().to(device)
    batches = ordered_batches(np.array([len(row) for row in tokens]), BATCH)
    try:
        for rows in batches:
            batch = collate([tokens[i] for i in rows], None, pad, max_length)
            model(batch["input_ids"].to(device), batch["attention_mask"].to(device))
    finally:
        hook.remove()
        model.train(training)
    result = torch.empty(len(tokens), found[0].size(-1))
    result[torch.from_numpy(np.concatenate(batches))] = torch.cat(found)
    return result
