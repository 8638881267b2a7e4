"""Properties of the models that no reference number shows."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.masked import masked_loss
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.language_model import run_blocks
from isoloop.trainer.model.layers import MLP, Rotary, init_matrix
from isoloop.trainer.model.parcae import Parcae

CONFIG = ModelConfig(width=32, heads=2, core_layers=2, context=12)
VARIANTS = {
    "diagonal": {},
    "concat": {"injection": "concat", "prelude_norm": False},
    "addition": {"injection": "addition"},
    "residual norms": {"injection": "concat", "prelude_norm": False, "block": "residual-norm"},
    "own": {"injection": "tests.trainer.own:ScaledInjection", "block": "tests.trainer.own:ParallelBlock"},
    "fixed depth": {"injection": "none"},
    "grouped": {"key_value_heads": 1},
    "untied": {"tied_head": False},
    "capped": {"logit_soft_cap": 0.5},
}
LOOPED = [name for name in VARIANTS if name != "fixed depth"]


def build(variant, config=CONFIG, **options):
    model = build_model(config.model_copy(update=VARIANTS[variant]), **options)
    model.initialise(3)
    with torch.no_grad():  # away from zero, so that every path counts
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model(request):
    return build(getattr(request, "param", "diagonal"))


each = pytest.mark.parametrize("model", VARIANTS, indirect=True)
each_looped = pytest.mark.parametrize("model", LOOPED, indirect=True)


@pytest.fixture
def step():
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (5, 13), generator=generator)
    return windows[:, :-1], windows[:, 1:], torch.randn(5, 12, 32, generator=generator)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@each_looped
@pytest.mark.parametrize("gradient_loops", [1, 2, 9])
def test_leaving_the_batch_changes_nothing(model, step, gradient_loops):
    """Loss and gradients equal those of each sequence trained alone, its early loops without gradient."""
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 6, 1, 4])
    together = gradients(model, model.loss(tokens, targets, loops, gradient_loops, h0).nats)
    model.zero_grad()
    for i in range(5):
        alone = model.loss(tokens[i : i + 1], targets[i : i + 1], loops[i : i + 1], gradient_loops, h0[i : i + 1]).nats
        (alone / 5).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-6, rtol=1e-4, msg=name)


@each_looped
def test_leaving_the_batch_agrees_with_masking(model, step):
    """The published code's way: everybody runs as long as the longest."""
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 6, 1, 4])
    ours = model.loss(tokens, targets, loops, 2, h0).nats
    masked = masked_loss(model, tokens, targets, loops, 2, h0)
    torch.testing.assert_close(ours, masked)
    expected = gradients(model, masked)
    for name, gradient in gradients(model, model.loss(tokens, targets, loops, 2, h0).nats).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@each
def test_the_loss_over_some_targets_is_that_of_the_logits_there(model, step, request):
    """Of each sequence at its own T, in any order; gradients too, where all loops carry them."""
    tokens, targets, h0 = step
    loops = torch.tensor([2, 1, 4, 1, 3]) if model.config.is_looped else torch.ones(5, dtype=torch.long)
    predicted = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    predicted[3] = False
    nats = []
    for i, recurrence in enumerate(loops.tolist()):
        ((_, logits),) = model.logits(tokens[i : i + 1], [recurrence], h0[i : i + 1])
        nats.append(F.cross_entropy(logits[0], targets[i], reduction="none")[predicted[i]])
    expected = torch.cat(nats).mean()
    found = model.loss(tokens, targets, loops, 4, h0, predicted=predicted).nats
    torch.testing.assert_close(found, expected)
    slow = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, slow[name], atol=1e-6, rtol=1e-4, msg=name)


@each_looped
def test_recomputed_loops_change_nothing_but_what_is_kept(model, step, request):
    tokens, targets, h0 = step
    again = build(request.node.callspec.params["model"], recompute_loops=True)
    loops, kept = torch.tensor([3, 1, 6, 1, 4]), {}
    for which in (model, again):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = which.loss(tokens, targets, loops, 4, h0).nats
        kept[which] = sum(sizes.values()), gradients(which, loss)
    assert kept[again][0] < 0.8 * kept[model][0]
    for name, gradient in kept[model][1].items():
        torch.testing.assert_close(kept[again][1][name], gradient, rtol=0, atol=0, msg=name)


