"""Names and layouts of the weights of each family of Hugging Face models, beside ours.

A table has a line per parameter: when it is there (- always, g with a gated activation, p with a plain
one, u when embeddings are untied, r in all layers but the first, x in layers with experts, d in those without), our
path, our dimensions, their name, their dimensions. Letters are those of `t5like/sharding.py` and of `ModelConfig.size`;
letters without a space between them are one axis of theirs; {stack} in a name is the layer of that stack (a key of
STACKS), and our arrays have a leading axis L for it. So 'NH D' is a matrix [N * H, D].

Of experts, f is the width of one and s that of those that all tokens pass, F of ours both; {expert} in a name is the
number of an expert, and our arrays have the axis X for it. 1 is an axis of length 1 that ours do not have.

Several of ours may lie in one of theirs. Of equal ones, the axis 3 says which of q, k, v, all of them `*` in our path.
Others lie one after the other along an axis: then + stands between our paths, between our dimensions, and between the
parts of that axis.

Sources: the modeling_*.py of transformers 5, whose numbers `tests/parity` compares with ours.
"""
import re

# The key of config.model that says how many layers a stack has.
STACKS = dict(stack='num_layers', encoder='num_encoder_layers', decoder='num_layers')

LLAMA = '''
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

SPARSE_LLAMA = re.sub('^- stack/blocks/mlp/', 'd stack/blocks/mlp/', LLAMA, flags=re.MULTILINE)
EXPERTS = '''
x stack/blocks/experts/router/w DX  model.layers.{stack}.mlp.gate.weight             X D
x stack/blocks/experts/gate/w XDf  model.layers.{stack}.mlp.experts.{expert}.gate_proj.weight f D
x stack/blocks/experts/up/w   XDf  model.layers.{stack}.mlp.experts.{expert}.up_proj.weight f D
x stack/blocks/experts/down/w XfD  model.layers.{stack}.mlp.experts.{expert}.down_proj.weight D f
'''
MIXTRAL = SPARSE_LLAMA + EXPERTS.replace('.mlp.', '.block_sparse_moe.').replace('gate_proj', 'w1').replace(
    'up_proj', 'w3').replace('down_proj', 'w2')

# OLMo 2 norms what comes out of attention and MLP, under names that Llama has for something else.
OLMO2_BLOCKS = LLAMA.replace('post_attention_layernorm', 'post_feedforward_layernorm').replace(
    'input_layernorm', 'post_attention_layernorm')
NORMS_OF_ALL_HEADS = '''
- stack/blocks/attention/q_norm/scale NH model.layers.{stack}.self_attn.q_norm.weight  NH
- stack/blocks/attention/k_norm/scale KH model.layers.{stack}.self_attn.k_norm.weight  KH
'''
OLMO2 = OLMO2_BLOCKS + NORMS_OF_ALL_HEADS
OLMOE = SPARSE_LLAMA + EXPERTS + NORMS_OF_ALL_HEADS

BIASES_OF_QKV = '''
- stack/blocks/attention/q/b   NH   model.layers.{stack}.self_attn.q_proj.bias    NH
- stack/blocks/attention/k/b   KH   model.layers.{stack}.self_attn.k_proj.bias    KH
- stack/blocks/attention/v/b   KH   model.layers.{stack}.self_attn.v_proj.bias    KH
'''
QWEN2 = LLAMA + BIASES_OF_QKV
QWEN2_MOE = SPARSE_LLAMA + EXPERTS + BIASES_OF_QKV + '''
x stack/blocks/experts/shared/gate/w Ds model.layers.{stack}.mlp.shared_expert.gate_proj.weight s D
x stack/blocks/experts/shared/up/w   Ds model.layers.{stack}.mlp.shared_expert.up_proj.weight s D
x stack/blocks/experts/shared/down/w sD model.layers.{stack}.mlp.shared_expert.down_proj.weight D s
x stack/blocks/experts/shared_scale  D  model.layers.{stack}.mlp.shared_expert_gate.weight 1 D
'''

NORMS_OF_HEADS = '''
- stack/blocks/attention/q_norm/scale H model.layers.{stack}.self_attn.q_norm.weight H
- stack/blocks/attention/k_norm/scale H model.layers.{stack}.self_attn.k_norm.weight H
'''
QWEN3 = LLAMA + NORMS_OF_HEADS
QWEN3_MOE = SPARSE_LLAMA + EXPERTS + NORMS_OF_HEADS

# Phi-3 has one matrix for q, k and v, and one for gate and up.
SPLIT = re.compile(r'.*(attention/[qkv]/w|mlp/(gate|up)/w).*\n')
PHI3 = SPLIT.sub('', LLAMA) + '''
- stack/blocks/attention/q/w+stack/blocks/attention/k/w+stack/blocks/attention/v/w DNH+DKH+DKH \
  model.layers.{stack}.self_attn.qkv_proj.weight NH+KH+KH D
