"""Families of Hugging Face models: their configs beside ours. The names of their weights are in `tables.py`."""
import dataclasses
from typing import Any

from t5like import choices
from t5like.huggingface import tables

Keys = dict[str, Any]  # {key: value}

PLAIN: Keys = dict(  # what a model is where a family says nothing else
    name='decoder', block='pre_norm', norm='rmsnorm', use_bias=False, embed_norm=False, position='rope',
    rope_theta=10_000.0, rope_fraction=1.0, num_types=0, head='linear', scale_attention=True, qk_norm='none',
    logit_softcap=0.0, init='fan_in', dropout=0.0, dropout_style='standard', layers=('global',), window=0,
    window_after=0, local_rope_theta=0.0, rope_scaling={}, qkv_bias=False, embed_scale='none', query_scale=0.0,
    attention_softcap=0.0, attention_sinks='none', encoder_embed='shared', encoder_window=0, experts=0)
# Keys of config.model that change neither parameters nor logits of plain text, adapters being merged before.
FREE = ('init', 'dropout', 'dropout_style', 'dtype', 'quantization', 'attention', 'context_attention', 'scan_layers',
        'remat', 'prefix_mask', 'lora_rank', 'lora_alpha', 'lora_projections', 'router_balance', 'router_z_loss',
        'router_jitter')
GATED = {'silu': 'swiglu', 'swish': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu', 'gelu': 'geglu_exact',
         'relu': 'reglu'}
UNGATED = {'gelu': 'gelu', 'gelu_python': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh',
           'gelu_fast': 'gelu_tanh', 'relu': 'relu', 'silu': 'swish', 'swish': 'swish'}


@dataclasses.dataclass(frozen=True)
class Family:
  """A `model_type` of transformers.

  Attributes:
    architecture: the class of its language models.
    ours: values of config.model that all its models share; a tuple: any of them.
    keys: {its name of a key: ours}.
    activations: {its name: ours}.
    table: of its weights, see `tables.py`.
    defaults: of keys that its config.json may leave out.
    only: values of its keys that ours can follow.
    prefix: of all names of weights but the head's; files of the bare model lack it.
    unused: a regex of weights that its language models have no use for.
    zeros: a regex of weights that have no place in ours, so that they must be zeros.
    copies: {name under which tied weights may lie a second time: that of the weights}.
    grouped: whether there may be fewer heads of keys and values.
    any_head_dim: whether heads may have any size.
    any_rope_fraction: whether a part of each head may be turned.
    rope_fraction: the part that is turned where its config.json does not say.
    theta: the base of rotary wavelengths where its config.json does not say.
    theta_key, fraction_key: its names of theta and of the part that is turned, before transformers 5.
    rope_by_layer: whether layers with a window and without have rotary positions of their own.
    local_theta: of the former, where config.json does not say; 0: as the latter.
    local_theta_key: its name of that, before transformers 5.
    scalings: those of model.rope_scaling that it has.
    original_positions: rows of before scaling, where it has a key of its own for them; 0: it does not.
    represents: keys of config.model that its config.json can say by several keys of its own (`single_families.py`).
    is_nested: whether each stack has a config of its own in config.json (`nested.py`).
    other_names: {another name of a key of its config.json: that key}.
    whole_heads: whether transformers refuses a d_model that num_heads does not divide, whatever the head size.
  """
  architecture: str
  ours: Keys
  keys: dict[str, str]
  activations: dict[str, str]
  table: str
  defaults: Keys = dataclasses.field(default_factory=dict)
  only: Keys = dataclasses.field(default_factory=dict)
  prefix: str = ''
  unused: str = '(?!)'
  zeros: str = '(?!)'
  copies: dict[str, str] = dataclasses.field(default_factory=dict)
  grouped: bool = False
  any_head_dim: bool = False
  any_rope_fraction: bool = False
  rope_fraction: float = 1.0
  other_names: dict[str, str] = dataclasses.field(default_factory=dict)
  whole_heads: bool = True
  theta: float = 10_000.0
  theta_key: str = 'rope_theta'
  fraction_key: str = 'partial_rotary_factor'
  rope_by_layer: bool = False
  local_theta: float = 0.0
  local_theta_key: str = 'rope_local_base_freq'
  scalings: tuple[str, ...] = ()
  original_positions: int = 0
  represents: tuple[str, ...] = ()
  is_nested: bool = False

  @property
  def theirs(self) -> dict[str, str]:
    """{our name of a key: its}."""
    return {ours: theirs for theirs, ours in self.keys.items()}

  @property
  def representable(self) -> set[str]:
    """Keys of config.model that its config.json can say, by one key or by several."""
    keys = {*self.keys.values(), *self.represents}
    if self.scalings:
      keys.add('rope_scaling')
    return keys


