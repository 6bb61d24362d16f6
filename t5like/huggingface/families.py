"""Families of Hugging Face models: their configs and the names of their weights, beside ours.

A table has a line per parameter: when it is there (- always, g with a gated activation, p with a plain
one, u when embeddings are untied), our path, our dimensions, their name, their dimensions. Letters are
those of `t5like/sharding.py` and of `ModelConfig.size`; letters without a space between them are one
axis of theirs; {stack} in a name is the layer of that stack (a key of STACKS), and our arrays have a leading axis L for
it. Three of ours
may lie in one of theirs: then the axis 3 says which of q, k, v. So 'NH D' is a matrix [N * H, D].

Sources: the modeling_*.py of transformers 5, whose numbers `tests/parity` compares with ours.
"""
import dataclasses
from typing import Any

Keys = dict[str, Any]  # {key: value}

PLAIN: Keys = dict(  # what a model is where a family says nothing else
    name='decoder', block='pre_norm', norm='rmsnorm', use_bias=False, embed_norm=False, position='rope',
    rope_theta=10_000.0, rope_fraction=1.0, num_types=0, head='linear', scale_attention=True, qk_norm='none',
    logit_softcap=0.0, init='fan_in', dropout=0.0, dropout_style='standard', layers=('global',), window=0,
    window_after=0, local_rope_theta=0.0, rope_scaling={}, qkv_bias=False, embed_scale='none', query_scale=0.0,
    attention_softcap=0.0, encoder_embed='shared')
# Keys of config.model that change neither parameters nor logits of plain text, adapters being merged before.
FREE = ('init', 'dropout', 'dropout_style', 'dtype', 'attention', 'scan_layers', 'remat', 'prefix_mask',
        'lora_rank', 'lora_alpha', 'lora_projections')
GATED = {'silu': 'swiglu', 'swish': 'swiglu', 'gelu_new': 'geglu', 'gelu_pytorch_tanh': 'geglu', 'relu': 'reglu'}
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
    table: of its weights, see above.
    defaults: of keys that its config.json may leave out.
    only: values of its keys that ours can follow.
    prefix: of all names of weights but the head's; files of the bare model lack it.
    unused: a regex of weights that its language models have no use for.
    copies: {name under which tied weights may lie a second time: that of the weights}.
    grouped: whether there may be fewer heads of keys and values.
    any_head_dim: whether heads may have any size.
    any_rope_fraction: whether a part of each head may be turned.
    rope_fraction: the part that is turned where its config.json does not say.
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
  copies: dict[str, str] = dataclasses.field(default_factory=dict)
  grouped: bool = False
  any_head_dim: bool = False
  any_rope_fraction: bool = False
  rope_fraction: float = 1.0
  whole_heads: bool = True

  @property
  def theirs(self) -> dict[str, str]:
    """{our name of a key: its}."""
    return {ours: theirs for theirs, ours in self.keys.items()}


# The key of config.model that says how many layers a stack has.
STACKS = dict(stack='num_layers', encoder='num_encoder_layers', decoder='num_layers')


SIZES = dict(
    hidden_size='d_model',
    num_hidden_layers='num_layers',
    num_attention_heads='num_heads',
    intermediate_size='d_ff',
    vocab_size='vocab_size',
    max_position_embeddings='max_positions',
    tie_word_embeddings='tie_embeddings',
)

LLAMA_TABLE = '''
- embed/w                      VD   model.embed_tokens.weight                     V D
- stack/blocks/attention/q/w   DNH  model.layers.{stack}.self_attn.q_proj.weight       NH D
- stack/blocks/attention/k/w   DKH  model.layers.{stack}.self_attn.k_proj.weight       KH D
- stack/blocks/attention/v/w   DKH  model.layers.{stack}.self_attn.v_proj.weight       KH D
- stack/blocks/attention/o/w   NHD  model.layers.{stack}.self_attn.o_proj.weight       D NH
- stack/blocks/mlp/gate/w      DF   model.layers.{stack}.mlp.gate_proj.weight          F D
- stack/blocks/mlp/up/w        DF   model.layers.{stack}.mlp.up_proj.weight            F D
- stack/blocks/mlp/down/w      FD   model.layers.{stack}.mlp.down_proj.weight          D F
- stack/blocks/attention_norm/scale D model.layers.{stack}.input_layernorm.weight      D
- stack/blocks/mlp_norm/scale  D    model.layers.{stack}.post_attention_layernorm.weight D
- stack/norm/scale             D    model.norm.weight                             D
u head/out/w                   DV   lm_head.weight                                V D
'''

