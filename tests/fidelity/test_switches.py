"""Each fidelity switch, flipped alone, changes exactly what it says and nothing else."""

import pytest
import torch

from ofq_core.settings import BUNDLES, FidelitySettings

RELEASED = BUNDLES["released"].model_dump()
DESCRIBED = BUNDLES["described"].model_dump()
CASES = [(model, qkr) for model in ("deit", "swin") for qkr in (True, False)]
CASE_IDS = [f"{model}-{'qkr' if qkr else 'plain'}" for model, qkr in CASES]
# Which aspects of a run (see `aspects`) a switch changes, by model and attention.
EVERYWHERE = dict.fromkeys(CASES, True)
QKR_ONLY = {case: case[1] for case in CASES}
SWIN_ONLY = {case: case[0] == "swin" for case in CASES}
DEIT_ONLY = {case: case[0] == "deit" for case in CASES}
CHANGES = {
    "initialization": {"weights": EVERYWHERE, "shapes": SWIN_ONLY},
    "qk_bias": {"weights": QKR_ONLY, "shapes": QKR_ONLY, "decay": {}},
    "teacher_mode": {"teacher": EVERYWHERE},
    "teacher_head": {"teacher": DEIT_ONLY},
    "cga_targets": {"held": {case: case != ("deit", False) for case in CASES}},
    "code_range": {"free": EVERYWHERE},
    "swin_scale_axis": {"shapes": SWIN_ONLY},
    "relative_bias_decay": {"decay": SWIN_ONLY},
    "dead_biases": {"weights": EVERYWHERE, "shapes": EVERYWHERE},
    "cooldown": {"phases": EVERYWHERE, "rates": EVERYWHERE},
    "lr_step": {"rates": EVERYWHERE},
    "lsq_group": {},
}


def aspects(trainer, images):
    """All that the switches are about, of a trainer before its first step.

    Scales of activations are left out: they are calibrated, so they follow from the rest.
    """
    model, teacher = trainer.model, trainer.teacher
    state = model.state_dict()
    probe = torch.linspace(-1, 1, 64).view(1, -1) ** 3  # at 2 bits the top code does not occur
    probe = probe.clamp(max=0.1)
    for module in teacher.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.manual_seed(0)
    return {
        "shapes": {name: tuple(value.shape) for name, value in state.items()},
        "weights": {name: v for name, v in state.items() if not name.endswith(".scale")},
        "teacher": {"training": teacher.model.training, "logits": teacher(images)},
        "held": [weight.name for weight in held(trainer)],
        "free": {w.name: w.quantizer.free(probe, 0.4) for w in trainer.tracker.weights},
        "decay": {
            name: name in decayed(trainer)
            for name, _ in model.named_parameters()
            if "bias_after" not in name and "q_bias" not in name and "reduction.bias" not in name
        },
        "phases": list(trainer.schedule.phases),
        "rates": [
            trainer.schedule.rate(epoch, step)
            for epoch in range(trainer.epochs)
            for step in range(trainer.steps)
        ],
        "data": next(batches(trainer)).images,
        "seeds": (trainer.settings.seed, trainer.batch_size, trainer.steps),
    }


def held(trainer):
    return [*trainer.annealing.weights, *trainer.annealing.products]


def decayed(trainer):
    (group,) = [g for g in trainer.optimizer.param_groups if g["weight_decay"] > 0]
    mine = {id(parameter) for parameter in group["params"]}
    return {name for name, p in trainer.model.named_parameters() if id(p) in mine}


def batches(trainer):
    world = trainer.world
    return trainer.data.train_batches(trainer.recipe, 0, 0, 0, world.share, world.device)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def described_aspects():
    """Those of each model as described, once they have been asked for."""
    return {}


@pytest.fixture
def flipped(run_settings, wired, images):
    """Trainers and their aspects: as described, and with one switch as released."""

    def make(switch, model, qkr, value=None):
        value = RELEASED[switch] if value is None else value
        trainers = [
            wired(run_settings(model, qkr=qkr, fidelity={switch: setting}))
            for setting in (DESCRIBED[switch], value)
        ]
        return trainers, [aspects(trainer, images()) for trainer in trainers]

    return make