@each_looped
def test_statistics_of_the_last_loop(model, step):
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 2, 1, 3])
    step_loss = model.loss(tokens, targets, loops, 2, h0)
    norms, changes = [], []
    with torch.no_grad():
        for i, count in enumerate(loops.tolist()):
            drive, values = model._before_loop(tokens[i : i + 1])
            h = h0[i : i + 1]
            for _ in range(count):
                before, h = h, model._one_loop(h, drive, values)
            norms.append(h.norm(dim=-1))
            changes.append((h - before).norm(dim=-1) / norms[-1])
    torch.testing.assert_close(step_loss.state_norm, torch.cat(norms).mean())
    torch.testing.assert_close(step_loss.residual, torch.cat(changes).mean())


@each
def test_under_bfloat16_states_stay_float32_and_gradients_come_through(model, step):
    """The residual stream of prelude, core and coda is float32 for every injection, and no gradient is lost."""
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 6, 1, 4] if model.config.is_looped else [1] * 5)
    exact = gradients(model, model.loss(tokens, targets, loops, 2, h0).nats)
    seen = set()
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
        for block in (*model.prelude, *model.core, *model.coda)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens, targets, loops, 2, h0)
    half = gradients(model, loss.nats)
    for hook in hooks:
        hook.remove()
    assert seen == {torch.float32}
    assert loss.nats.dtype == torch.float32
    for name, gradient in exact.items():
        assert half[name].dtype == torch.float32
        assert (half[name] - gradient).norm() < 0.15 * gradient.norm(), name  # .10 on some processors


def test_the_fixed_depth_model_is_its_blocks_in_a_row(step):
    tokens, targets, h0 = step
    model = build("fixed depth")
    ones = torch.ones(5, dtype=torch.long)
    step_loss = model.loss(tokens, targets, ones, 1, h0)
    assert step_loss.state_norm is step_loss.residual is model.spectral_radius() is None
    x = model.embedding(tokens)
    for layer, block in enumerate((*model.prelude, *model.core, *model.coda)):
        value = model.value_embeddings[str(layer)](tokens) if str(layer) in model.value_embeddings else None
        x = block(x, model.rotary, value)
    expected = F.cross_entropy((model.final_norm(x) @ model.embedding.weight.T).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(step_loss.nats, expected)
    with pytest.raises(ValueError, match="needs a loop"):
        build("fixed depth", recompute_loops=True)


def test_residual_norms_stand_behind_each_sum(step):
    block = build("residual norms").core[0]
    x = torch.randn(2, 12, 32)
    rotary = build("residual norms").rotary
    y = block.attention_sum_norm(x + block.attention(block.attention_norm(x), rotary, None))
    expected = block.mlp_sum_norm(y + block.mlp(block.mlp_norm(y)))
    torch.testing.assert_close(block(x, rotary, None), expected)
    assert (
        block(x, rotary, None).pow(2).mean(-1).sqrt() / block.mlp_sum_norm.weight.mean()
    ).mean().item() == pytest.approx(1, rel=0.1)


def test_only_the_last_loops_carry_gradient(model, step):
    """With one gradient loop, the gradient is that of one loop from a state that is a constant."""
    tokens, targets, h0 = step
    loops = torch.full((5,), 4)
    model.loss(tokens, targets, loops, 1, h0).nats.backward()
    truncated = model.injection.A_log.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        drive, values = model._before_loop(tokens)
        for _ in range(3):
            h0 = model._one_loop(h0, drive, values)
    model.loss(tokens, targets, torch.ones(5, dtype=torch.long), 1, h0).nats.backward()
    torch.testing.assert_close(model.injection.A_log.grad, truncated)


@each
def test_training_and_evaluation_agree(model, step):
    tokens, targets, h0 = step
    with torch.no_grad():
        for recurrence, logits in model.logits(tokens, [2, 5] if model.config.is_looped else [1], h0):
            expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss = model.loss(tokens, targets, torch.full((5,), recurrence), 2, h0).nats
            torch.testing.assert_close(loss, expected)


@each
def test_causal(model, step):
    tokens, _, h0 = step
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    with torch.no_grad():
        (_, before), (_, after) = (
            next(model.logits(t, [3] if model.config.is_looped else [1], h0)) for t in (tokens, changed)
        )
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 1e-3


def test_output_projections_start_at_zero_and_the_state_map_at_identity():
    model = Parcae(CONFIG)
    model.initialise(0)
    for block in (*model.prelude, *model.core, *model.coda):
        assert not block.attention.out.weight.any()
        assert not block.mlp.down.weight.any()
    torch.testing.assert_close(model.state_to_width.weight, torch.eye(32))


def rms(weight):
    return weight.detach().square().mean().sqrt().item()


def is_orthogonal(weight):
    """The columns, or the rows if there are more of those, are orthogonal and of one length."""
    small = weight.T if weight.shape[0] >= weight.shape[1] else weight
    gram = (small @ small.T).detach()
    return torch.allclose(gram, torch.eye(len(gram)) * gram.diagonal().mean(), atol=1e-5 * gram.diagonal().mean())


RELEASED_SHAPE = {"width": 64, "heads": 4, "vocabulary": 512, "context": 16}


@pytest.mark.parametrize(
    ("injection", "norms"), [("diagonal", True), ("concat", False), ("addition", True), ("none", True)]
)
def test_the_released_initialisation_has_the_published_distributions(injection, norms):
    """And changes nothing but tables, gates, W_C and RDM's matrix."""
    config = ModelConfig(injection=injection, prelude_norm=norms, core_layers=2, **RELEASED_SHAPE)
    std = (2 / (5 * 64)) ** 0.5
    model, paper = build_model(config), build_model(config)
    model.initialise(0, "released")
    paper.initialise(0, "paper")

    # Tables
    assert rms(model.embedding.weight) == pytest.approx(std, rel=1e-3)
    assert is_orthogonal(model.embedding.weight)
    assert not is_orthogonal(paper.embedding.weight)
    for table in model.value_embeddings.values():
        assert table.weight.std().item() == pytest.approx(1.0, rel=0.02)
        assert table.weight.mean().item() == pytest.approx(0.0, abs=0.02)
        assert table.weight.abs().max() > 3.5  # isn't truncated

    # Value gates: uniform between -1/sqrt(32) and 1/sqrt(32)
    gates = torch.cat(
        [weight.flatten() for name, weight in model.named_parameters() if name.endswith("attention.gate.weight")]
    )
    assert len(gates) == len(model.value_embeddings) * 4 * 32
    assert gates.abs().max().item() == pytest.approx(32**-0.5, rel=0.05)
    assert gates.abs().max() <= 32**-0.5
    assert rms(gates) == pytest.approx((32 * 3) ** -0.5, rel=0.1)

    # W_C, RDM's matrix, and all else
    changed = {
        "embedding.weight",
        *(name for name, _ in model.named_parameters() if "value_emb" in name or "gate" in name),
    }
    if injection != "none":
        changed.add("state_to_width.weight")
        assert is_orthogonal(model.state_to_width.weight)
        singular = torch.linalg.svdvals(model.state_to_width.weight.detach())
        torch.testing.assert_close(singular, torch.full((64,), 0.4**0.5), atol=1e-4, rtol=0)
    if injection == "concat":
        changed.add("injection.weight")
        weight = model.injection.weight
        assert rms(weight) == pytest.approx(0.9867 * std, rel=0.02)  # a normal truncated at 3 deviations
        assert weight.abs().max() <= 3 * std
        assert is_orthogonal(paper.injection.weight)
        assert not is_orthogonal(weight)
    theirs = dict(paper.named_parameters())
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, theirs[name])} == changed