# OLMo 2 norms what comes out of attention and MLP, under names that Llama has for something else.
OLMO2_TABLE = LLAMA_TABLE.replace('post_attention_layernorm', 'post_feedforward_layernorm').replace(
    'input_layernorm', 'post_attention_layernorm') + '''
- stack/blocks/attention/q_norm/scale NH model.layers.{stack}.self_attn.q_norm.weight  NH
- stack/blocks/attention/k_norm/scale KH model.layers.{stack}.self_attn.k_norm.weight  KH
'''

GPT2_TABLE = '''
- embed/w                      VD   transformer.wte.weight                        V D
- positions/w                  TD   transformer.wpe.weight                        T D
- stack/blocks/attention_norm/scale D transformer.h.{stack}.ln_1.weight                D
- stack/blocks/attention_norm/b D   transformer.h.{stack}.ln_1.bias                    D
- stack/blocks/attention/*/w   DNH  transformer.h.{stack}.attn.c_attn.weight           D 3NH
- stack/blocks/attention/*/b   NH   transformer.h.{stack}.attn.c_attn.bias             3NH
- stack/blocks/attention/o/w   NHD  transformer.h.{stack}.attn.c_proj.weight           NH D
- stack/blocks/attention/o/b   D    transformer.h.{stack}.attn.c_proj.bias             D
- stack/blocks/mlp_norm/scale  D    transformer.h.{stack}.ln_2.weight                  D
- stack/blocks/mlp_norm/b      D    transformer.h.{stack}.ln_2.bias                    D
- stack/blocks/mlp/up/w        DF   transformer.h.{stack}.mlp.c_fc.weight              D F
- stack/blocks/mlp/up/b        F    transformer.h.{stack}.mlp.c_fc.bias                F
- stack/blocks/mlp/down/w      FD   transformer.h.{stack}.mlp.c_proj.weight            F D
- stack/blocks/mlp/down/b      D    transformer.h.{stack}.mlp.c_proj.bias              D
- stack/norm/scale             D    transformer.ln_f.weight                       D
- stack/norm/b                 D    transformer.ln_f.bias                         D
u head/out/w                   DV   lm_head.weight                                V D
'''

NEOX_TABLE = '''
- embed/w                      VD   gpt_neox.embed_in.weight                      V D
- stack/blocks/attention_norm/scale D gpt_neox.layers.{stack}.input_layernorm.weight   D
- stack/blocks/attention_norm/b D   gpt_neox.layers.{stack}.input_layernorm.bias       D
- stack/blocks/attention/*/w   DNH  gpt_neox.layers.{stack}.attention.query_key_value.weight N3H D
- stack/blocks/attention/*/b   NH   gpt_neox.layers.{stack}.attention.query_key_value.bias N3H
- stack/blocks/attention/o/w   NHD  gpt_neox.layers.{stack}.attention.dense.weight     D NH
- stack/blocks/attention/o/b   D    gpt_neox.layers.{stack}.attention.dense.bias       D
- stack/blocks/mlp_norm/scale  D    gpt_neox.layers.{stack}.post_attention_layernorm.weight D
- stack/blocks/mlp_norm/b      D    gpt_neox.layers.{stack}.post_attention_layernorm.bias D
- stack/blocks/mlp/up/w        DF   gpt_neox.layers.{stack}.mlp.dense_h_to_4h.weight   F D
- stack/blocks/mlp/up/b        F    gpt_neox.layers.{stack}.mlp.dense_h_to_4h.bias     F
- stack/blocks/mlp/down/w      FD   gpt_neox.layers.{stack}.mlp.dense_4h_to_h.weight   D F
- stack/blocks/mlp/down/b      D    gpt_neox.layers.{stack}.mlp.dense_4h_to_h.bias     D
- stack/norm/scale             D    gpt_neox.final_layer_norm.weight              D
- stack/norm/b                 D    gpt_neox.final_layer_norm.bias                D
u head/out/w                   DV   embed_out.weight                              V D
'''