@pytest.mark.claim(
    "Every fidelity switch acts, and on nothing but what it is about: flipped alone, it changes "
    "only its own part of the run, in the models that have such a part.",
    released="No switches: these behaviours come together.",
)
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("switch", list(FidelitySettings.model_fields))
def test_each_switch_changes_its_own_part(
    switch, model, qkr, run_settings, wired, images, described_aspects
):
    """Compared: tensors, teacher, what CGA holds, decay, phases, learning rates, batches."""
    if (model, qkr) not in described_aspects:
        trainer = wired(run_settings(model, qkr=qkr))
        described_aspects[model, qkr] = aspects(trainer, images())
    described = described_aspects[model, qkr]
    trainer = wired(run_settings(model, qkr=qkr, fidelity={switch: RELEASED[switch]}))
    released = aspects(trainer, images())
    changed = {key for key in described if not same(described[key], released[key])}
    wanted = {key for key, cases in CHANGES[switch].items() if cases.get((model, qkr))}
    assert changed == wanted


# Exactly what each changes


@pytest.mark.switch("initialization")
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_initialization(model, qkr, flipped):
    """Only tensors of the attention (and a new reduction bias) differ, each of them throughout."""
    _, (described, released) = flipped("initialization", model, qkr)
    new = set(released["weights"]) - set(described["weights"])
    assert new == ({"layers.1.downsample.reduction.bias"} if model == "swin" else set())
    differ = {n for n, v in described["weights"].items() if not same(v, released["weights"][n])}
    ends = {"attn.proj.weight", "attn.proj.bias"}
    ends |= set() if qkr else {"attn.qkv.weight", "attn.qkv.bias"}
    ends |= {"attn.relative_position_bias_table"} if model == "swin" else set()
    # One statistic of the lost weights is a weight too: the scales of LSQ, which StatsQ has not.
    assert {name.split(".", 4 if model == "swin" else 2)[-1] for name in differ} == ends


@pytest.mark.switch("qk_bias")
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_qk_bias(model, flipped):
    """The query bias is there or not, in every block with QKR."""
    _, (described, released) = flipped("qk_bias", model, True)
    gone = set(described["shapes"]) - set(released["shapes"])
    assert len(gone) == (2 if model == "deit" else 4)
    assert {name.rsplit(".", 2)[-2:][0] + "." + name.rsplit(".", 1)[-1] for name in gone} == {
        "attn.q_bias"
    }


@pytest.mark.switch("teacher_mode")
@pytest.mark.parametrize("model", ["deit", "swin"])
def test_teacher_mode(model, flipped, images):
    """With dropout in the teacher, its target varies from call to call in training mode only."""
    trainers, _ = flipped("teacher_mode", model, True)
    x = images()
    described, released = (
        torch.equal(trainer.teacher(x), trainer.teacher(x)) for trainer in trainers
    )
    assert (described, released) == (True, False)


