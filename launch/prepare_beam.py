"""`python main.py prepare` as an Apache Beam pipeline: the same bytes, by as many machines as a runner has.

    pip install -e '.[beam]'
    python launch/prepare_beam.py --config=configs/t5.py:base \\
        --runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=8
    python launch/prepare_beam.py --config=configs/t5.py:base --config.data.directory=gs://BUCKET/prepared \\
        --config.data.tfds_dir=gs://BUCKET/tfds --runner=DataflowRunner --project=PROJECT --region=REGION \\
        --temp_location=gs://BUCKET/tmp --setup_file=./setup.py

Flags that are not --config are Beam's own: --runner=DirectRunner (default), FnApiRunner, DataflowRunner,
FlinkRunner, SparkRunner, ... Each element of the pipeline is one part of the dataset (data.shards sets how
many); workers on other machines need data.directory, and the source, where all of them can reach it.
What is done is kept: the same command goes on after a failure.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def main(argv):
  import apache_beam as beam
  from absl import flags
  from apache_beam.options.pipeline_options import PipelineOptions

  from t5like import config as config_lib
  from t5like.errors import Failure
  from t5like.prepared import prepare
  from t5like.training import preconditions
  flags.DEFINE_string('config', None, 'Config file, with a variant after a colon if it has any.', required=True)
  overrides = [a.removeprefix('--config.') for a in argv if a.startswith('--config.')]
  rest = flags.FLAGS([a for a in argv if not a.startswith('--config.')], known_only=True)[1:]

  def run(function, jobs):
    """See `parts.run_here`."""
    with beam.Pipeline(options=PipelineOptions(rest)) as pipeline:
      _ = (pipeline | 'parts' >> beam.Create(jobs) | 'to any worker' >> beam.Reshuffle()
           | function.__name__ >> beam.Map(function))
    yield from (job['number'] for job in jobs)

  try:
    config = config_lib.load(flags.FLAGS.config, overrides)
    preconditions.check(config)
    prepare.prepare(config, run=run)
  except Failure as e:
    print(f'\nERROR: {e}', file=sys.stderr)
    return e.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