BERT_STACK = '''
- embed/w                      VD   bert.embeddings.word_embeddings.weight        V D
- positions/w                  TD   bert.embeddings.position_embeddings.weight    T D
- types/w                      PD   bert.embeddings.token_type_embeddings.weight  P D
- embed_norm/scale             D    bert.embeddings.LayerNorm.weight              D
- embed_norm/b                 D    bert.embeddings.LayerNorm.bias                D
- stack/blocks/attention/q/w   DNH  bert.encoder.layer.{stack}.attention.self.query.weight NH D
- stack/blocks/attention/q/b   NH   bert.encoder.layer.{stack}.attention.self.query.bias NH
- stack/blocks/attention/k/w   DNH  bert.encoder.layer.{stack}.attention.self.key.weight NH D
- stack/blocks/attention/k/b   NH   bert.encoder.layer.{stack}.attention.self.key.bias NH
- stack/blocks/attention/v/w   DNH  bert.encoder.layer.{stack}.attention.self.value.weight NH D
- stack/blocks/attention/v/b   NH   bert.encoder.layer.{stack}.attention.self.value.bias NH
- stack/blocks/attention/o/w   NHD  bert.encoder.layer.{stack}.attention.output.dense.weight D NH
- stack/blocks/attention/o/b   D    bert.encoder.layer.{stack}.attention.output.dense.bias D
- stack/blocks/attention_norm/scale D bert.encoder.layer.{stack}.attention.output.LayerNorm.weight D
- stack/blocks/attention_norm/b D   bert.encoder.layer.{stack}.attention.output.LayerNorm.bias D
- stack/blocks/mlp/up/w        DF   bert.encoder.layer.{stack}.intermediate.dense.weight F D
- stack/blocks/mlp/up/b        F    bert.encoder.layer.{stack}.intermediate.dense.bias F
- stack/blocks/mlp/down/w      FD   bert.encoder.layer.{stack}.output.dense.weight     D F
- stack/blocks/mlp/down/b      D    bert.encoder.layer.{stack}.output.dense.bias       D
- stack/blocks/mlp_norm/scale  D    bert.encoder.layer.{stack}.output.LayerNorm.weight D
- stack/blocks/mlp_norm/b      D    bert.encoder.layer.{stack}.output.LayerNorm.bias   D
'''

BERT_TABLE = BERT_STACK + '''
- head/transform/w             DE   cls.predictions.transform.dense.weight        E D
- head/transform/b             E    cls.predictions.transform.dense.bias          E
- head/norm/scale              D    cls.predictions.transform.LayerNorm.weight    D
- head/norm/b                  D    cls.predictions.transform.LayerNorm.bias      D
- head/b                       V    cls.predictions.bias                          V
'''

ROBERTA_TABLE = BERT_STACK.replace(' bert.', ' roberta.') + '''
- head/transform/w             DE   lm_head.dense.weight                          E D
- head/transform/b             E    lm_head.dense.bias                            E
- head/norm/scale              D    lm_head.layer_norm.weight                     D
- head/norm/b                  D    lm_head.layer_norm.bias                       D
- head/b                       V    lm_head.bias                                  V
'''

T5_ATTENTION = '''
- SIDE/blocks/OURS/q/w         DNH  SIDE.block.{SIDE}.layer.AT.THEIRS.q.weight        NH D
- SIDE/blocks/OURS/k/w         DNH  SIDE.block.{SIDE}.layer.AT.THEIRS.k.weight        NH D
- SIDE/blocks/OURS/v/w         DNH  SIDE.block.{SIDE}.layer.AT.THEIRS.v.weight        NH D
- SIDE/blocks/OURS/o/w         NHD  SIDE.block.{SIDE}.layer.AT.THEIRS.o.weight        D NH
- SIDE/blocks/OURS_norm/scale  D    SIDE.block.{SIDE}.layer.AT.layer_norm.weight      D
'''

