"""Formulas of cost against the machine: counter, allocator, file, clock."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from helpers import complexity, masking, models, pretrain, runtime
from helpers.complexity import MLP, ConvNet
from helpers.models import Size
from helpers.optimizers import make_optimizers
from helpers.plots import costs

SMALL = (
    MLP((20, 30, 10)),
    MLP((7, 5), bias=False),
    ConvNet((1, 8, 12), image=8, classes=4),
    ConvNet((3, 8, 8), image=12, classes=5, kernel=5, groups=4),
)


def example(shape, batch):
    if isinstance(shape, MLP):
        return torch.randn(batch, shape.widths[0])
    return torch.randn(batch, shape.channels[0], shape.image, shape.image)


def pretraining_step(size, *, arch, batch, seq_len, vocab, optimizer, dropout=0.0, rate=0.15):
    """A model, its optimizers, the mask rate that came out, and a function that does one step."""
    model = models.build(size, arch=arch, vocab_size=vocab, max_positions=seq_len, dropout=dropout).train()
    ids = torch.randint(5, vocab, (batch, seq_len - 3), generator=runtime.generator(0))
    blocks, rows = masking.Blocks(ids, torch.arange(batch), 0), torch.arange(batch)
    given = pretrain.make_batch(blocks, rows, runtime.generator(1), vocab_size=vocab, rate=rate)
    optimizers = make_optimizers(model, kind=optimizer, lr=0.02, lr_adam=1e-3, weight_decay=0.1)

    def step():
        pretrain.losses(model, given)[0].backward()
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)

    return model, optimizers, len(given["positions"]) / (batch * seq_len), step


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_parameters_of_small_networks_are_counted_exactly(shape):
    parts = complexity.count_parameters(shape)
    modules = [m for m in shape.build() if list(m.parameters())]
    assert list(parts.values()) == [sum(p.numel() for p in m.parameters()) for m in modules]


def test_the_24_miniatures_equal_the_published_table():
    name = "bert_tables/turc2019_24_models_param_counts_computed.csv"
    folders = [Path(os.environ["HELPERS_DATA"])] if "HELPERS_DATA" in os.environ else []
    folders.append(Path(__file__).parent.parent.parent / "shared" / "data")
    if not (path := next((f / name for f in folders if (f / name).is_file()), None)):
        pytest.skip(f"no {name}: set HELPERS_DATA to a folder that holds it")
    for row in pd.read_csv(path).itertuples():
        config = BertConfig(
            num_hidden_layers=row.L, hidden_size=row.H, num_attention_heads=2, intermediate_size=4 * row.H
        )
        parts = complexity.count_parameters(config)
        assert sum(parts[name] for name in ("embeddings", "encoder", "pooler")) == row.total_with_pooler


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_flops_of_small_networks_equal_the_counter_of_torch(shape):
    model, inputs = shape.build(), example(shape, 6)
    with torch.no_grad():
        forward = complexity.measured_flops(lambda: model(inputs))
    assert complexity.inference_flops(shape, batch=6) == forward


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
def test_inference_flops_of_a_bert_equal_the_counter(arch):
    model = models.build(Size(2, 64), arch=arch, vocab_size=300, max_positions=32).eval()
    ids = torch.randint(5, 300, (3, 32))
    formula = complexity.inference_flops(model.config, batch=3, seq_len=32)
    assert formula == complexity.measured_flops(lambda: model(ids))


def test_training_is_three_times_the_forward_pass():
    config = models.make_config(Size(3, 96))
    forward = complexity.forward_flops(config, batch=4, seq_len=64, predicted=0.15)
    training = complexity.training_flops(config, seq_len=64, tokens=4 * 64, mask_rate=0.15)
    assert training == pytest.approx({name: 3 * value for name, value in forward.items()})


def test_fused_attention_is_counted_like_eager_attention():
    """torch's counter knows no fused attention of CPUs, and would count nothing."""
    counts = {}
    for kind in ("eager", "sdpa"):
        config = BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=24, attn_implementation=kind,
            attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
        )  # fmt: skip
        model, ids = BertModel(config), torch.randint(0, 50, (2, 24))
        with torch.no_grad():
            counts[kind] = complexity.measured_flops(lambda model=model, ids=ids: model(ids))
    assert counts["eager"] == counts["sdpa"] > 0