# model_type of what has blocks that ours do not -> what these are.
BLOCKS_THAT_OURS_LACK = dict(
    t5gemma2="each layer of its decoder reads the decoder's own tokens and the encoder's output in one attention, with "
    'one softmax and the same matrices for both, and our decoders have two attentions',
    gpt_oss='its experts have biases and a clipped activation, and ours have neither',
)
SIZES = dict(
    hidden_size='d_model',
    num_hidden_layers='num_layers',
    num_attention_heads='num_heads',
    intermediate_size='d_ff',
    vocab_size='vocab_size',
    max_position_embeddings='max_positions',
    tie_word_embeddings='tie_embeddings',
)

ROTARY = r'rotary_emb\.inv_freq$'
BIASED = dict(norm='layernorm', use_bias=True)
BERT: Keys = dict(
    ours=dict(
        BIASED,
        name='encoder',
        block='post_norm',
        embed_norm=True,
        position='learned',
        head='mlm',
        tie_embeddings=True,
        init='bert',
    ),
    keys=dict(
        SIZES,
        layer_norm_eps='norm_eps',
        type_vocab_size='num_types',
        hidden_dropout_prob='dropout',
        hidden_act='activation',
    ),
    activations=UNGATED,
    defaults=dict(
        layer_norm_eps=1e-12,
        type_vocab_size=2,
        hidden_act='gelu',
        tie_word_embeddings=True,
        hidden_dropout_prob=0.1,
        max_position_embeddings=512,
    ),
    only=dict(position_embedding_type='absolute', is_decoder=False, add_cross_attention=False))

LOCAL = ('layers', 'window')
SCALINGS = tuple(choices.ROPE_SCALINGS)


def _like_llama(
    architecture: str,
    ours: Keys,
    table: str,
    *,
    keys: dict[str, str] | None = None,
    defaults: Keys | None = None,
    has_head_dim: bool = True,
    activation: str = 'hidden_act',
    scalings: tuple[str, ...] = SCALINGS,
    **fields: Any,
) -> Family:
  """A family whose config.json and names of weights are those of Llama, but for what is given here.

  Args:
    architecture, ours, table: as of Family, the table whole.
    keys, defaults: besides those of Llama.
    has_head_dim: whether config.json says the size of a head.
    activation: its key.
    scalings: as of Family.
    **fields: others of Family.
  """
  all_keys = dict(SIZES, num_key_value_heads='num_kv_heads', rms_norm_eps='norm_eps', **{activation: 'activation'})
  all_defaults: Keys = dict(
      rms_norm_eps=1e-6,
      tie_word_embeddings=False,
      num_key_value_heads=None,
      max_position_embeddings=2048,
      **{activation: 'silu'},
  )
  if has_head_dim:
    all_keys.update(head_dim='head_dim')
    all_defaults.update(head_dim=None)
  return Family(
      architecture,
      ours,
      {**all_keys, **(keys or {})},
      GATED,
      table,
      defaults={**all_defaults, **(defaults or {})},
      prefix='model.',
      unused=ROTARY,
      copies={'lm_head.weight': 'model.embed_tokens.weight'},
      grouped=True,
      any_head_dim=has_head_dim,
      scalings=scalings,
      **fields,
  )


