"""What a model costs: parameters, FLOPs, bytes and seconds, counted by formula and measured on the machine.

Chapter 2 derives the formulas. The functions of this package know nothing of training runs.
"""

from .flops import (
    attention_flops,
    conv_flops,
    dense_flops,
    forward_flops,
    inference_flops,
    training_flops,
    update_flops,
)
from .machine import Machine, measure_machine
from .measured import measured_flops, measured_peak_bytes
from .memory import Memory, memory_bytes, timeline, training_stages
from .parameters import (
    attention_parameters,
    conv_parameters,
    count_parameters,
    dense_parameters,
    layer_parameters,
    non_embedding_parameters,
)
from .reports import Report, report, report_together, resize_batch
from .shapes import MLP, ConvNet
from .stored import Counts, bytes_on_disk, checkpoint_bytes, count_stored
from .timing import Timing, time_call, time_together, use_threads

__all__ = [
    "MLP",
    "ConvNet",
    "Counts",
    "Machine",
    "Memory",
    "Report",
    "Timing",
    "attention_flops",
    "attention_parameters",
    "bytes_on_disk",
    "checkpoint_bytes",
    "conv_flops",
    "conv_parameters",
    "count_parameters",
    "count_stored",
    "dense_flops",
    "dense_parameters",
    "forward_flops",
    "inference_flops",
    "layer_parameters",
    "measure_machine",
    "measured_flops",
    "measured_peak_bytes",
    "memory_bytes",
    "non_embedding_parameters",
    "report",
    "report_together",
    "resize_batch",
    "time_call",
    "time_together",
    "timeline",
    "training_flops",
    "training_stages",
    "update_flops",
    "use_threads",
]