@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128)])
def test_matrices_start_orthogonal_with_the_stated_deviation(shape):
    weight = torch.empty(shape)
    init_matrix(weight, 0.1, torch.Generator().manual_seed(0))
    assert weight.pow(2).mean().sqrt() == pytest.approx(0.1, rel=1e-4)
    small = weight if shape[0] <= shape[1] else weight.T
    gram = small @ small.T
    torch.testing.assert_close(gram, torch.eye(len(gram)) * gram[0, 0], atol=1e-5, rtol=0)


def test_rotary_turns_interleaved_pairs():
    rotary = Rotary(head_width=4, context=3, base=50_000.0)
    x = torch.zeros(1, 3, 1, 4)
    x[..., 0] = 1.0
    turned = rotary(x)[0, :, 0]
    position = torch.arange(3.0)
    torch.testing.assert_close(turned[:, 0], position.cos())
    torch.testing.assert_close(turned[:, 1], position.sin())
    assert not turned[:, 2:].any()


@pytest.mark.parametrize(
    ("state_init", "std"),
    [("zero", 0.0), ("normal", 1.0), ("like-init", (2 / 160) ** 0.5), ("embed", 32**-0.5), ("unit", 1.0)],
)
def test_initial_state(state_init, std):
    model = Parcae(CONFIG.model_copy(update={"state_init": state_init}))
    state = model.initial_state(range(200), 12)
    assert state.shape == (200, 12, 32)
    assert state.std().item() == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(model.initial_state([7, 3], 12), state[[7, 3]])  # each sequence has its own
    if state_init == "unit":
        torch.testing.assert_close(state.std(dim=-1), torch.ones(200, 12))
        torch.testing.assert_close(state.mean(dim=-1), torch.zeros(200, 12), atol=1e-6, rtol=0)