T5_REST = '''
- SIDE/relative/w              N_   SIDE.block.0.layer.0.SelfAttention.relative_attention_bias.weight _ N
g SIDE/blocks/mlp/gate/w       DF   SIDE.block.{SIDE}.layer.AT.DenseReluDense.wi_0.weight F D
g SIDE/blocks/mlp/up/w         DF   SIDE.block.{SIDE}.layer.AT.DenseReluDense.wi_1.weight F D
p SIDE/blocks/mlp/up/w         DF   SIDE.block.{SIDE}.layer.AT.DenseReluDense.wi.weight F D
- SIDE/blocks/mlp/down/w       FD   SIDE.block.{SIDE}.layer.AT.DenseReluDense.wo.weight D F
- SIDE/blocks/mlp_norm/scale   D    SIDE.block.{SIDE}.layer.AT.layer_norm.weight      D
- SIDE/norm/scale              D    SIDE.final_layer_norm.weight                  D
'''


def _t5(side: str, mlp_at: str) -> str:
  """The lines of a stack; `mlp_at`: number of the MLP among the parts of a block."""
  attention = T5_ATTENTION.replace('OURS', 'attention').replace('AT', '0').replace('THEIRS', 'SelfAttention')
  return (attention + T5_REST.replace('AT', mlp_at)).replace('SIDE', side)


T5_TABLE = '''
- embed/w                      VD   shared.weight                                 V D
u head/out/w                   DV   lm_head.weight                                V D
''' + _t5('encoder', '1') + _t5('decoder', '2') + T5_ATTENTION.replace('OURS', 'cross').replace('AT', '1').replace(
    'THEIRS', 'EncDecAttention').replace('SIDE', 'decoder')

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

FAMILIES: dict[str, Family] = dict(
    llama=Family(
        'LlamaForCausalLM', {}, dict(
            SIZES,
            num_key_value_heads='num_kv_heads',
            head_dim='head_dim',
            rms_norm_eps='norm_eps',
            hidden_act='activation',
        ),
        GATED, LLAMA_TABLE, grouped=True, any_head_dim=True, prefix='model.', unused=ROTARY,
        defaults=dict(
            rms_norm_eps=1e-6,
            hidden_act='silu',
            tie_word_embeddings=False,
            num_key_value_heads=None,
            head_dim=None,
            max_position_embeddings=2048,
        ),
        only=dict(attention_bias=False, mlp_bias=False), copies={'lm_head.weight': 'model.embed_tokens.weight'}),
    olmo2=Family(
        'Olmo2ForCausalLM', dict(block='output_norm', qk_norm='all'), dict(
            SIZES,
            num_key_value_heads='num_kv_heads',
            rms_norm_eps='norm_eps',
            hidden_act='activation',
        ),
        GATED, OLMO2_TABLE, grouped=True, prefix='model.', unused=ROTARY,
        defaults=dict(
            rms_norm_eps=1e-5,
            hidden_act='silu',
            tie_word_embeddings=False,
            num_key_value_heads=None,
            max_position_embeddings=2048,
        ),
        only=dict(attention_bias=False), copies={'lm_head.weight': 'model.embed_tokens.weight'}),
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
        UNGATED, GPT2_TABLE, prefix='transformer.', unused=r'attn\.(bias|masked_bias)$',
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
        UNGATED, NEOX_TABLE, any_rope_fraction=True, rope_fraction=0.25, prefix='gpt_neox.',
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
        'BertForMaskedLM', table=BERT_TABLE, prefix='bert.',
        unused=r'position_ids$|^bert\.pooler\.|^cls\.seq_relationship\.',
        copies={'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
                'cls.predictions.decoder.bias': 'cls.predictions.bias'}, **BERT),
    roberta=Family(
        'RobertaForMaskedLM', table=ROBERTA_TABLE, prefix='roberta.', unused=r'position_ids$|^roberta\.pooler\.',
        copies={'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
                'lm_head.decoder.bias': 'lm_head.bias'},
        # The head of RobertaForMaskedLM has the exact GELU, whatever hidden_act says; ours has the model's.
        **dict(
            BERT,
            ours=dict(BERT['ours'], position='learned_from_2'),
            only=dict(BERT['only'], pad_token_id=1),
            activations={'gelu': 'gelu', 'gelu_python': 'gelu'},
        )),
    t5=Family(
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
        T5_TABLE, any_head_dim=True, whole_heads=False, unused=r'EncDecAttention\.relative_attention_bias\.weight$',
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
                'lm_head.weight': 'shared.weight'}))
