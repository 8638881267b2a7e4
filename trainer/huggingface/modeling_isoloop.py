"""A looped language model that isoloop has trained: prelude, loop, coda (Parcae, arXiv:2604.12946).

    e       = norm(P(tokens))
    h_0     ~ N(0, sigma^2), the same at every call
    h_{t+1} = R(A h_t + B e)          t = 0 .. T-1
    logits  = head(norm(C(W_C h_T)))

T is `config.recurrence`: from_pretrained(..., trust_remote_code=True, recurrence=4), or model.config.recurrence = 4. A
fixed-depth Transformer (injection "none") has the same blocks, each run once.

This file needs torch and transformers alone, and is copied into every exported folder.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

STATE_SEED = 20_260_412
# The cache is called `cache` in newer releases of transformers, and `past_key_values` in older ones.
CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class IsoloopConfig(PreTrainedConfig):
    """Shape of the model, as isoloop's `ModelConfig`, with the number of loops that run.

    Args:
        recurrence: T, loops that run.
        mean_recurrence: mean of the loops in training.
        vocabulary: tokens; tables and logits have `vocab_size` rows, the same rounded up to a multiple of 64.
        context: tokens that the model reads at most.
        injection: `diagonal`, `concat`, `addition`, or `none` for fixed depth.
        block: `pre-norm` or `residual-norm`.
        residual_scale: residual branches of the core are scaled by it / (mean_recurrence sqrt(core_layers)).
        kwargs: the other settings of the shape, and what transformers keeps in a configuration.
    """

    model_type = "isoloop"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key_value_heads",
        "max_position_embeddings": "context",
    }

    def __init__(
        self,
        recurrence: int = 1,
        mean_recurrence: float = 1,
        width: int = 16,
        heads: int = 2,
        key_value_heads: int | None = None,
        prelude_layers: int = 1,
        core_layers: int = 1,
        coda_layers: int = 1,
        context: int = 64,
        vocabulary: int = 256,
        injection: str = "diagonal",
        block: str = "pre-norm",
        prelude_norm: bool = True,
        state_init: str = "like-init",
        embedding_scale: float | None = None,
        loop_norm: bool = False,
        rotary_base: float = 50_000.0,
        norm_eps: float = 1e-5,
        residual_scale: float | None = None,
        tied_head: bool = True,
        logit_soft_cap: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.recurrence, self.mean_recurrence = recurrence, mean_recurrence
        self.width, self.heads, self.key_value_heads = width, heads, key_value_heads or heads
        self.prelude_layers, self.core_layers, self.coda_layers = prelude_layers, core_layers, coda_layers
        self.context, self.vocabulary = context, vocabulary
        self.vocab_size = math.ceil(vocabulary / 64) * 64
        self.injection, self.block, self.prelude_norm = injection, block, prelude_norm
        self.state_init, self.embedding_scale, self.loop_norm = state_init, embedding_scale, loop_norm
        self.rotary_base, self.norm_eps, self.residual_scale = rotary_base, norm_eps, residual_scale
        self.tied_head, self.logit_soft_cap = tied_head, logit_soft_cap
        kwargs = {**kwargs, "tie_word_embeddings": False}  # a tied head is no module of its own
        kwargs.pop("vocab_size", None)
        super().__init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers that run, each with a place in the cache: prelude, T times the core, coda."""
        return self.prelude_layers + self.loops * self.core_layers + self.coda_layers

    @property
    def loops(self) -> int:
        """T, after a check."""
        if type(self.recurrence) is not int or self.recurrence < 1:
            raise ValueError(f"recurrence must be a whole number of loops, 1 or more, but got {self.recurrence!r}")
        if self.injection == "none" and self.recurrence != 1:
            raise ValueError(
                f"a fixed-depth model has no loop, so recurrence must be 1, but got {self.recurrence}; leave it out"
            )
        return self.recurrence


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of x [..., width]."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotated, normalised queries and keys and, in some layers, a gated value embedding."""

    def __init__(self, config: IsoloopConfig, gated: bool) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = config.width, config.heads, config.key_value_heads
        kv_width = width // self.heads * self.kv_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_width, bias=False)
        self.value = nn.Linear(width, kv_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(min(32, width), self.kv_heads, bias=False) if gated else None

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        value_embedding: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        slot: int,
    ) -> Tensor:
        """Attend over x [batch, tokens, width]; keys and values go into `slot` of the cache, if there is one."""
        query = self.query(x).unflatten(-1, (self.heads, -1))
        key = self.key(x).unflatten(-1, (self.kv_heads, -1))
        value = self.value(x).unflatten(-1, (self.kv_heads, -1))
        if self.gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # [batch, tokens, kv_heads]
            value = value + gate.unsqueeze(-1) * value_embedding.unflatten(-1, (self.kv_heads, -1)).to(value.dtype)
        query, key = (F.rms_norm(rotate(z, rotation), (z.shape[-1],)) for z in (query, key))
        query, key, value = (z.transpose(1, 2) for z in (query, key, value))  # [batch, heads, tokens, head_width]
        if cache is not None:
            key, value = cache.update(key, value, slot)
        is_causal = mask is None and query.shape[2] > 1
        grouped = self.kv_heads < self.heads
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, enable_gqa=grouped)
        return self.out(mixed.transpose(1, 2).flatten(-2))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the interleaved pairs of x [batch, tokens, heads, head_width] by each token's position."""
    cos, sin = rotation  # [batch, tokens, 1, head_width / 2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class MLP(nn.Module):
    """Two matrices with 0.5 relu(x)^2 between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., width] to [..., width]."""
        return self.down(0.5 * F.relu(self.up(x)).square())