def test_a_scale_of_the_embedding_also_scales_the_state_that_is_drawn_like_it():
    model, scaled = (build_model(CONFIG.model_copy(update={"embedding_scale": scale})) for scale in (None, 3.0))
    for each in (model, scaled):
        each.initialise(0)
    torch.testing.assert_close(scaled.initial_state([1], 12), 3 * model.initial_state([1], 12))
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(scaled._embedded(tokens), 3 * model._embedded(tokens))
    assert scaled.state_dict().keys() == model.state_dict().keys()


def test_a_norm_behind_the_loop_is_the_final_norm_once_more():
    model = build_model(CONFIG.model_copy(update={"loop_norm": True}))
    model.initialise(0)
    with torch.no_grad():
        model.final_norm.weight.mul_(torch.linspace(0.5, 2, 32))
    h = torch.randn(2, 12, 32)
    values = model._value_embeddings(torch.zeros(2, 12, dtype=torch.long), range(model.config.layers))
    plain = build_model(CONFIG)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model._after_loop(h, values), plain._after_loop(model.final_norm(h), values))


def moved_by_an_update(mean, residual_scale):
    """The relative change of the state after `mean` loops when the core's matrices take one step of fixed size."""
    config = CONFIG.model_copy(update={"injection": "addition", "residual_scale": residual_scale})
    model = build_model(config, mean_recurrence=mean)
    model.initialise(3)
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(2, 12, 32, generator=generator)
    steps = [0.05 * torch.randn(p.shape, generator=generator) for p in model.core.parameters()]

    def final_state():
        x = h
        for _ in range(mean):
            x = run_blocks(model.core, config.core.start, x, model.rotary, {})
        return x

    with torch.no_grad():
        before = final_state()
        for parameter, step in zip(model.core.parameters(), steps, strict=True):
            parameter.add_(step)
        return float((final_state() - before).norm() / before.norm())


def test_with_a_residual_scale_an_update_moves_the_state_as_far_whatever_the_loops():
    """From 4 to 32 loops: the reason for which the best learning rate stays (arXiv:2606.18524)."""
    assert moved_by_an_update(32, None) > 2.5 * moved_by_an_update(4, None)
    assert moved_by_an_update(32, 1.0) == pytest.approx(moved_by_an_update(4, 1.0), rel=0.1)


def test_a_residual_scale_is_no_weight_and_no_part_of_an_older_identity():
    scaled = CONFIG.model_copy(update={"residual_scale": 2.0})
    model = build_model(scaled, mean_recurrence=4)
    assert [block.branch_scale for block in model.core] == pytest.approx([2 / (4 * 2**0.5)] * 2)
    assert {block.branch_scale for block in (*model.prelude, *model.coda)} == {1.0}
    assert model.state_dict().keys() == build_model(CONFIG).state_dict().keys()
    assert "residual_scale" not in CONFIG.model_dump()
    assert scaled.model_dump()["residual_scale"] == 2.0
    with pytest.raises(ValueError, match="residual_scale is for the loop of pre-norm blocks"):
        ModelConfig(residual_scale=1.0, block="residual-norm")