# Where config.json says nothing of it.
SPARSE: Keys = dict(expert_capacity=0, router_bias=False)
UNSHARED: Keys = dict(SPARSE, shared_experts=0, shared_gate=False)
ALL_SPARSE: Keys = dict(UNSHARED, sparse_every=1, dense_first=0)
ANY_SOFTMAX = ('softmax', 'softmax_normalized')
SOME_SPARSE = ('sparse_every', 'dense_first')
CHOSEN: dict[str, str] = dict(num_experts='experts', num_experts_per_tok='experts_per_token')
OF_QWEN_MOE: dict[str, str] = dict(CHOSEN, moe_intermediate_size='expert_d_ff')

GEMMA = dict(block='sandwich', norm='rmsnorm_unit', embed_scale='sqrt_d_model')
OF_GEMMA: Keys = dict(
    activation='hidden_activation',
    keys=dict(final_logit_softcapping='logit_softcap', attn_logit_softcapping='attention_softcap'),
    represents=(*LOCAL, 'query_scale'),
    only=dict(attention_bias=False, use_bidirectional_attention=None),
    defaults=dict(head_dim=256, tie_word_embeddings=True, max_position_embeddings=8192,
                  hidden_activation='gelu_pytorch_tanh', final_logit_softcapping=30.0, attn_logit_softcapping=50.0),
)

# The heads of RobertaForMaskedLM and ElectraForMaskedLM have the exact GELU, whatever hidden_act says; ours has the
# model's.
EXACT_GELU = {'gelu': 'gelu', 'gelu_python': 'gelu'}
ROBERTA = Family(
    'RobertaForMaskedLM', table=tables.ROBERTA, prefix='roberta.', unused=r'position_ids$|^roberta\.pooler\.',
    copies={'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
            'lm_head.decoder.bias': 'lm_head.bias'},
    **dict(
        BERT,
        ours=dict(BERT['ours'], position='learned_from_2'),
        only=dict(BERT['only'], pad_token_id=1),
        activations=EXACT_GELU,
    ))
T5 = Family(
    'T5ForConditionalGeneration', dict(
        name='encoder_decoder',
        position='relative',
        head=('scaled', 'linear'),
        scale_attention=False,
        init='t5',
        dropout_style='t5',
    ), dict(
        d_model='d_model',
        num_layers='num_encoder_layers',
        num_decoder_layers='num_layers',
        num_heads='num_heads',
        d_kv='head_dim',
        d_ff='d_ff',
        vocab_size='vocab_size',
        n_positions='max_positions',
        tie_word_embeddings='tie_embeddings',
        layer_norm_epsilon='norm_eps',
        dropout_rate='dropout',
        feed_forward_proj='activation',
    ),
    {'relu': 'relu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'silu': 'swish', 'gated-gelu': 'geglu',
     'gated-gelu_new': 'geglu', 'gated-silu': 'swiglu', 'gated-relu': 'reglu'},
    tables.T5, any_head_dim=True, whole_heads=False, unused=r'EncDecAttention\.relative_attention_bias\.weight$',
    defaults=dict(
        num_decoder_layers=None,
        n_positions=512,
        tie_word_embeddings=True,
        layer_norm_epsilon=1e-6,
        dropout_rate=0.1,
        feed_forward_proj='relu',
    ),
    only=dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    copies={'encoder.embed_tokens.weight': 'shared.weight', 'decoder.embed_tokens.weight': 'shared.weight',
            'lm_head.weight': 'shared.weight'})