class Block(nn.Module):
    """x + s Attention(norm(x)), then x + s MLP(norm(x)); `residual-norm` also normalises both sums."""

    def __init__(self, config: IsoloopConfig, gated: bool, scale: float) -> None:
        super().__init__()
        norm = lambda: RMSNorm(config.width, config.norm_eps)
        summed = norm if config.block == "residual-norm" else nn.Identity
        self.attention_norm, self.attention, self.attention_sum_norm = norm(), Attention(config, gated), summed()
        self.mlp_norm, self.mlp, self.mlp_sum_norm = norm(), MLP(config.width), summed()
        self.scale = scale

    def forward(self, x: Tensor, *attention_inputs: Any) -> Tensor:
        """Map x [batch, tokens, width] to the same shape."""
        x = self.attention_sum_norm(x + self.scale * self.attention(self.attention_norm(x), *attention_inputs))
        return self.mlp_sum_norm(x + self.scale * self.mlp(self.mlp_norm(x)))


class DiagonalInjection(nn.Module):
    """Parcae's injection: A = exp(-softplus(dt) exp(A_log)) per channel, B e = softplus(dt) (B e)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(width))
        self.dt = nn.Parameter(torch.zeros(width))
        self.B = nn.Linear(width, width, bias=False)

    def drive(self, e: Tensor) -> Tensor:
        """Return what enters every loop."""
        return (F.softplus(self.dt) * self.B(e)).to(e.dtype)

    def forward(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return A h + drive."""
        decay = torch.exp(-F.softplus(self.dt.float()) * torch.exp(self.A_log.float()))
        return (decay * h + drive).to(drive.dtype)


class ConcatInjection(nn.Module):
    """The injection of RDM (Geiping et al. 2025): a linear map on [h; e], of which A is the left half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 2 * width))

    def drive(self, e: Tensor) -> Tensor:
        """Return what enters every loop."""
        return F.linear(e, self.weight[:, self.weight.shape[0] :])

    def forward(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return A h + drive."""
        return F.linear(h, self.weight[:, : self.weight.shape[0]]) + drive


class AdditionInjection(nn.Module):
    """The sum h + e (Yang et al. 2024)."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def drive(self, e: Tensor) -> Tensor:
        """Return what enters every loop."""
        return e

    def forward(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return h + drive."""
        return h + drive


INJECTIONS = {"diagonal": DiagonalInjection, "concat": ConcatInjection, "addition": AdditionInjection}


class IsoloopForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model. Its parameters have the names that they have in isoloop."""

    config_class = IsoloopConfig
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over its batch, so a Trainer divides sums over several

    def __init__(self, config: IsoloopConfig) -> None:
        super().__init__(config)
        layers = config.prelude_layers + config.core_layers + config.coda_layers
        core = range(config.prelude_layers, config.prelude_layers + config.core_layers)
        kv_width = config.width // config.heads * config.key_value_heads
        gated = [(layers - 1 - layer) % 2 == 0 for layer in range(layers)]  # every other layer, counted from the last
        scales = [1.0] * layers
        if config.residual_scale is not None:
            for layer in core:
                scales[layer] = config.residual_scale / (config.mean_recurrence * math.sqrt(config.core_layers))
        blocks = [Block(config, gated[layer], scales[layer]) for layer in range(layers)]

        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.value_embeddings = nn.ModuleDict(
            {str(layer): nn.Embedding(config.vocab_size, kv_width) for layer in range(layers) if gated[layer]}
        )
        self.prelude = nn.ModuleList(blocks[: core.start])
        self.core = nn.ModuleList(blocks[core.start : core.stop])
        self.coda = nn.ModuleList(blocks[core.stop :])
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocab_size, bias=False)
        if config.injection != "none":
            self.prelude_norm = RMSNorm(config.width, config.norm_eps) if config.prelude_norm else nn.Identity()
            self.injection: Any = INJECTIONS[config.injection](config.width)
            self.state_to_width = nn.Linear(config.width, config.width, bias=False)  # W_C
        self._tables: tuple[Tensor, ...] | None = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Compute logits [batch, tokens, vocab_size].

        Args:
            input_ids: tokens [batch, tokens]; with a cache, those behind what it holds.
            attention_mask: [batch, tokens in the cache and in input_ids], 0 for padding, which may be left or right.
            position_ids: of input_ids, [batch, tokens]; by default counted in the attention mask.
            cache: keys and values of the tokens before, of every layer that runs.
            past_key_values: the same, as older releases of transformers call it.
            inputs_embeds: refused: value embeddings need the tokens.
            labels: input_ids, or -100 where there is no loss; each is predicted from those before it.
            use_cache: return a cache although none was given.
            logits_to_keep: compute the logits of that many last tokens alone, or of these; 0 means all.
            return_dict: False returns a tuple.
            kwargs: what transformers passes to every model; ignored.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("the model needs input_ids: its value embeddings are looked up by token")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask must be [batch, tokens], but got {attention_mask.ndim} dimensions; leave "
                "cache_implementation out: the model has a dynamic cache"
            )
        loops, cache = self.config.loops, past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, past)
        rotation, h = self._rotation_and_state(position_ids)
        mask = self._mask(input_ids, attention_mask, past)
        values = {int(layer): table(input_ids) for layer, table in self.value_embeddings.items()}

        def run(blocks: nn.ModuleList, first: int, slot: int, x: Tensor) -> Tensor:
            for i, block in enumerate(blocks):
                x = block(x, rotation, values.get(first + i), mask, cache, slot + i)
            return x

        # Prelude
        x = self.embedding(input_ids)
        x = x if self.config.embedding_scale is None else self.config.embedding_scale * x
        first_core, first_coda = len(self.prelude), len(self.prelude) + len(self.core)
        x = run(self.prelude, 0, 0, x)

        # Loop
        if self.config.injection == "none":
            x = run(self.core, first_core, first_core, x)
        else:
            inject, h = self.injection, h.to(x.dtype)
            drive = inject.drive(self.prelude_norm(x))
            for t in range(loops):
                h = run(self.core, first_core, first_core + t * len(self.core), inject(h, drive))
            x = self.state_to_width(self.final_norm(h) if self.config.loop_norm else h)

        # Coda and head
        x = self.final_norm(run(self.coda, first_coda, first_core + loops * len(self.core), x))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(x[:, kept], self.embedding.weight if self.head is None else self.head.weight)
        if self.config.logit_soft_cap is not None:
            logits = self.config.logit_soft_cap * torch.tanh(logits.float() / self.config.logit_soft_cap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE_FIELD: cache})
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> nn.Module:
        """Return the token table."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output head, or None where it is the token table."""
        return self.head

    def _positions(self, input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        """Return the positions of input_ids, [batch, tokens], counted without padding."""
        if attention_mask is None:
            return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor | None:
        """Return which tokens each one sees, [batch, 1, tokens, past + tokens]; None if all, or all before it."""
        tokens = input_ids.shape[1]
        if attention_mask is not None and attention_mask.all():
            attention_mask = None
        if attention_mask is None and (past == 0 or tokens == 1):
            return None
        rows = torch.arange(past, past + tokens, device=input_ids.device)[:, None]
        columns = torch.arange(past + tokens, device=input_ids.device)[None]
        mask = (columns <= rows)[None, None]
        if attention_mask is not None:  # padding sees itself, since a softmax needs something
            mask = (mask & attention_mask.bool()[:, None, None]) | (columns == rows)
        return mask

    def _rotation_and_state(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return cosine and sine [batch, tokens, 1, head_width / 2], and h_0 [batch, tokens, width]."""
        config, device = self.config, positions.device
        last = int(positions.max())
        if last >= config.context:
            raise ValueError(
                f"the model reads at most {config.context} tokens, but got {last + 1}; use or generate fewer tokens"
            )
        if self._tables is None or self._tables[0].device != device:
            head_width = config.width // config.heads
            frequency = config.rotary_base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
            angle = torch.outer(torch.arange(config.context, dtype=torch.float64), frequency)
            tables = (angle.cos().float(), angle.sin().float(), self._initial_state())
            self._tables = tuple(table.to(device) for table in tables)
        cos, sin, h0 = (table[positions] for table in self._tables)
        return (cos.unsqueeze(2), sin.unsqueeze(2)), h0

    def _initial_state(self) -> Tensor:
        """Draw h_0 of every position, [context, width], from one seed: so it is the same with and without a cache."""
        config = self.config
        if config.injection == "none" or config.state_init == "zero":
            return torch.zeros(config.context, config.width)
        stds = {"embed": config.width**-0.5, "like-init": math.sqrt(2 / (5 * config.width))}
        std = stds.get(config.state_init, 1.0)
        std *= config.embedding_scale or 1.0 if config.state_init == "like-init" else 1.0
        state = torch.empty(config.context, config.width)
        state.normal_(0.0, std, generator=torch.Generator().manual_seed(STATE_SEED))
        if config.state_init == "unit":
            spread, mean = torch.std_mean(state, dim=-1, keepdim=True)
            state = (state - mean) / spread
        return state
