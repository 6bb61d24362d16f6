"""Styles of prompts: what a prompt is to a model, which is what it was trained on."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Style:
  """How prompts become tokens, and what comes back. All is said of every style: there are no defaults.

  Attributes:
    marked: whether special tokens that a prompt writes out, such as <mask> and <extra_id_0>, are read as such.
    begins: whether the token that texts begin with stands before it.
    ends: whether the token that ends documents stands behind it.
    sees_itself: whether its tokens see each other, as those of a prefix do.
    slides: whether texts may grow beyond the length of training.
    continues: whether the text that comes back goes on with the prompt, and is no answer to it.
    in_encoder: whether an encoder reads it.
    fills: whether it comes back with its masks filled in.
    framed: whether it stands between <cls> and <sep>.
  """
  marked: bool
  begins: bool
  ends: bool
  sees_itself: bool
  slides: bool
  continues: bool
  in_encoder: bool
  fills: bool
  framed: bool


STYLES = {
    # Documents that begin with a token, vocabulary.bos_id.
    'document': Style(
        marked=False,
        begins=True,
        ends=False,
        sees_itself=False,
        slides=True,
        continues=True,
        in_encoder=False,
        fills=False,
        framed=False,
    ),
    # Text without beginnings.
    'stream': Style(
        marked=False,
        begins=False,
        ends=False,
        sees_itself=False,
        slides=True,
        continues=True,
        in_encoder=False,
        fills=False,
        framed=False,
    ),
    # The prefix of a document.
    'prefix': Style(
        marked=True,
        begins=True,
        ends=False,
        sees_itself=True,
        slides=False,
        continues=True,
        in_encoder=False,
        fills=False,
        framed=False,
    ),
    # Inputs, their end, then targets.
    'pair': Style(
        marked=True,
        begins=True,
        ends=True,
        sees_itself=True,
        slides=False,
        continues=False,
        in_encoder=False,
        fills=False,
        framed=False,
    ),
    # Inputs in an encoder.
    'encoder': Style(
        marked=True,
        begins=False,
        ends=True,
        sees_itself=False,
        slides=False,
        continues=False,
        in_encoder=True,
        fills=False,
        framed=False,
    ),
    # Text with masks.
    'fill': Style(
        marked=True,
        begins=False,
        ends=False,
        sees_itself=False,
        slides=False,
        continues=False,
        in_encoder=False,
        fills=True,
        framed=False,
    ),
    'fill_row': Style(
        marked=True,
        begins=False,
        ends=False,
        sees_itself=False,
        slides=False,
        continues=False,
        in_encoder=False,
        fills=True,
        framed=True,
    ),
}