SWITCH = Family(
    'SwitchTransformersForConditionalGeneration',
    dict(T5.ours, shared_experts=0, shared_gate=False, router='softmax', router_bias=False, experts_per_token=1,
         sparse_every=(1, 2), dense_first=0),
    dict(
        d_model='d_model',
        num_layers='num_encoder_layers',
        num_decoder_layers='num_layers',
        num_heads='num_heads',
        d_kv='head_dim',
        d_ff='expert_d_ff',
        vocab_size='vocab_size',
        n_positions='max_positions',
        tie_word_embeddings='tie_embeddings',
        layer_norm_epsilon='norm_eps',
        dropout_rate='dropout',
        dense_act_fn='activation',
        num_experts='experts',
    ),
    UNGATED, tables.SWITCH, any_head_dim=True, whole_heads=False, represents=('d_ff', 'expert_capacity'),
    unused=T5.unused, copies=T5.copies,
    defaults=dict(
        num_decoder_layers=None,
        n_positions=512,
        tie_word_embeddings=True,
        layer_norm_epsilon=1e-6,
        dropout_rate=0.1,
        dense_act_fn='relu',
        num_experts=8,
    ),
    only=dict(T5.only, router_bias=False, router_dtype='float32'))

OF_T5GEMMA: Keys = dict(
    OF_GEMMA,
    keys=dict(OF_GEMMA['keys'], num_encoder_layers='num_encoder_layers', dropout_rate='dropout'),
    defaults=dict(OF_GEMMA['defaults'], dropout_rate=0.0),
    represents=(*OF_GEMMA['represents'], 'encoder_window'),
    only=dict(attention_bias=False),
    is_nested=True,
)
T5GEMMA = dataclasses.replace(
    _like_llama(
        'T5GemmaForConditionalGeneration',
        dict(GEMMA, name='encoder_decoder', encoder_embed='own', tie_embeddings=True),
        tables.T5GEMMA,
        **OF_T5GEMMA,
    ),
    prefix='',
    copies={'lm_head.out_proj.weight': 'model.decoder.embed_tokens.weight'},
)

BART = Family(
    'BartForConditionalGeneration', dict(
        BIASED,
        name='encoder_decoder',
        block='post_norm',
        norm_eps=1e-5,
        embed_norm=True,
        encoder_embed='own_positions',
        position='learned_from_2',
        tie_embeddings=True,
        init='bert',
    ), dict(
        d_model='d_model',
        encoder_layers='num_encoder_layers',
        decoder_layers='num_layers',
        encoder_attention_heads='num_heads',
        encoder_ffn_dim='d_ff',
        vocab_size='vocab_size',
        max_position_embeddings='max_positions',
        tie_word_embeddings='tie_embeddings',
        dropout='dropout',
        activation_function='activation',
    ),
    UNGATED, tables.BART, prefix='model.', zeros='^final_logits_bias$', represents=('embed_scale',),
    defaults=dict(
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dropout=0.1,
        activation_function='gelu',
    ),
    copies={
        'model.encoder.embed_tokens.weight': 'model.shared.weight',
        'model.decoder.embed_tokens.weight': 'model.shared.weight',
        'lm_head.weight': 'model.shared.weight',
    })

