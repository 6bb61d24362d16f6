"""The config that a checkpoint was trained by: that of the stage of the run that it is in."""
from typing import Any

from t5like.config import stages
from t5like.config_type import Config
from t5like.storage import workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints


def read(workdir: Any, step: int | None = None) -> Config:
  """The config of a checkpoint, the newest if `step` is None; that of the run where it does not have stages.

  Raises:
    ConfigError: when there is no run.
    CheckpointError: the checkpoint is damaged.
  """
  config = workdir_lib.read_config(workdir)
  if len(stages.of(config)) == 1:
    return config
  with Checkpoints(workdir) as checkpoints:
    if not checkpoints.steps:
      return config
    meta = checkpoints.meta(step or checkpoints.steps[-1])
  begun = meta['stages'] if 'stages' in meta else ()  # older versions changed weights of datasets alone
  return stages.after(config, len(begun))
