"""Where the parameters of a model come from that begins with the weights of another architecture (docs/adapting.md)."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """Where parameters of a model come from that begins with the weights of another one.

  target: path of a parameter, or of a folder of them, in the new model.
  source: the same in the model that the weights are of; '': always fresh, as the new model initialises it.
  key: of config.adapt, which says 'fresh' where they are not to be copied; '': they are.
  own: path in a source whose encoder has them for itself, where they come from then; '': as `source`.
  """
  target: str
  source: str
  key: str = ''
  own: str = ''


# Tables of tokens and positions, and the head.
OUTSIDE = (
    Row('embed', 'embed'),
    Row('positions', 'positions'),
    Row('types', 'types'),
    Row('embed_norm', 'embed_norm'),
    Row('head', 'head', 'head'),
)
# What an encoder may have for itself.
ENCODER_EMBED_OF_SHARED = (
    Row('encoder_embed', 'embed', 'encoder'),
    Row('encoder_positions', 'positions', 'encoder'),
    Row('encoder_embed_norm', 'embed_norm', 'encoder'),
)
# T5's buckets: those of a stack that sees both sides stand for other distances than those of one that sees one.
ENCODER_OF_DECODER = (
    *ENCODER_EMBED_OF_SHARED,
    Row('encoder/relative', ''),
    Row('encoder/blocks/relative', ''),
    Row('encoder', 'stack', 'encoder'),
)
ENCODER_OF_ENCODER = (
    *ENCODER_EMBED_OF_SHARED,
    Row('encoder', 'stack', 'encoder'),
)
ENCODER_OF_BOTH = (
    Row('encoder_embed', 'embed', 'encoder', 'encoder_embed'),
    Row('encoder_positions', 'positions', 'encoder', 'encoder_positions'),
    Row('encoder_embed_norm', 'embed_norm', 'encoder', 'encoder_embed_norm'),
    Row('encoder', 'encoder', 'encoder'),
)
# Cross-attention has the sizes of the decoder's attention to itself, norms included.
CROSS_OF_SELF = (
    Row('decoder/blocks/cross', 'stack/blocks/attention', 'cross'),
    Row('decoder/blocks/cross_norm', 'stack/blocks/attention_norm', 'cross'),
    Row('decoder/blocks/cross_out_norm', 'stack/blocks/attention_out_norm', 'cross'),
)
CROSS_OF_CROSS = (
    Row('decoder/blocks/cross', 'decoder/blocks/cross', 'cross'),
    Row('decoder/blocks/cross_norm', 'decoder/blocks/cross_norm', 'cross'),
    Row('decoder/blocks/cross_out_norm', 'decoder/blocks/cross_out_norm', 'cross'),
)
STACK = (Row('stack', 'stack'),)
TURNED = (Row('stack/relative', ''), Row('stack/blocks/relative', ''), Row('stack', 'stack'))
# (architecture of the weights, of the new model) -> rows, of which the first that matches a parameter counts.
CORRESPONDENCES = {
    ('decoder', 'decoder'): (*OUTSIDE, *STACK),
    ('encoder', 'encoder'): (*OUTSIDE, *STACK),
    ('decoder', 'encoder'): (*OUTSIDE, *TURNED),
    ('encoder', 'decoder'): (*OUTSIDE, *TURNED),
    ('decoder', 'encoder_decoder'): (
        *OUTSIDE, *ENCODER_OF_DECODER, *CROSS_OF_SELF, Row('decoder', 'stack', 'decoder')),
    ('encoder', 'encoder_decoder'): (
        *OUTSIDE, *ENCODER_OF_ENCODER, *CROSS_OF_SELF, Row('decoder/relative', ''), Row('decoder/blocks/relative', ''),
        Row('decoder', 'stack', 'decoder')),
    ('encoder_decoder', 'encoder_decoder'): (
        *OUTSIDE, *ENCODER_OF_BOTH, *CROSS_OF_CROSS, Row('decoder', 'decoder', 'decoder')),
    ('encoder_decoder', 'decoder'): (*OUTSIDE, Row('stack', 'decoder')),
    ('encoder_decoder', 'encoder'): (
        Row('embed', 'embed', own='encoder_embed'), Row('positions', 'positions', own='encoder_positions'),
        Row('embed_norm', 'embed_norm', own='encoder_embed_norm'), *OUTSIDE, Row('stack', 'encoder')),
}