def test_the_fast_forms_equal_the_plain_ones():
    """Rotary pairs as complex numbers, and the activation as one function: values and gradients."""
    generator = torch.Generator().manual_seed(0)
    rotary = Rotary(head_width=8, context=6, base=50_000.0)
    x = torch.randn(3, 5, 2, 8, generator=generator, requires_grad=True)
    weights = torch.randn(3, 5, 2, 8, generator=generator)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary.rotation[:5].unbind(-1)
    plain = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    torch.testing.assert_close(rotary(x), plain)
    torch.testing.assert_close(
        torch.autograd.grad(rotary(x), x, weights), torch.autograd.grad(plain, x, weights), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(rotary(x.bfloat16()).float(), plain, rtol=2e-2, atol=2e-2)

    mlp = MLP(8)
    plain = mlp.down(0.5 * torch.relu(mlp.up(x)) ** 2)
    torch.testing.assert_close(mlp(x), plain)
    inputs = (x, *mlp.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(mlp(x), inputs, weights), torch.autograd.grad(plain, inputs, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(mlp(x), mlp.down(0.5 * torch.relu(mlp.up(x)) ** 2))


@pytest.mark.parametrize("variant", ["untied", "capped"])
def test_loss_and_logits_of_a_head_are_those_of_all_logits_at_once(step, variant):
    tokens, targets, h0 = step
    model, loops = build(variant), torch.full((5,), 2)
    ((_, x),) = model.final_states(tokens, [2], h0)
    ((_, logits),) = model.logits(tokens, [2], h0)
    if variant == "untied":
        torch.testing.assert_close(logits, x @ model.head.weight.T)
    else:
        torch.testing.assert_close(logits, 0.5 * torch.tanh(x @ model.embedding.weight.T / 0.5))
    expected = gradients(model, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    for name, gradient in gradients(model, model.loss(tokens, targets, loops, 2, h0).nats).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert not {"tied_head", "logit_soft_cap", "key_value_heads"} & CONFIG.model_dump().keys()


@pytest.mark.parametrize("key_value_heads", [1, 2])
@pytest.mark.parametrize("separator", [None, 7], ids=["whole", "documents"])
def test_grouped_queries_are_attention_with_repeated_keys_and_values(step, key_value_heads, separator):
    """Equal to a model of as many key-value heads as heads, neighbours alike, whose gradients add up."""
    tokens, targets, h0 = step
    config, group = CONFIG.model_copy(update={"heads": 4, "key_value_heads": key_value_heads}), 4 // key_value_heads
    grouped, full = build_model(config), build_model(config.model_copy(update={"key_value_heads": None}))
    grouped.initialise(0, "released")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in grouped.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    def by_head(name, weight):
        """View a weight as [heads of keys and values, channels of each, inputs], if it belongs to them."""
        if "value_embeddings" in name:
            weight = weight.T
        per_head = 1 if "gate" in name else config.head_width
        is_shared = any(part in name for part in ("attention.key", "attention.value", "gate", "value_embeddings"))
        return weight.unflatten(0, (-1, per_head)) if is_shared else None

    weights = grouped.state_dict()
    for name, weight in weights.items():
        heads = by_head(name, weight)
        if heads is not None:
            repeated = heads.repeat_interleave(group, dim=0).flatten(0, 1)
            weights[name] = repeated.T if "value_embeddings" in name else repeated
    full.load_state_dict(weights)
    loops = torch.tensor([3, 2, 2, 1, 1])
    losses = [model.loss(tokens, targets, loops, 2, h0, separator).nats for model in (grouped, full)]
    torch.testing.assert_close(*losses)
    expected = gradients(full, losses[1])
    for name, gradient in gradients(grouped, losses[0]).items():
        heads = by_head(name, expected[name])
        if heads is not None:
            summed = heads.unflatten(0, (-1, group)).sum(1).flatten(0, 1)
            expected[name] = summed.T if "value_embeddings" in name else summed
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("heads", "key_value_heads", "advice"), [(4, 4, "leave it out"), (4, 3, "choose a divisor")])
def test_key_value_heads_that_are_no_group_are_refused(heads, key_value_heads, advice):
    with pytest.raises(ValueError, match=f"fewer, but got key_value_heads={key_value_heads}, heads=4; {advice}"):
        ModelConfig(heads=heads, key_value_heads=key_value_heads)


@pytest.mark.parametrize("injection", ["diagonal", "none"])
def test_training_with_a_z_loss_lowers_what_it_says_and_reports_cross_entropy(step, injection):
    tokens, targets, h0 = step
    config = CONFIG.model_copy(update={"injection": injection})
    plain, penalised = (build_model(config.model_copy(update={"z_loss": z_loss})) for z_loss in (0.0, 0.02))
    ones, found = torch.ones(5, dtype=torch.long), {}
    for model in (plain, penalised):
        model.initialise(0)
        nats = model.loss(tokens, targets, ones, 1, h0).nats
        found[model] = nats.item(), gradients(model, nats)
    assert found[plain][0] == found[penalised][0]
    ((_, logits),) = plain.logits(tokens, [1], h0)
    z_loss = gradients(plain, 0.02 * logits.logsumexp(-1).square().mean())
    for name, gradient in found[penalised][1].items():
        torch.testing.assert_close(gradient, found[plain][1][name] + z_loss[name], atol=1e-6, rtol=1e-4, msg=name)
    assert "z_loss" not in CONFIG.model_dump()


@pytest.mark.parametrize("initialisation", ["paper", "released"])
def test_an_untied_head_starts_as_the_token_table_does_and_changes_no_other_draw(initialisation):
    tied, untied = (build_model(CONFIG.model_copy(update={"tied_head": tied})) for tied in (True, False))
    for model in (tied, untied):
        model.initialise(0, initialisation)
    assert rms(untied.head.weight) == pytest.approx(rms(untied.embedding.weight), rel=0.05)
    assert is_orthogonal(untied.head.weight) == (initialisation == "released")
    assert not torch.equal(untied.head.weight, untied.embedding.weight)
    drawn = untied.state_dict()
    assert all(torch.equal(weight, drawn[name]) for name, weight in tied.state_dict().items())
