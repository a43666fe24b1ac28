"""Collapse: what the teacher's outputs show, and when they can show it (paper, section 5.3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np

from dino.training.plan import Plan

logger = logging.getLogger(__name__)


def diagnose_collapse(*, entropy: float, divergence: float, prototypes: int) -> str | None:
    """Return one line about the collapse that the teacher's outputs show, or None.

    Args:
        entropy: Mean entropy of a target in nats.
        divergence: Mean divergence of a target from the mean target in nats.
        prototypes: K.
    """
    most = math.log(prototypes)
    if entropy > 0.98 * most:
        return (
            "uniform collapse: the targets say the same about every prototype (entropy"
            f" {entropy:.3f}, ln K = {most:.3f}), because the teacher's logits differ too little"
            " for its temperature; try `use_bn_in_head`, a lower `teacher_temp`, a smaller"
            " `out_dim`, or a higher `lr`"
        )
    if divergence < 1e-3 * most:
        return (
            "constant collapse: the targets say the same about every image (divergence"
            f" {divergence:.2g} nats), because student and teacher agree on one answer faster than"
            " the center follows; try a higher `momentum_teacher`, a lower `lr`, a longer"
            " `freeze_last_layer`, or a higher `teacher_temp`"
        )
    return None


def find_settled(plan: Plan) -> int:
    """Return the iteration from which the teacher's outputs are a result of training.

    The learning rate has warmed up and the last layer is free, and the teacher has forgotten the
    weights of before: it remembers 1 / (1 - m) updates.
    """
    total = plan.epochs * plan.iterations
    begun = max(int(np.argmax(plan.learning_rate)), plan.freeze_epochs * plan.iterations)
    momentum = float(plan.momentum[min(begun, total - 1)])
    return total if momentum >= 1 else begun + round(1 / (1 - momentum))


class CollapseWatch:
    """Warns of each kind of collapse once, and not before it can be true."""

    def __init__(self, plan: Plan, prototypes: int) -> None:
        """Watch a run with K prototypes."""
        self.prototypes, self.settled, self.warned = prototypes, find_settled(plan), set[str]()
        # The two targets of a single image agree in a healthy run.
        self.active = plan.micro_batch > 1

    def look(self, means: Mapping[str, float], iteration: int) -> None:
        """Look at the averages of the iterations up to this one."""
        if not self.active or iteration <= self.settled:
            return
        diagnosis = diagnose_collapse(
            entropy=means["entropy"], divergence=means["divergence"], prototypes=self.prototypes
        )
        kind = diagnosis.partition(":")[0] if diagnosis else ""
        if diagnosis and kind not in self.warned:
            logger.warning("%s", diagnosis)
            self.warned.add(kind)