FAMILIES: dict[str, Family] = dict(
    llama=_like_llama('LlamaForCausalLM', {}, tables.LLAMA, only=dict(attention_bias=False, mlp_bias=False)),
    mistral=_like_llama('MistralForCausalLM', {}, tables.LLAMA, represents=LOCAL,
                        defaults=dict(max_position_embeddings=131_072)),
    qwen2=_like_llama('Qwen2ForCausalLM', dict(qkv_bias=True), tables.QWEN2, represents=LOCAL, has_head_dim=False,
                      defaults=dict(max_position_embeddings=32_768)),
    qwen3=_like_llama('Qwen3ForCausalLM', dict(qk_norm='head'), tables.QWEN3, represents=LOCAL,
                      defaults=dict(head_dim=128, max_position_embeddings=32_768), only=dict(attention_bias=False)),
    smollm3=_like_llama('SmolLM3ForCausalLM', {}, tables.LLAMA, represents=LOCAL, has_head_dim=False, theta=2e6,
                        defaults=dict(num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=32_768),
                        only=dict(attention_bias=False, mlp_bias=False)),
    olmo2=_like_llama('Olmo2ForCausalLM', dict(block='output_norm', qk_norm='all'), tables.OLMO2, has_head_dim=False,
                      defaults=dict(rms_norm_eps=1e-5), only=dict(attention_bias=False)),
    olmo3=_like_llama('Olmo3ForCausalLM', dict(block='output_norm', qk_norm='all'), tables.OLMO2, has_head_dim=False,
                      represents=(*LOCAL, 'local_rope_theta'), rope_by_layer=True, theta=5e5,
                      defaults=dict(rms_norm_eps=1e-5), only=dict(attention_bias=False)),
    mixtral=_like_llama('MixtralForCausalLM', dict(ALL_SPARSE, router='softmax_normalized'), tables.MIXTRAL,
                        keys=dict(num_local_experts='experts', num_experts_per_tok='experts_per_token',
                                  intermediate_size='expert_d_ff'),
                        represents=(*LOCAL, 'd_ff'), theta=1e6,
                        defaults=dict(rms_norm_eps=1e-5, num_key_value_heads=8, max_position_embeddings=131_072,
                                      num_local_experts=8, num_experts_per_tok=2)),
    qwen2_moe=_like_llama('Qwen2MoeForCausalLM', dict(SPARSE, router=ANY_SOFTMAX, shared_gate=True, qkv_bias=True),
                          tables.QWEN2_MOE, keys=OF_QWEN_MOE, represents=(*LOCAL, *SOME_SPARSE, 'shared_experts'),
                          has_head_dim=False, only=dict(qkv_bias=True),
                          defaults=dict(num_key_value_heads=16, max_position_embeddings=32_768, num_experts=60,
                                        num_experts_per_tok=4, moe_intermediate_size=1408)),
    qwen3_moe=_like_llama('Qwen3MoeForCausalLM', dict(UNSHARED, router=ANY_SOFTMAX, qk_norm='head'), tables.QWEN3_MOE,
                          keys=OF_QWEN_MOE, represents=(*LOCAL, *SOME_SPARSE), only=dict(attention_bias=False),
                          other_names=dict(num_local_experts='num_experts'),
                          defaults=dict(num_key_value_heads=4, max_position_embeddings=32_768, num_experts=128,
                                        num_experts_per_tok=8, moe_intermediate_size=768)),
    olmoe=_like_llama('OlmoeForCausalLM', dict(ALL_SPARSE, router=ANY_SOFTMAX, qk_norm='all'), tables.OLMOE,
                      keys=dict(CHOSEN, intermediate_size='expert_d_ff'), represents=('d_ff',), has_head_dim=False,
                      only=dict(attention_bias=False, clip_qkv=None),
                      defaults=dict(rms_norm_eps=1e-5, max_position_embeddings=4096, num_experts=64,
                                    num_experts_per_tok=8)),
    gemma2=_like_llama('Gemma2ForCausalLM', GEMMA, tables.GEMMA2, **OF_GEMMA),
    gemma3_text=_like_llama('Gemma3ForCausalLM', dict(GEMMA, qk_norm='head'), tables.GEMMA3, **dict(
        OF_GEMMA, represents=(*OF_GEMMA['represents'], 'local_rope_theta'), rope_by_layer=True, theta=1e6,
        local_theta=1e4, only=dict(attention_bias=False, use_bidirectional_attention=False),
        defaults=dict(OF_GEMMA['defaults'], max_position_embeddings=131_072, final_logit_softcapping=None,
                      attn_logit_softcapping=None))),
    phi3=_like_llama('Phi3ForCausalLM', {}, tables.PHI3, represents=LOCAL, has_head_dim=False, any_rope_fraction=True,
                     scalings=('longrope',), original_positions=4096,
                     defaults=dict(rms_norm_eps=1e-5, max_position_embeddings=4096)),
    gpt2=Family(
        'GPT2LMHeadModel', dict(BIASED, position='learned', init='gpt2'), dict(
            n_embd='d_model',
            n_layer='num_layers',
            n_head='num_heads',
            n_inner='d_ff',
            vocab_size='vocab_size',
            n_positions='max_positions',
            tie_word_embeddings='tie_embeddings',
            layer_norm_epsilon='norm_eps',
            resid_pdrop='dropout',
            activation_function='activation',
        ),
        UNGATED, tables.GPT2, prefix='transformer.', unused=r'attn\.(bias|masked_bias)$',
        defaults=dict(
            n_inner=None,
            n_positions=1024,
            tie_word_embeddings=True,
            layer_norm_epsilon=1e-5,
            resid_pdrop=0.1,
            activation_function='gelu_new',
        ),
        only=dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
        copies={'lm_head.weight': 'transformer.wte.weight'}),
    gpt_neox=Family(
        'GPTNeoXForCausalLM', dict(BIASED, block=('parallel', 'pre_norm'), init='neox'), dict(
            SIZES,
            layer_norm_eps='norm_eps',
            hidden_dropout='dropout',
            hidden_act='activation',
        ),
        UNGATED, tables.NEOX, any_rope_fraction=True, rope_fraction=0.25,
        theta_key='rotary_emb_base', fraction_key='rotary_pct', prefix='gpt_neox.',
        unused=rf'attention\.(bias|masked_bias)$|{ROTARY}',
        defaults=dict(
            layer_norm_eps=1e-5,
            hidden_dropout=0.0,
            hidden_act='gelu',
            tie_word_embeddings=False,
            max_position_embeddings=2048,
        ),
        only=dict(attention_bias=True), copies={'embed_out.weight': 'gpt_neox.embed_in.weight'}),
    bert=Family(
        'BertForMaskedLM', table=tables.BERT, prefix='bert.',
        unused=r'position_ids$|^bert\.pooler\.|^cls\.seq_relationship\.',
        copies={'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
                'cls.predictions.decoder.bias': 'cls.predictions.bias'}, **BERT),
    roberta=ROBERTA,
    # Families that compute the same as one before: read, and written as that one.
    **{'xlm-roberta': dataclasses.replace(ROBERTA, architecture='XLMRobertaForMaskedLM'),
       'camembert': dataclasses.replace(ROBERTA, architecture='CamembertForMaskedLM')},
    electra=Family(
        'ElectraForMaskedLM', table=tables.ELECTRA, prefix='electra.', unused='position_ids$',
        copies={'generator_lm_head.weight': 'electra.embeddings.word_embeddings.weight'},
        **dict(BERT, activations=EXACT_GELU)),
    modernbert=Family(
        'ModernBertForMaskedLM', dict(
            name='encoder',
            block='bare_first',
            norm='layernorm',
            embed_norm=True,
            head='mlm_unbiased',
            tie_embeddings=True,
        ), dict(
            SIZES,
            norm_eps='norm_eps',
            mlp_dropout='dropout',
            hidden_activation='activation',
        ),
        {'gelu': 'geglu_exact'}, tables.MODERNBERT, prefix='model.', represents=(*LOCAL, 'local_rope_theta'),
        rope_by_layer=True, theta=160e3, theta_key='global_rope_theta', local_theta=1e4,
        local_theta_key='local_rope_theta', scalings=SCALINGS,
        defaults=dict(
            norm_eps=1e-5,
            mlp_dropout=0.0,
            hidden_activation='gelu',
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        ),
        only=dict(attention_bias=False, mlp_bias=False, norm_bias=False, classifier_bias=False, decoder_bias=True,
                  classifier_activation='gelu'),
        copies={'decoder.weight': 'model.embeddings.tok_embeddings.weight'}),
    t5=T5,
    switch_transformers=SWITCH,
    bart=BART,
    mbart=dataclasses.replace(BART, architecture='MBartForConditionalGeneration', table=tables.MBART,
                              ours=dict(BART.ours, block='pre_norm')),
    t5gemma=T5GEMMA,
    mt5=dataclasses.replace(T5, architecture='MT5ForConditionalGeneration',
                            defaults=dict(T5.defaults, feed_forward_proj='gated-gelu')),
    umt5=dataclasses.replace(T5, architecture='UMT5ForConditionalGeneration', table=tables.UMT5,
                             ours=dict(T5.ours, position='relative_per_layer'),
                             defaults=dict(T5.defaults, feed_forward_proj='gated-gelu')),
)