def test_muon_multiplies_as_often_as_counted():
    model, optimizers, _, _ = pretraining_step(
        Size(2, 64), arch="bert", batch=2, seq_len=16, vocab=50, optimizer="muon"
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    counted = complexity.measured_flops(lambda: [each.step() for each in optimizers])
    assert complexity.update_flops(model.config, optimizer="muon")["matrix"] == counted
    adamw = complexity.update_flops(model.config, optimizer="adamw")
    assert adamw == {"elementwise": 15.0 * sum(p.numel() for p in model.parameters()), "matrix": 0.0}


class Counted:
    """A tensor that counts the numbers which arithmetic makes of it."""

    made = 0

    def __init__(self, value):
        self.value = value

    def _next(self, value):
        Counted.made += value.numel()
        return Counted(value)

    def __add__(self, other):
        return self._next(self.value + getattr(other, "value", other))

    def __sub__(self, other):
        return self._next(self.value - other.value)

    def __mul__(self, other):
        return self._next(self.value * getattr(other, "value", other))

    def __truediv__(self, other):
        return self._next(self.value / getattr(other, "value", other))

    def sqrt(self):
        return self._next(self.value.sqrt())


def test_adamw_makes_as_many_operations_on_a_parameter_as_counted():
    """AdamW written out in single operations steps as torch's, so their number is that of the update."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(7, 3, generator=generator).double() for _ in range(4))
    ours, first, second = Counted(weight.clone()), Counted(0 * weight), Counted(0 * weight)
    theirs = nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    for step, gradient in enumerate(gradients, start=1):
        theirs.grad = gradient
        optimizer.step()
        Counted.made, g = 0, Counted(gradient)
        ours = ours * (1 - 0.1 * 0.2)
        first = first * 0.8 + g * (1 - 0.8)
        second = second * 0.9 + g * g * (1 - 0.9)
        change = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-3)
        ours = ours - change * 0.1
        torch.testing.assert_close(ours.value, theirs.detach())
        counted = complexity.update_flops(MLP((3, 7)), optimizer="adamw")["elementwise"]
        assert Counted.made / weight.numel() == counted / (7 * 3 + 7) == 15


MEMORY = [  # where the peak comes from the head, attention, the update, the embeddings, and with dropout
    (Size(2, 64), 8, 64, 4096, "adamw", 0.0, "head"),
    (Size(2, 64), 2, 256, 400, "adamw", 0.0, "attention 2"),
    (Size(4, 128), 2, 16, 100, "muon", 0.0, "update"),
    (Size(1, 64), 2, 16, 9000, "adamw", 0.0, "embeddings"),
    (Size(3, 96), 8, 32, 200, "adamw", 0.1, "feed-forward 3"),
]


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
@pytest.mark.parametrize(("size", "batch", "seq_len", "vocab", "optimizer", "dropout", "when"), MEMORY)
def test_peak_memory_of_training_is_predicted(arch, size, batch, seq_len, vocab, optimizer, dropout, when):
    model, optimizers, rate, step = pretraining_step(
        size, arch=arch, batch=batch, seq_len=seq_len, vocab=vocab, optimizer=optimizer, dropout=dropout
    )
    step()  # the first makes the optimizer's state
    measured = complexity.measured_peak_bytes(step)
    memory = complexity.memory_bytes(
        model.config, batch=batch, seq_len=seq_len, mask_rate=rate, optimizer=optimizer
    )
    state = [t for each in optimizers for s in each.state.values() for t in s.values() if t.ndim]
    assert memory.weights == memory.gradients == sum(4 * p.numel() for p in model.parameters())
    assert memory.optimizer == sum(t.numel() * t.element_size() for t in state)
    assert when in memory.when
    assert memory.peak - memory.weights - memory.optimizer == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
def test_activations_are_those_that_autograd_keeps(arch):
    """Distinct storages that pass the hooks of saved tensors, weights and batch left out."""
    model, _, rate, _ = pretraining_step(
        Size(2, 64), arch=arch, batch=4, seq_len=48, vocab=300, optimizer="adamw"
    )
    ids = torch.randint(5, 300, (4, 45), generator=runtime.generator(0))
    given = pretrain.make_batch(
        masking.Blocks(ids, torch.arange(4), 0), torch.arange(4), runtime.generator(1), vocab_size=300,
        rate=0.15,
    )  # fmt: skip
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), *given.values()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = pretrain.losses(model, given)
    memory = complexity.memory_bytes(model.config, batch=4, seq_len=48, mask_rate=rate)
    assert loss.requires_grad and memory.activations == pytest.approx(sum(kept.values()), rel=0.02)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        (MLP((64, 256, 256, 10)), 512),
        (MLP((256, 512, 512, 10)), 8),
        (ConvNet((1, 16, 32), image=16, classes=10), 32),
    ],
    ids=str,
)
def test_peak_memory_of_small_networks_is_predicted(shape, batch):
    model, inputs = shape.build(), example(shape, batch)
    labels = torch.zeros(batch, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    memory = complexity.memory_bytes(shape, batch=batch, optimizer="adamw")
    measured = memory.weights + memory.optimizer + complexity.measured_peak_bytes(step)
    assert memory.peak == pytest.approx(measured, rel=0.15)


def test_measured_peak_is_what_was_allocated():
    def work():
        first = torch.zeros(50_000)  # 200 kB
        second = first + 1  # 200 kB more at the same time
        del first
        return second.sum()

    work()
    assert complexity.measured_peak_bytes(work) == pytest.approx(400_000, rel=0.01)


@pytest.mark.parametrize("arch", tuple(models.ARCHITECTURES))
def test_checkpoint_bytes_equal_the_file(arch, tmp_path):
    model = models.build(Size(2, 32), arch=arch, vocab_size=100, max_positions=16)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert complexity.checkpoint_bytes(model, metadata={"format": "pt"}) == size
    assert complexity.checkpoint_bytes(model) == complexity.bytes_on_disk(model)


class Shared(nn.Module):
    """One layer used three times, and a decoder tied to it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.layers = nn.ModuleList([self.layer] * 3)
        self.decoder = nn.Linear(8, 8, bias=False)
        self.decoder.weight = self.layer.weight

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.decoder(x)


def test_shared_weights_are_stored_once_and_computed_each_time():
    report = complexity.report(Shared(), torch.randn(4, 8), repeats=3, batches=(1, 2))
    assert report.parameters == 72
    assert report.parameters_named == 4 * 72 + 64  # under layer, layers.0 to layers.2, and the decoder
    assert report.weight_bytes == 4 * 72 and report.disk_bytes < 4 * 2 * 72
    assert report.flops == 4 * complexity.dense_flops(1, 8, 8)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_zeros_sparse_and_quantised_weights_are_counted_as_stored():
    dense = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        dense.weight[:, 4:] = 0
    assert complexity.count_stored(dense) == complexity.Counts(distinct=256, named=256, nonzero=64)

    sparse = nn.Module()
    sparse.weight = nn.Parameter(dense.weight.detach().to_sparse_csr())
    assert complexity.count_stored(sparse).distinct == 64
    assert complexity.bytes_on_disk(sparse) == complexity.checkpoint_bytes(sparse)

    int8 = nn.Module()
    int8.register_buffer("weight_int8", torch.ones(16, 16, dtype=torch.int8))
    int8.register_buffer("weight_scale", torch.ones(16))
    assert complexity.count_stored(int8).distinct == 256
    assert complexity.bytes_on_disk(int8) < complexity.bytes_on_disk(dense) / 2


@pytest.mark.parametrize("inputs", ["mapping", "sequence", "tensor"])
def test_a_report_takes_any_batch_and_leaves_the_model_as_it_was(inputs):
    model = nn.Bilinear(4, 4, 3).train() if inputs == "sequence" else nn.Linear(4, 3).train()
    x = torch.randn(3, 4)
    batch = {"mapping": {"input": x}, "sequence": (x, x), "tensor": x}[inputs]
    threads = torch.get_num_threads()
    report = complexity.report(model, batch, name="it", batches=(1, 5), repeats=4, threads=1, flops=7)
    assert model.training and torch.get_num_threads() == threads
    assert (report.name, report.flops, report.peak_batch, report.threads) == ("it", 7, 5, 1)
    assert report.throughput(5) == 5 / report.latency[5].median
    assert report.peak_bytes >= report.weight_bytes + 5 * 4 * 4
    row = report.row()
    assert row["latency_low_ms_1"] <= row["latency_ms_1"] <= row["latency_high_ms_1"]
    with pytest.raises(ValueError, match="batch 9 was not timed, only 1, 5"):
        report.throughput(9)


def test_the_timer_warms_up_and_takes_turns():
    calls = []
    timings = complexity.time_together(
        {"a": lambda: (calls.append("a"), time.sleep(0.002)), "b": lambda: calls.append("b")},
        repeats=4,
        warmup=2,
    )
    assert "".join(calls) == "aabb" + 4 * "ab"
    assert timings["a"].low >= 0.002 > timings["b"].low and timings["a"].repeats == 4
    slow = complexity.time_call(lambda: time.sleep(0.01), repeats=100, warmup=0, max_seconds=0.05)
    assert 5 <= slow.repeats < 10


def test_the_clock_of_the_cpu_leaves_out_waiting():
    waiting = complexity.time_call(lambda: time.sleep(0.01), repeats=3, threads=1, clock="cpu")
    assert waiting.median < 0.005
    with pytest.raises(ValueError, match="pass threads=1"):
        complexity.time_call(lambda: None, threads=2, clock="cpu")


def test_the_roofline_is_the_lower_of_two_ceilings():
    machine = complexity.Machine(flops_per_second=100.0, bytes_per_second=20.0, threads=1)
    assert machine.balance == 5 and machine.attainable(5) == 100
    assert machine.attainable(1) == 20 and machine.attainable(50) == 100
    assert machine.seconds(1000, 20) == 10 and machine.seconds(10, 2000) == 100
    real = complexity.measure_machine(side=64, megabytes=1, repeats=3)
    assert real.flops_per_second > 1e7 and real.bytes_per_second > 1e7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP((3,)), "widths must be two or more"),
        (lambda: ConvNet((1, 4), image=9, classes=2), "divisible by 2"),
        (lambda: ConvNet((1, 4), image=8, classes=2, kernel=4), "kernel must be odd"),
        (lambda: complexity.count_parameters(nn.Linear(2, 2)), "cannot count a Linear"),
        (lambda: complexity.forward_flops(BertConfig()), "needs seq_len"),
        (lambda: complexity.forward_flops(MLP((2, 2)), seq_len=5), "seq_len is for BERTs"),
        (lambda: complexity.inference_flops(MLP((2, 2)), batch=0), "need batch >= 1"),
        (lambda: complexity.update_flops(MLP((2, 2)), optimizer="lion"), "unknown optimizer 'lion'"),
        (lambda: complexity.update_flops(MLP((2, 2)), optimizer="muon"), "muon is for"),
        (lambda: complexity.memory_bytes(MLP((2, 2)), batch=1, optimizer="muon"), "muon is for"),
        (lambda: complexity.memory_bytes(BertConfig(), batch=1), "needs seq_len"),
        (
            lambda: complexity.memory_bytes(MLP((2, 2)), batch=1, seq_len=5),
            "seq_len is for BERTs",
        ),
        (lambda: complexity.training_stages(BertConfig(), batch=1), "needs seq_len"),
        (
            lambda: complexity.conv_parameters(3, 4, 3, groups=2),
            "must divide the 3 input and 4 output",
        ),
        (lambda: complexity.conv_flops(1, 8, 4, 3, 3, groups=2), "must divide the 4 input and 3 output"),
        (lambda: complexity.conv_flops(1, 8, 4, 4, 3, groups=0), r"groups \(0\) must divide"),
        (lambda: complexity.training_flops(MLP((2, 2)), seq_len=8, tokens=8, mask_rate=0.15), "got an MLP"),
        (lambda: complexity.non_embedding_parameters(MLP((2, 2))), "expected a BertConfig .* got an MLP"),
        (lambda: complexity.report(nn.Linear(2, 2), torch.ones(0, 2)), "number of rows"),
        (lambda: complexity.report(nn.Linear(2, 2), torch.ones(1, 2), batches=(0,)), "at least 1"),
        (lambda: complexity.time_call(lambda: None, repeats=0), "repeats >= 1"),
        (lambda: complexity.time_call(lambda: None, clock="sun"), "unknown clock 'sun'"),
        (lambda: complexity.measure_machine(side=0), "side and megabytes must be positive"),
        (lambda: complexity.time_call(lambda: None, threads=0), "threads must be at least 1"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_figures_of_costs_draw_what_they_are_given():
    machine = complexity.Machine(1e11, 1e10, 1)
    drawn = [
        costs.growth(
            [1, 2, 4], {"a": [1.0, 4.0, 16.0], "b": [np.nan, 2.0, 4.0]}, slopes={"a": 2.0}, title="t",
            xlabel="x", ylabel="y",
        ),
        costs.shares([1, 2], {"a": [1, 3], "b": [1, 1]}, title="t", xlabel="x"),
        costs.roofline(machine, {"slow": (0.5, 1e9), "fast": (50.0, 9e10)}, title="t"),
        costs.moments(["first", "second"], [2e6, 1e6], title="t"),
    ]  # fmt: skip
    growth, shares, roofline, moments = drawn
    a, line, b = (each.get_xydata() for each in growth.get_lines())
    assert np.allclose(a, line) and b.tolist() == [[2, 2], [4, 4]]
    assert [bar.get_height() for bar in shares.patches] == [50, 75, 50, 25]
    assert max(roofline.get_lines()[0].get_ydata()) == 100
    assert [bar.get_height() for bar in moments.patches] == [2, 1]
    assert len({bar.get_facecolor() for bar in moments.patches}) == 2
    for ax in drawn:
        assert ax.get_title(loc="left") == "t" or ax.get_title() == "t"
        ax.figure.canvas.draw()
