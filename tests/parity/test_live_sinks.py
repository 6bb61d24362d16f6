"""Attention with sinks beside that of gpt-oss in transformers."""
import types

import jax.numpy as jnp
import numpy as np
import pytest

from t5like.model import attention_kernels
from tests.model.test_sinks import SCALE, dot_product, mesh, of_kind

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('window', [None, (5, 0)])
def test_attention_of_gpt_oss(window):
  import torch
  from transformers.models.gpt_oss import modeling_gpt_oss
  q, k, v, query, key, _ = of_kind('causal', 24)
  spec = attention_kernels.AttentionSpec(True, 24, 24, window=window, sinks=True)
  mask = np.asarray(attention_kernels.visible(spec, query, key))[:, None]
  sinks_N = np.random.default_rng(3).normal(size=4).astype(np.float32)
  theirs = types.SimpleNamespace(num_key_value_groups=2, sinks=torch.tensor(sinks_N), training=False)
  heads_first = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v)]
  masked = torch.where(torch.tensor(mask), 0.0, torch.finfo(torch.float32).min)
  wanted, _ = modeling_gpt_oss.eager_attention_forward(theirs, *heads_first, masked, SCALE)
  with mesh():
    out = dot_product(q, k, v, query, key, spec, jnp.asarray(sinks_N))
  is_real = np.asarray(query['segments'] > 0)
  np.testing.assert_allclose(np.asarray(out)[is_real], wanted.numpy()[is_real], atol=1e-5)
