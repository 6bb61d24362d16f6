"""How a run ends badly: one exception class per exit code. `main.py` prints the message, no traceback.

 0 target reached          2 wrong config or usage      3 data        4 checkpoint or storage
 5 numerics                75 pre-empted, state saved: run again      124 stalled, or a peer is gone
 130 Ctrl-C: state saved, or the second one, which ends at once
"""


class Failure(Exception):
  """An error whose message is one paragraph for people: what, where, and what would work."""
  exit_code = 1


class ConfigError(Failure):
  exit_code = 2


class DataError(Failure):
  exit_code = 3


class CheckpointError(Failure):
  exit_code = 4


class NumericsError(Failure):
  exit_code = 5


class BadSteps(NumericsError):
  """Steps that went bad one after the other: a run may go back and leave their rows out."""


class Preempted(Failure):
  exit_code = 75


class Interrupted(KeyboardInterrupt):
  """Ctrl-C or a notebook's interrupt, with the state saved.

  No Failure, nor an Exception: a script that takes those for one of many runs means to be ended too.
  """
  exit_code = 130  # 128 + SIGINT, as shells have it; launch/retry.sh does not start it again


class PeerLost(Failure):
  exit_code = 124


STALLED = 124  # the watchdog leaves without unwinding, so it has a number only