@pytest.mark.switch("teacher_head")
def test_teacher_head(flipped, source, images):
    """The mean of both heads, or the class head alone; in a model with one head it is the same."""
    trainers, _ = flipped("teacher_head", "deit", True)
    full, x = source().eval(), images()
    with torch.no_grad():
        tokens = full.forward_features(x)
        first, second = full.head(tokens[:, 0]), full.head_dist(tokens[:, 1])
    for trainer, wanted in zip(trainers, ((first + second) / 2, first), strict=True):
        torch.testing.assert_close(trainer.teacher(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.switch("cga_targets")
@pytest.mark.parametrize("value", ["linear", "released"])
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_cga_targets(model, qkr, value, flipped):
    """linear leaves out the products; released, in Swin without QKR, everything."""
    _, (described, other) = flipped("cga_targets", model, qkr, value)
    products = {name for name in described["held"] if name.endswith(".qk")}
    assert len(products) == (len(trainer_blocks(model)) if qkr else 0)
    nothing = value == "released" and (model, qkr) == ("swin", False)
    assert set(other["held"]) == (set() if nothing else set(described["held"]) - products)


def trainer_blocks(model):
    return range(2 if model == "deit" else 4)


@pytest.mark.switch("code_range")
def test_code_range(flipped):
    """A threshold below a code that does not occur counts by the grid, not by the observed codes.

    s = 2, n = 2, u = W - 1/2: 0.98 is near the threshold below the top code, and no weight has it.
    """
    trainers, _ = flipped("code_range", "deit", True)
    weight = torch.tensor([[0.96, 0.96, -1.04, -1.04], [0.96, -1.04, 0.85, -1.15]])
    free = [trainer.tracker.weights[0].quantizer.free(weight, 0.1) for trainer in trainers]
    assert free[0].tolist() == [[True] * 4, [True, True, False, False]]
    assert free[1].tolist() == [[False, False, True, True], [False, True, False, False]]


@pytest.mark.switch("swin_scale_axis")
def test_swin_scale_axis(flipped):
    """Scales of MLP and reduction: one per token (16, 4), or one per image column (4, 2)."""
    _, (described, released) = flipped("swin_scale_axis", "swin", True)
    differ = {n for n, s in described["shapes"].items() if released["shapes"][n] != s}
    ends = ("mlp.fc1.input_quantizer.scale", "mlp.fc2.input_quantizer.scale")
    layers = {f"layers.{s}.blocks.{b}.{end}" for s in (0, 1) for b in (0, 1) for end in ends}
    assert differ == layers | {"layers.1.downsample.reduction.input_quantizer.scale"}
    for name in differ:
        stage = int(name.split(".")[1])
        # The merged map of the second stage is as large as its own.
        assert (described["shapes"][name], released["shapes"][name]) == (
            ((16,), (4,)) if stage == 0 else ((4,), (2,))
        ), name


@pytest.mark.switch("relative_bias_decay")
@pytest.mark.parametrize("qkr", [True, False])
def test_relative_bias_decay(qkr, flipped):
    """Swin's four tables, and they alone, join the decayed parameters."""
    trainers, _ = flipped("relative_bias_decay", "swin", qkr)
    before, after = (decayed(trainer) for trainer in trainers)
    assert after - before == {
        f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
        for stage in (0, 1)
        for block in (0, 1)
    }
    assert before < after


@pytest.mark.switch("dead_biases")
@pytest.mark.parametrize(("model", "qkr"), CASES, ids=CASE_IDS)
def test_dead_biases(model, qkr, flipped, images):
    """One vector of zeros more in every block; the outputs stay what they are."""
    trainers, (described, released) = flipped("dead_biases", model, qkr)
    new = set(released["shapes"]) - set(described["shapes"])
    assert len(new) == len(trainer_blocks(model))
    assert {name.split("attn.")[1] for name in new} == {f"quant_{'z' if qkr else 'k'}.bias_after"}
    outputs = [trainer.model.eval()(images()) for trainer in trainers]
    assert torch.equal(*outputs)


@pytest.mark.switch("cooldown")
def test_cooldown(flipped):
    """`recipe.cooldown_epochs` (here 1) at the smallest rate come before the last phase."""
    _, (described, released) = flipped("cooldown", "deit", True)
    assert described["phases"] == ["qat", "qat", "anneal"]
    assert released["phases"] == ["qat", "qat", "cooldown", "anneal"]
    assert released["rates"] == described["rates"] + [2e-3] * 6


@pytest.mark.switch("lr_step")
def test_lr_step(flipped):
    """Warm-up from 1e-6 to 5e-3 in one epoch of six steps: by sixths, or not at all."""
    _, (described, released) = flipped("lr_step", "deit", True)
    warm_up = [1e-6 + step / 6 * (5e-3 - 1e-6) for step in range(6)]
    assert described["rates"][:6] == pytest.approx(warm_up)
    assert released["rates"][:6] == [1e-6] * 6
    assert released["rates"][6:12] == [described["rates"][6]] * 6
    assert len(set(described["rates"][6:12])) == 6
