"""Low rank: optimal, oriented, exact at full rank, the same after saving; counts, spectra, refusals, LoRA."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import complexity, compress, models, plots
from helpers.compress import lowrank, sharing, sparsity, storage
from helpers.compress.spectra import Spectrum
from helpers.finetune import Classifier

IDS = torch.randint(5, 300, (2, 16), generator=torch.Generator().manual_seed(0))
ARCHS = pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))


def build(arch="megatron-bert", layers=2, seed=0):
    model = models.build(models.Size(layers, 32), arch=arch, vocab_size=300, max_positions=16, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # fresh biases are zero, and losing them would not be seen
                p.add_(0.1 * normal(*p.shape))
    return model.eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).prediction_logits


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_truncation_leaves_the_tail_and_no_competitor_is_nearer(shape, rank):
    weight = normal(*shape)
    up, down = lowrank.truncate(weight, rank)
    assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
    error = (weight - up @ down).norm()
    spectrum = Spectrum.of(weight)
    tail = np.sqrt((spectrum.values[rank:] ** 2).sum())
    assert error.item() == pytest.approx(tail, rel=1e-4)
    assert 1 - spectrum.energy[rank - 1] == pytest.approx((tail / weight.norm().item()) ** 2, rel=1e-4)
    for seed in range(20):  # the best partner of a random factor, by least squares
        rival = normal(shape[0], rank, seed=seed + 1)
        assert (weight - rival @ torch.linalg.lstsq(rival, weight).solution).norm() > error
        moved = (up + 0.05 * normal(*up.shape, seed=seed)) @ (down + 0.05 * normal(*down.shape, seed=seed))
        assert (weight - moved).norm() > error


def test_the_layer_computes_x_times_the_transposed_weight():
    linear, x = nn.Linear(10, 24), normal(5, 3, 10)
    linear.weight.data = lowrank.truncate(linear.weight.detach(), 4)[0] @ normal(4, 10)  # of rank 4
    layer = lowrank.LowRank.of(linear, 4)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.matrix(), linear.weight, rtol=1e-4, atol=1e-5)
    assert layer.down.weight.shape == (4, 10) and layer.up.weight.shape == (24, 4)
    assert lowrank.LowRank.of(nn.Linear(3, 5, bias=False), 2).up.bias is None


def test_a_moment_makes_the_outputs_best():
    mixing, weight = normal(10, 10) * torch.logspace(-2, 0, 10), normal(24, 10)
    x = normal(400, 10, seed=1) @ mixing
    plain = lowrank.truncate(weight, 3)
    aware = lowrank.truncate(weight, 3, moment=x.T @ x)

    def error(factors):
        return (x @ (weight - factors[0] @ factors[1]).T).norm().item()

    assert error(aware) < 0.7 * error(plain)
    best = Spectrum.of(x @ weight.T)  # no map of rank 3 is nearer to these outputs
    assert error(aware) == pytest.approx(np.sqrt((best.values[3:] ** 2).sum()), rel=1e-3)
    same = lowrank.truncate(weight, 3, moment=torch.eye(10))
    torch.testing.assert_close(same[0] @ same[1], plain[0] @ plain[1], rtol=1e-3, atol=1e-4)


def test_truncation_refuses():
    for rank in (0, 11):
        with pytest.raises(ValueError, match=f"between 1 and 10.*got {rank}"):
            lowrank.truncate(normal(24, 10), rank)
    with pytest.raises(ValueError, match=r"finite numbers, got one of shape \(3,\)"):
        lowrank.truncate(torch.ones(3), 1)
    with pytest.raises(ValueError, match="finite numbers"):
        lowrank.truncate(torch.full((3, 3), torch.nan), 1)
    with pytest.raises(ValueError, match=r"moment of 10 inputs.*got \(24, 24\)"):
        lowrank.truncate(normal(24, 10), 1, moment=torch.eye(24))


@ARCHS
def test_full_rank_changes_nothing_and_low_rank_counts_what_it_holds(arch):
    model = build(arch)
    full = lowrank.factorise(model, 32)
    torch.testing.assert_close(logits(full), logits(model), rtol=1e-3, atol=1e-4)
    rank = 5
    small = lowrank.factorise(model, rank)
    layers = lowrank.targets(model)
    fewer = sum(rank * sum(x.weight.shape) - x.weight.numel() for x in layers.values())
    assert len(layers) == 12 and parameters(small) - parameters(model) == fewer < 0
    assert set(lowrank.ranks_of(small).values()) == {rank}
    torch.testing.assert_close(logits(lowrank.merge(small)), logits(small), rtol=1e-3, atol=1e-4)
    assert parameters(lowrank.merge(small)) == parameters(model)
    assert not lowrank.ranks_of(model)  # the original is as it was


def test_errors_of_a_model_fall_with_the_rank():
    model = build()
    layer = storage.layers_of(model)[0].intermediate.dense
    errors = [
        (lowrank.LowRank.of(layer, rank).matrix() - layer.weight).norm().item() for rank in (1, 8, 16, 31)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


def test_the_report_counts_parameters_and_flops_of_factors():
    model, rank = build(), 5
    small = lowrank.factorise(model, rank)
    reports = [
        complexity.report(m, {"input_ids": IDS}, batches=(1,), repeats=1, warmup=0) for m in (model, small)
    ]
    layers = lowrank.targets(model).values()
    fewer = sum(rank * sum(x.weight.shape) - x.weight.numel() for x in layers)
    assert reports[1].parameters - reports[0].parameters == fewer
    assert reports[1].flops - reports[0].flops == 2 * IDS.size(1) * fewer
    assert reports[1].disk_bytes < reports[0].disk_bytes + 4 * fewer + 4000


def test_ranks_by_density_and_energy():
    model = build()
    half = lowrank.factorise(model, density=0.5)
    for name, layer in lowrank.targets(model).items():
        m, n = layer.weight.shape
        assert lowrank.ranks_of(half)[name] == int(0.5 * m * n / (m + n))
    assert lowrank.break_even(768, 768) == 384 and lowrank.break_even(768, 3072) == pytest.approx(614.4)
    storage.layers_of(model)[0].intermediate.dense.weight.data = normal(128, 3) @ normal(3, 32)
    kept = lowrank.ranks_of(lowrank.factorise(model, energy=0.99))
    assert kept["bert.encoder.layer.0.intermediate.dense"] == 3
    assert "bert.encoder.layer.1.attention.self.query" not in kept  # a random square saves nothing at 0.99
    only = lowrank.ranks_of(lowrank.factorise(model, 4, what="attention"))
    assert len(only) == 8 and all(".attention." in name for name in only)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"rank": 3, "density": 0.5}, "exactly one"),
        ({"rank": 40}, "between 1 and 32"),
        ({"rank": 0}, "got 0"),
        ({"density": 1.5}, r"density must be a share in \(0, 1\], got 1.5"),
        ({"energy": 0.0}, "energy must be a share"),
        ({"energy": 1.0, "what": "attention"}, "no matrix gets smaller at energy 1.0"),
        ({"rank": 3, "what": "heads"}, "unknown part 'heads'"),
        ({"rank": 3, "moments": {}}, "no input moment for bert.encoder.layer.0"),
    ],
)
def test_factorising_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        lowrank.factorise(build(), **options)


def test_factorising_refuses_models_in_the_wrong_state():
    with pytest.raises(ValueError, match="factorised already"):
        lowrank.factorise(lowrank.factorise(build(), 3), 2)
    with pytest.raises(ValueError, match="sparsity.finish first"):
        lowrank.factorise(sparsity.attach(build()), 3)
    with pytest.raises(ValueError, match="no factors to merge"):
        lowrank.merge(build())
    with pytest.raises(ValueError, match="no linear layer"):
        lowrank.factorise(nn.Sequential(nn.ReLU()), 3)
    with pytest.raises(ValueError, match="no batches"):
        lowrank.input_moments(build(), [], lambda m, b: (m(**b), {}))


@ARCHS
@pytest.mark.parametrize("options", [{"rank": 3}, {"density": 0.6, "what": "ffn"}])
def test_saving_keeps_factors_and_predictions(tmp_path, arch, options):
    small = lowrank.factorise(build(arch), **options)
    again = compress.load(compress.save(small, tmp_path / "small"))
    assert torch.equal(logits(again), logits(small))
    assert lowrank.ranks_of(again) == lowrank.ranks_of(small)
    dense = lowrank.merge(small)
    assert torch.equal(logits(compress.load(compress.save(dense, tmp_path / "dense"))), logits(dense))
    compress.save(build(arch), tmp_path / "plain")
    saved = storage.stored_bytes(tmp_path / "plain") - storage.stored_bytes(tmp_path / "small")
    assert saved == pytest.approx(4 * (parameters(build(arch)) - parameters(small)), rel=0.2)


def test_shared_layers_stay_shared_and_classifiers_are_stored(tmp_path):
    model = sharing.share_layers(Classifier(build(layers=3).bert)).eval()
    nn.init.normal_(model.head.weight)
    small = lowrank.factorise(model, 4)
    layers = storage.layers_of(small)
    assert len(lowrank.ranks_of(small)) == 6
    assert layers[0].output.dense.up.weight is layers[2].output.dense.up.weight
    again = compress.load(compress.save(small, tmp_path))
    batch = {"input_ids": IDS, "owner": torch.arange(2)}
    with torch.no_grad():
        assert torch.equal(again(batch), small(batch))
    assert sharing.stored_parameters(again) == sharing.stored_parameters(small)
    one = nn.Linear(8, 8)
    twice = lowrank.factorise(nn.Sequential(one, nn.ReLU(), one), 2)
    assert twice[0] is twice[2]


def test_moments_are_those_of_the_inputs_and_lower_the_error_of_outputs():
    model = build()
    batches = [{"input_ids": torch.randint(5, 300, (8, 16))} for _ in range(3)]

    def run(m, batch):
        return m(**batch).prediction_logits.sum(), {}

    moments = lowrank.input_moments(model, batches, run)
    name = "bert.encoder.layer.0.attention.self.query"
    with torch.no_grad():
        embedded = torch.cat([model.bert.embeddings(b["input_ids"]) for b in batches])
        norm = storage.layers_of(model)[0].attention.ln
        rows = norm(embedded).flatten(0, 1).double()
    torch.testing.assert_close(moments[name], rows.T @ rows, rtol=1e-4, atol=1e-3)
    aware = lowrank.factorise(model, 4, moments=moments)
    plain = lowrank.factorise(model, 4)
    layers = [dict(m.named_modules())[name] for m in (model, aware, plain)]
    with torch.no_grad():
        out = [layer(rows.float()) for layer in layers]
    assert (out[1] - out[0]).norm() < (out[2] - out[0]).norm()
    assert model.training is False and not model.bert._forward_pre_hooks


def test_spectra_of_known_matrices():
    flat = Spectrum.of(3 * torch.linalg.qr(normal(20, 20))[0])
    assert flat.stable_rank == pytest.approx(20) and flat.effective_rank == pytest.approx(20)
    assert flat.rank_for(0.5) == 10 and flat.rank_for(1.0) == 20 and flat.beyond_edge == 0
    single = Spectrum.of(torch.outer(normal(20), normal(30, seed=1)))
    assert single.stable_rank == pytest.approx(1) and single.effective_rank == pytest.approx(1, abs=1e-4)
    assert single.rank_for(0.999) == 1 and single.beyond_edge == 1
    with pytest.raises(ValueError, match="got 1.5"):
        flat.rank_for(1.5)
    with pytest.raises(ValueError, match="20 singular values"):
        Spectrum(np.ones(3), (20, 20))
    with pytest.raises(ValueError, match="not all zero"):
        Spectrum.of(torch.zeros(4, 4))


@pytest.mark.parametrize("shape", [(384, 96), (96, 384), (200, 200)])
def test_random_matrices_have_the_spectrum_of_the_law(shape):
    spectrum = Spectrum.of(0.3 * normal(*shape))
    expected = spectrum.random()
    assert np.abs(spectrum.values - expected).max() < 0.04 * spectrum.values[0]
    assert (expected**2).sum() == pytest.approx((spectrum.values**2).sum(), rel=0.01)
    assert spectrum.values[0] == pytest.approx(spectrum.edge, rel=0.04)
    assert spectrum.scale == pytest.approx(0.3, rel=0.03)
    spiked = Spectrum.of(0.3 * normal(*shape) + torch.outer(torch.ones(shape[0]), torch.ones(shape[1])))
    assert spiked.beyond_edge == 1


def test_lora_merges_into_the_same_model_and_trains_little():
    peft = pytest.importorskip("peft")
    base = Classifier(build().bert).eval()
    before = copy.deepcopy(base)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["head"])
    model = peft.get_peft_model(base, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 2 * 2 * 2 * (32 + 32) + 32 * 2 + 2
    batch = {"input_ids": IDS, "owner": torch.arange(2)}
    with torch.no_grad():
        torch.testing.assert_close(model(batch), before(batch))  # it starts where the model stands
        for p in trained.values():
            p.add_(0.3 * torch.randn_like(p))
        adapted = model.eval()(batch)
        assert not torch.allclose(adapted, before(batch), atol=1e-3)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(batch), adapted, rtol=1e-3, atol=1e-4)
    assert [p.shape for p in merged.parameters()] == [p.shape for p in before.parameters()]


def test_figures_draw_what_they_are_given():
    ax = plots.spectra({"trained": [3, 1, 0], "fresh": [2, 2, 2]}, title="T", expected=[2, 1.5, 1], edge=2.2)
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 3, 3, 2]
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3] and "random edge" in [t.get_text() for t in ax.texts]
    table = pd.DataFrame(
        {"rank": [8, 4, 8], "method": ["a", "a", "b"], "loss": [1.0, 2.0, 3.0], "low": 0.5, "high": 3.5}
    )
    ax = plots.against_rank(
        table, y="loss", title="T", ylabel="nats", levels={"dense": 0.9}, marks={"break-even": 6.0}
    )
    assert ax.lines[0].get_xydata().tolist() == [[4, 2], [8, 1]]
    assert {"a", "b", "dense", "break-even"} == {t.get_text() for t in ax.texts}
