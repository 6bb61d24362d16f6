"""The notebook about lm-evaluation-harness runs from top to bottom."""
import pytest

from tests.notebook.test_short import execute, read, text_of

pytestmark = pytest.mark.harness


def test_the_notebook_of_the_harness(tmp_path):
  text = text_of(execute(read('harness', tmp_path), tmp_path))
  assert "'harness:words'" in text and 'acc' in text
