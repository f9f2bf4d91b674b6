"""Distillation: the loss by hand, its gradient at high temperature, and a teacher that nothing touches."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import compress, models, training
from helpers import finetune as ft
from helpers.compress import distill, sharing, storage
from helpers.compress.distill import Recipe

CPU_FP32 = {"precision": "fp32", "compile": False}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classifier(layers=4, hidden=32, classes=2, seed=0, arch="megatron-bert"):
    bert = models.build(
        models.Size(layers, hidden), arch=arch, vocab_size=300, max_positions=16, seed=seed
    ).bert
    model = ft.Classifier(bert, classes)
    with torch.no_grad():
        model.head.weight.copy_(drawn(classes, hidden, seed=seed + 1) / 5)
    return model


def batch_of(step):
    """Four texts of two windows; the last window ends with padding."""
    ids = torch.randint(5, 300, (8, 16), generator=torch.Generator().manual_seed(step))
    ids[-1, 9:] = 0
    return {"input_ids": ids, "owner": torch.arange(4).repeat_interleave(2), "labels": ids[::2, 0] % 2}


def config(steps=3, **settings):
    return training.TrainConfig(
        **{"steps": steps, "optimizer": "adamw", "lr_adam": 1e-2, "warmup": 1, **CPU_FP32, **settings}
    )


def test_soft_target_loss_equals_the_sum_by_hand():
    student, teacher, temperature = drawn(5, 3), drawn(5, 3, seed=1), 3.0
    by_hand = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = (torch.exp(z / temperature) / torch.exp(z / temperature).sum() for z in (t, s))
        by_hand += float((p * (p / q).log()).sum())
    expected = temperature**2 * by_hand / 5
    assert distill.soft_target_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    with pytest.warns(UserWarning, match="batchmean"):
        wrong = F.kl_div(log_q, p)
    assert temperature**2 * wrong.item() == pytest.approx(
        expected / 3, rel=1e-5
    )  # divides by classes as well


def test_every_token_is_an_example():
    student, teacher = drawn(2, 7, 4), drawn(2, 7, 4, seed=1)
    flat = distill.soft_target_loss(student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(distill.soft_target_loss(student, teacher), flat)


def test_equal_logits_cost_nothing_whatever_their_level():
    logits = drawn(4, 6)
    assert distill.soft_target_loss(logits, logits + 7.0).item() == pytest.approx(0, abs=1e-6)
    assert distill.soft_target_loss(logits, drawn(4, 6, seed=1)).item() > 0.05


def test_gradient_approaches_a_constant_as_the_temperature_grows():
    teacher = drawn(6, 5, seed=1)

    def gradient(temperature):
        student = drawn(6, 5).requires_grad_()
        distill.soft_target_loss(student, teacher, temperature).backward()
        return student.grad

    # Hinton et al. 2015, equation 4: at high temperature (z - v) / C for logits without their mean, here / n
    difference = drawn(6, 5) - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / (5 * 6)
    errors = [float((gradient(t) - limit).norm() / limit.norm()) for t in (1, 10, 100)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 0.02
    plain = [float(gradient(t).norm() / t**2) for t in (10, 100)]  # without the factor it vanishes
    assert plain[0] / plain[1] == pytest.approx(100, rel=0.1)


def test_hidden_state_loss_leaves_padding_out():
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = ((student - teacher) ** 2)[mask].mean()
    torch.testing.assert_close(distill.hidden_state_loss(student, teacher, mask), expected)
    student[~mask] = 1e6
    torch.testing.assert_close(distill.hidden_state_loss(student, teacher, mask), expected)


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_the_teacher_stays_as_it_was_bit_for_bit(hidden, same_weights):
    teacher, student = classifier(), classifier(layers=2, hidden=64, seed=5)
    before, fresh = copy.deepcopy(teacher), copy.deepcopy(student)
    teacher.train()
    recipe = Recipe(hidden=hidden)
    history = distill.distil(teacher, student, batch_of, config(), recipe, progress=False)
    assert same_weights(teacher, before) and teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), fresh.parameters(), strict=True)]
    # the pooler takes no part in classification
    unused = sum("pooler" in name for name, _ in student.named_parameters())
    assert sum(moved) >= len(moved) - unused - 1 and not student.training
    assert ("hidden" in history.log) == bool(hidden)
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


def test_the_teacher_answers_without_dropout():
    teacher = classifier()
    for module in teacher.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    teacher.train()
    student = distill.student_of(teacher)
    calls = []
    distill.distil(
        teacher, student, batch_of, config(2), Recipe(hard=0), progress=False,
        logits_of=lambda model, batch: calls.append((model is teacher, model.training)) or model(batch),
    )  # fmt: skip
    assert (True, False) in calls and (True, True) not in calls and (False, True) in calls


def test_a_student_learns_the_teachers_answers():
    teacher, student = classifier(layers=2), classifier(layers=1, seed=9)

    def few(step):
        return batch_of(step % 2)

    def gap():
        with torch.no_grad():
            return float(distill.soft_target_loss(student.eval()(few(0)), teacher.eval()(few(0))))

    before = gap()
    distill.distil(teacher, student, few, config(40), Recipe(hard=0, soft=1), progress=False)
    assert gap() < 0.1 * before


def test_every_other_layer_is_copied():
    teacher = classifier()
    student = distill.student_of(teacher)
    ours, theirs = storage.layers_of(student), storage.layers_of(teacher)
    assert len(ours) == 2 and student.encoder.config.num_hidden_layers == 2
    assert teacher.encoder.config.num_hidden_layers == 4
    for mine, original in zip(ours, (theirs[0], theirs[2]), strict=True):
        for a, b in zip(mine.parameters(), original.parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert distill.matched_layers(student, teacher) == [
        ("encoder.encoder.layer.0", "encoder.encoder.layer.1"),
        ("encoder.encoder.layer.1", "encoder.encoder.layer.3"),
    ]


@pytest.mark.parametrize("arch", sorted(models.ARCHITECTURES))
def test_a_student_is_saved_without_a_record(arch, tmp_path):
    student = distill.student_of(classifier(arch=arch), [0, 3]).eval()
    loaded = compress.load(compress.save(student, tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded(batch_of(1)), student(batch_of(1)))


def test_a_run_that_was_cut_goes_on_to_the_same_student(tmp_path, same_weights):
    teacher = classifier(layers=2)
    students = [classifier(layers=1, hidden=64, seed=3) for _ in range(2)]
    recipe, settings = Recipe(hidden=0.5), {"checkpoint_seconds": 0.0, "log_every": 1}
    distill.distil(teacher, students[0], batch_of, config(6, **settings), recipe, progress=False)

    def cut(step):
        if step == 4:
            raise KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        distill.distil(
            teacher, students[1], cut, config(6, **settings), recipe, folder=tmp_path, progress=False
        )
    again = classifier(layers=1, hidden=64, seed=4)
    distill.distil(teacher, again, batch_of, config(6, **settings), recipe, folder=tmp_path, progress=False)
    assert same_weights(again, students[0])


def test_the_recipe_the_pairs_and_the_teacher_belong_to_the_run(tmp_path):
    def distil(seed=0, temperature=2.0, **options):
        distill.distil(
            classifier(layers=2, seed=seed), classifier(layers=1, seed=3), batch_of, config(),
            Recipe(hidden=0.5, temperature=temperature), folder=tmp_path, progress=False, **options,
        )  # fmt: skip

    distil()
    distil()  # the same run, which is found finished
    for change, message in (
        ({"temperature": 4.0}, "recipe is .*'temperature': 2.0.* there and .*4.0"),
        ({"pairs": [("encoder.encoder.layer.0", "encoder.encoder.layer.0")]}, "pairs is .*layer.1'"),
        ({"seed": 1}, "teacher is '"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(**change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "positive number, got 0.0"),
        ({"temperature": math.nan}, "got nan"),
        ({"soft": -1.0}, "not be negative"),
        ({"soft": 0.0, "hard": 0.0}, "nor all zero"),
    ],
)
def test_recipe_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_losses_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(4, 3\) from the student"):
        distill.soft_target_loss(drawn(4, 3), drawn(4, 2))
    with pytest.raises(ValueError, match="project the student"):
        distill.hidden_state_loss(drawn(4, 3), drawn(4, 2))
    with pytest.raises(ValueError, match="true entry"):
        distill.hidden_state_loss(drawn(4, 3), drawn(4, 3), torch.zeros(4, dtype=torch.bool))


def test_distil_refuses_what_would_train_the_teacher_or_fail_late():
    teacher = classifier()
    thief = classifier(layers=2)
    thief.encoder.encoder.layer[0] = teacher.encoder.encoder.layer[0]
    cases = [
        (thief, batch_of, Recipe(), {}, "training the one would train the other"),
        (classifier(classes=3), batch_of, Recipe(), {}, "logits must have one shape"),
        (classifier(layers=6), batch_of, Recipe(hidden=1), {}, "6 layers, more than the teacher's 4"),
        (classifier(layers=1), batch_of, Recipe(hidden=1), {"pairs": [("x", "head")]}, "no module 'x'"),
    ]
    for student, batches, recipe, options, message in cases:
        with pytest.raises(ValueError, match=message):
            distill.distil(teacher, student, batches, config(), recipe, progress=False, **options)

    def unlabelled(step):
        return {name: value for name, value in batch_of(step).items() if name != "labels"}

    with pytest.raises(ValueError, match="has no labels"):
        distill.distil(teacher, classifier(layers=1), unlabelled, config(), Recipe(), progress=False)
    distill.distil(
        teacher, classifier(layers=1), unlabelled, config(1), Recipe(hard=0), progress=False
    )  # soft targets need none


@pytest.mark.parametrize("layers", [[], [2, 0], [0, 0], [0, 4], [-1]])
def test_student_of_refuses_layers(layers):
    with pytest.raises(ValueError, match="must rise within 0 .. 3"):
        distill.student_of(classifier(), layers)


def test_student_of_refuses_a_compressed_teacher():
    with pytest.raises(ValueError, match="changed by 'sharing'"):
        distill.student_of(sharing.share_layers(classifier()))
