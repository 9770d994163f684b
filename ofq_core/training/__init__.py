"""Training: schedule, distillation, optimizer, CGA, oscillation tracking, the loop."""

from ofq_core.errors import TrainingError, TrainingStopped
from ofq_core.seeds import derive_seed, generator, make_deterministic
from ofq_core.training.cga import ConfidenceGuidedAnnealing, held_weights
from ofq_core.training.distill import Teacher, distillation_loss, soft_cross_entropy
from ofq_core.training.engine import Trainer
from ofq_core.training.lowbit import LowBitWeight, low_bit_weights
from ofq_core.training.optimizer import make_optimizer, parameter_groups
from ofq_core.training.progress import Progress, StepEvent
from ofq_core.training.schedule import Schedule, learning_rate
from ofq_core.training.teacher_cache import TeacherCache
from ofq_core.training.tracker import OscillationTracker

__all__ = [
    "ConfidenceGuidedAnnealing",
    "LowBitWeight",
    "OscillationTracker",
    "Progress",
    "Schedule",
    "StepEvent",
    "Teacher",
    "TeacherCache",
    "Trainer",
    "TrainingError",
    "TrainingStopped",
    "derive_seed",
    "distillation_loss",
    "generator",
    "held_weights",
    "learning_rate",
    "low_bit_weights",
    "make_deterministic",
    "make_optimizer",
    "parameter_groups",
    "soft_cross_entropy",
]
