"""Predictions for runs with stages: a step of each is compiled, memory is that of the largest, time is the sum."""
from typing import Any

from t5like.config import stages as stages_lib
from t5like.config.stages import Stage, Stretch
from t5like.config_type import Config
from t5like.preflight import prediction
from t5like.preflight.prediction import Report
from t5like.preflight.topologies import Topology

MEANS = ('mfu', 'mfu_causal', 'tokens_per_second', 'host_tokens_per_second')  # over the time of the run


def predict(
    config: Config,
    topology: Topology,
    full: bool = False,
) -> Report:
  """`prediction.predict` of a run, arguments as there.

  Returns:
    Of a run with stages the report of the stage that needs most memory, with the steps, the hours and the mean step of
    all of them, and 'stages': [{where, steps, batch_size, seq_len, hbm_used, and where all fit step_seconds, hours}].
  """
  listed = stages_lib.of(config)
  if len(listed) == 1:
    return prediction.predict(config, topology, full)
  stretches = []
  reports = []
  for stretch in stages_lib.course(listed):
    if stretch.steps:
      report = prediction.predict(config, topology, full, stage=stretch.stage)
      stretches.append(stretch)
      reports.append(report)
  return _together(listed, stretches, reports)


def _together(
    listed: tuple[Stage, ...],
    stretches: list[Stretch],
    reports: list[Report],
) -> Report:
  """The report of the whole run, of those of its stages."""
  fits = all(report['fits'] for report in reports)
  largest = max(reports, key=_used)
  lines = []
  for stretch, report in zip(stretches, reports):
    stage = listed[stretch.stage]
    line = _line(stage, stretch, report, fits)
    lines.append(line)
  whole = dict(largest, fits=fits, stages=lines)
  if not fits:
    return whole
  steps = sum(line['steps'] for line in lines)
  hours = sum(line['hours'] for line in lines)
  for name in MEANS:
    total = sum(report[name] * line['hours'] for report, line in zip(reports, lines))
    whole[name] = total / hours
  whole.update(
      steps=steps,
      hours=hours,
      chip_hours=hours * largest['chips'],
      step_seconds=hours * 3600 / steps,
  )
  return whole


def _used(report: Report) -> float:
  return report['hbm']['used']


def _line(
    stage: Stage,
    stretch: Stretch,
    report: Report,
    has_times: bool,
) -> dict[str, Any]:
  line = dict(
      where=stage.where or 'at first',
      steps=stretch.steps,
      batch_size=stage.config.batch_size,
      seq_len=stage.config.data.seq_len,
      hbm_used=_used(report),
  )
  if has_times:
    seconds = report['step_seconds']
    line['step_seconds'] = seconds
    line['hours'] = stretch.steps * seconds / 3600
  return line
