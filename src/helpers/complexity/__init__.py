"""What a model costs: parameters, FLOPs, bytes and seconds, counted by formula and measured on the machine.

Chapter 2 derives the formulas. The functions of this package know nothing of training runs.
"""

from .flops import count_parameters, non_embedding_parameters, training_flops
from .measured import measured_flops, measured_peak_bytes
from .reports import Report, report, resize_batch
from .stored import Counts, bytes_on_disk, checkpoint_bytes, count_stored
from .timing import Timing, time_call, time_together, use_threads

__all__ = [
    "Counts",
    "Report",
    "Timing",
    "bytes_on_disk",
    "checkpoint_bytes",
    "count_parameters",
    "count_stored",
    "measured_flops",
    "measured_peak_bytes",
    "non_embedding_parameters",
    "report",
    "resize_batch",
    "time_call",
    "time_together",
    "training_flops",
    "use_threads",
]