- stack/blocks/mlp/gate/w+stack/blocks/mlp/up/w DF+DF model.layers.{stack}.mlp.gate_up_proj.weight F+F D
'''

# Gemma 2 has norms on both sides, and Llama's name of the second norm for that behind attention.
GEMMA2 = LLAMA.replace('mlp_norm/scale  D    model.layers.{stack}.post_attention_layernorm',
                                   'mlp_norm/scale  D    model.layers.{stack}.pre_feedforward_layernorm') + '''
- stack/blocks/attention_out_norm/scale D model.layers.{stack}.post_attention_layernorm.weight D
- stack/blocks/mlp_out_norm/scale D model.layers.{stack}.post_feedforward_layernorm.weight D
'''
GEMMA3 = GEMMA2 + NORMS_OF_HEADS

GPT2 = '''
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

NEOX = '''
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

BERT = BERT_STACK + '''
- head/transform/w             DE   cls.predictions.transform.dense.weight        E D
- head/transform/b             E    cls.predictions.transform.dense.bias          E
- head/norm/scale              D    cls.predictions.transform.LayerNorm.weight    D
- head/norm/b                  D    cls.predictions.transform.LayerNorm.bias      D
- head/b                       V    cls.predictions.bias                          V
'''

ROBERTA = BERT_STACK.replace(' bert.', ' roberta.') + '''
- head/transform/w             DE   lm_head.dense.weight                          E D
- head/transform/b             E    lm_head.dense.bias                            E
- head/norm/scale              D    lm_head.layer_norm.weight                     D
- head/norm/b                  D    lm_head.layer_norm.bias                       D
- head/b                       V    lm_head.bias                                  V
'''

# ELECTRA's generator is a BERT with other names.
ELECTRA = BERT_STACK.replace(' bert.', ' electra.') + '''
- head/transform/w             DE   generator_predictions.dense.weight            E D
- head/transform/b             E    generator_predictions.dense.bias              E
- head/norm/scale              D    generator_predictions.LayerNorm.weight        D
- head/norm/b                  D    generator_predictions.LayerNorm.bias          D
- head/b                       V    generator_lm_head.bias                        V
'''

GEMMA_STACK = '''
- SIDE/blocks/attention/q/w    DNH  model.SIDE.layers.{SIDE}.self_attn.q_proj.weight  NH D
- SIDE/blocks/attention/k/w    DKH  model.SIDE.layers.{SIDE}.self_attn.k_proj.weight  KH D
- SIDE/blocks/attention/v/w    DKH  model.SIDE.layers.{SIDE}.self_attn.v_proj.weight  KH D
- SIDE/blocks/attention/o/w    NHD  model.SIDE.layers.{SIDE}.self_attn.o_proj.weight  D NH
- SIDE/blocks/attention_norm/scale D model.SIDE.layers.{SIDE}.pre_self_attn_layernorm.weight D
- SIDE/blocks/attention_out_norm/scale D model.SIDE.layers.{SIDE}.post_self_attn_layernorm.weight D
- SIDE/blocks/mlp/gate/w       DF   model.SIDE.layers.{SIDE}.mlp.gate_proj.weight     F D
- SIDE/blocks/mlp/up/w         DF   model.SIDE.layers.{SIDE}.mlp.up_proj.weight       F D
- SIDE/blocks/mlp/down/w       FD   model.SIDE.layers.{SIDE}.mlp.down_proj.weight     D F
- SIDE/blocks/mlp_norm/scale   D    model.SIDE.layers.{SIDE}.pre_feedforward_layernorm.weight D
- SIDE/blocks/mlp_out_norm/scale D  model.SIDE.layers.{SIDE}.post_feedforward_layernorm.weight D
- SIDE/norm/scale              D    model.SIDE.norm.weight                        D
'''
T5GEMMA = '''
- embed/w                      VD   model.decoder.embed_tokens.weight             V D
- encoder_embed/w              VD   model.encoder.embed_tokens.weight             V D
- decoder/blocks/cross/q/w     DNH  model.decoder.layers.{decoder}.cross_attn.q_proj.weight NH D
- decoder/blocks/cross/k/w     DKH  model.decoder.layers.{decoder}.cross_attn.k_proj.weight KH D
- decoder/blocks/cross/v/w     DKH  model.decoder.layers.{decoder}.cross_attn.v_proj.weight KH D
- decoder/blocks/cross/o/w     NHD  model.decoder.layers.{decoder}.cross_attn.o_proj.weight D NH
- decoder/blocks/cross_norm/scale D model.decoder.layers.{decoder}.pre_cross_attn_layernorm.weight D
- decoder/blocks/cross_out_norm/scale D model.decoder.layers.{decoder}.post_cross_attn_layernorm.weight D
''' + GEMMA_STACK.replace('SIDE', 'encoder') + GEMMA_STACK.replace('SIDE', 'decoder')

MODERNBERT = '''
- embed/w                      VD   model.embeddings.tok_embeddings.weight        V D
- embed_norm/scale             D    model.embeddings.norm.weight                  D
r stack/blocks/attention_norm/scale D model.layers.{stack}.attn_norm.weight            D
- stack/blocks/attention/*/w   DNH  model.layers.{stack}.attn.Wqkv.weight              3NH D
- stack/blocks/attention/o/w   NHD  model.layers.{stack}.attn.Wo.weight                D NH
- stack/blocks/mlp_norm/scale  D    model.layers.{stack}.mlp_norm.weight               D
- stack/blocks/mlp/gate/w+stack/blocks/mlp/up/w DF+DF model.layers.{stack}.mlp.Wi.weight F+F D
- stack/blocks/mlp/down/w      FD   model.layers.{stack}.mlp.Wo.weight                 D F
- stack/norm/scale             D    model.final_norm.weight                       D
- head/transform/w             DE   head.dense.weight                             E D
- head/norm/scale              D    head.norm.weight                              D
- head/b                       V    decoder.bias                                  V
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
SWITCH_REST = '''
- SIDE/relative/w              N_   SIDE.block.0.layer.0.SelfAttention.relative_attention_bias.weight _ N
d SIDE/blocks/mlp/up/w         DF   SIDE.block.{SIDE}.layer.AT.mlp.wi.weight          F D
d SIDE/blocks/mlp/down/w       FD   SIDE.block.{SIDE}.layer.AT.mlp.wo.weight          D F
x SIDE/blocks/experts/router/w DX   SIDE.block.{SIDE}.layer.AT.mlp.router.classifier.weight X D
x SIDE/blocks/experts/up/w     XDf  SIDE.block.{SIDE}.layer.AT.mlp.experts.expert_{expert}.wi.weight f D
x SIDE/blocks/experts/down/w   XfD  SIDE.block.{SIDE}.layer.AT.mlp.experts.expert_{expert}.wo.weight D f
- SIDE/blocks/mlp_norm/scale   D    SIDE.block.{SIDE}.layer.AT.layer_norm.weight      D
- SIDE/norm/scale              D    SIDE.final_layer_norm.weight                  D
'''


def _t5(rest: str) -> str:
  """The whole table; `rest`: what a stack has beside attention, AT being the number of the MLP in a block."""
  attention = T5_ATTENTION.replace('OURS', 'attention').replace('AT', '0').replace('THEIRS', 'SelfAttention')
  cross = T5_ATTENTION.replace('OURS', 'cross').replace('AT', '1').replace('THEIRS', 'EncDecAttention')
  encoder = attention + rest.replace('AT', '1')
  decoder = attention + rest.replace('AT', '2') + cross
  return T5_OUTSIDE + encoder.replace('SIDE', 'encoder') + decoder.replace('SIDE', 'decoder')


T5_OUTSIDE = '''
- embed/w                      VD   shared.weight                                 V D
u head/out/w                   DV   lm_head.weight                                V D
'''
T5 = _t5(T5_REST)
SWITCH = _t5(SWITCH_REST)

# umT5 has a table of distances in each layer.
RELATIVE = re.compile(r'(encoder|decoder)/relative/w (.*) (encoder|decoder)\.block\.0\.')
UMT5 = RELATIVE.sub(r'\1/blocks/relative/w \2 \3.block.{\3}.', T5)

BART_ATTENTION = '''
- SIDE/blocks/OURS/q/w         DNH  model.SIDE.layers.{SIDE}.THEIRS.q_proj.weight     NH D
- SIDE/blocks/OURS/q/b         NH   model.SIDE.layers.{SIDE}.THEIRS.q_proj.bias       NH
- SIDE/blocks/OURS/k/w         DNH  model.SIDE.layers.{SIDE}.THEIRS.k_proj.weight     NH D
- SIDE/blocks/OURS/k/b         NH   model.SIDE.layers.{SIDE}.THEIRS.k_proj.bias       NH
- SIDE/blocks/OURS/v/w         DNH  model.SIDE.layers.{SIDE}.THEIRS.v_proj.weight     NH D
- SIDE/blocks/OURS/v/b         NH   model.SIDE.layers.{SIDE}.THEIRS.v_proj.bias       NH
- SIDE/blocks/OURS/o/w         NHD  model.SIDE.layers.{SIDE}.THEIRS.out_proj.weight   D NH
- SIDE/blocks/OURS/o/b         D    model.SIDE.layers.{SIDE}.THEIRS.out_proj.bias     D
- SIDE/blocks/OURS_norm/scale  D    model.SIDE.layers.{SIDE}.THEIRS_layer_norm.weight D
- SIDE/blocks/OURS_norm/b      D    model.SIDE.layers.{SIDE}.THEIRS_layer_norm.bias   D
'''
BART_START = '''
- EMBEDpositions/w             TD   model.SIDE.embed_positions.weight             T D
- EMBEDembed_norm/scale        D    model.SIDE.layernorm_embedding.weight         D
- EMBEDembed_norm/b            D    model.SIDE.layernorm_embedding.bias           D
'''
BART_MLP = '''
- SIDE/blocks/mlp/up/w         DF   model.SIDE.layers.{SIDE}.fc1.weight                F D
- SIDE/blocks/mlp/up/b         F    model.SIDE.layers.{SIDE}.fc1.bias                  F
- SIDE/blocks/mlp/down/w       FD   model.SIDE.layers.{SIDE}.fc2.weight                D F
- SIDE/blocks/mlp/down/b       D    model.SIDE.layers.{SIDE}.fc2.bias                  D
- SIDE/blocks/mlp_norm/scale   D    model.SIDE.layers.{SIDE}.final_layer_norm.weight   D
- SIDE/blocks/mlp_norm/b       D    model.SIDE.layers.{SIDE}.final_layer_norm.bias     D
'''
BART_SELF = BART_ATTENTION.replace('OURS', 'attention').replace('THEIRS', 'self_attn')
BART_CROSS = BART_ATTENTION.replace('OURS', 'cross').replace('THEIRS', 'encoder_attn')
BART_ENCODER = (BART_START.replace('EMBED', 'encoder_') + BART_SELF + BART_MLP).replace('SIDE', 'encoder')
BART_DECODER = (BART_START.replace('EMBED', '') + BART_SELF + BART_CROSS + BART_MLP).replace('SIDE', 'decoder')
BART = '- embed/w VD model.shared.weight V D' + BART_ENCODER + BART_DECODER

LAST_NORM = '''
- SIDE/norm/scale              D    model.SIDE.layer_norm.weight                  D
- SIDE/norm/b                  D    model.SIDE.layer_norm.bias                    D
'''
MBART = BART + LAST_NORM.replace('SIDE', 'encoder') + LAST_NORM.replace('SIDE', 'decoder')
