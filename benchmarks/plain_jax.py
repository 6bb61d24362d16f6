"""A decoder's train step in plain JAX: no Flax, no mesh, no masks from segments. The yardstick.

Same mathematics as `t5like` with rmsnorm, rope, swiglu, a head of its own and AdamW, written as
directly as JAX allows, for benchmarks/step.py to compare with.
"""
import jax
import jax.numpy as jnp
import optax


def init(key, L, D, N, F, V):
  H = D // N
  k = iter(jax.random.split(key, 9))
  w = lambda *shape, fan: jax.random.normal(next(k), shape) * fan ** -0.5
  layers = dict(q=w(L, D, N, H, fan=D), k=w(L, D, N, H, fan=D), v=w(L, D, N, H, fan=D),
                o=w(L, N, H, D, fan=2 * L * D), up=w(L, D, F, fan=D), gate=w(L, D, F, fan=D),
                down=w(L, F, D, fan=2 * L * F), n1=jnp.ones((L, D)), n2=jnp.ones((L, D)))
  return dict(embed=w(V, D, fan=D), layers=layers, norm=jnp.ones(D), head=w(D, V, fan=D))


def rms(x, scale):
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def rope(x):
  half = x.shape[-1] // 2
  angle = jnp.arange(x.shape[1])[None, :, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle),
                          b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def loss(params, inputs, targets):
  def layer(x, p):
    h = rms(x, p['n1'])
    q, k, v = (jnp.einsum('btd,dnh->btnh', h, p[n]) for n in 'qkv')
    y = jax.nn.dot_product_attention(rope(q), rope(k), v, is_causal=True)
    x = x + jnp.einsum('btnh,nhd->btd', y, p['o'])
    h = rms(x, p['n2'])
    return x + (jax.nn.silu(h @ p['gate']) * (h @ p['up'])) @ p['down'], None
  x, _ = jax.lax.scan(layer, params['embed'][inputs], params['layers'])
  logits = rms(x, params['norm']) @ params['head']
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make_step(tx):
  @jax.jit
  def step(params, opt_state, inputs, targets):
    value, grads = jax.value_and_grad(loss)(params, inputs, targets)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value
  return jax.jit(step, donate_argnums=(0, 1))
