"""The front door: python main.py [COMMAND] --flags; python main.py help lists the commands."""
import sys

try:
  from t5like.__main__ import main
except ModuleNotFoundError as missing:
  if missing.name.partition('.')[0] == 't5like':
    raise
  sys.exit(f'ERROR: the package {missing.name} is not installed here. In the folder of t5like, run: pip install -e .')

if __name__ == '__main__':
  main(sys.argv)
