"""What `mkdocs build` does with this repository (a hook, named in mkdocs.yml).

Pages lie in the site as they lie here, README.md first, so that links between them are the same on a forge. The page of
the API is made from what `t5like` exports. Nothing may be fetched from elsewhere, when built or when read.
"""
import inspect
import pathlib
import re
import sys

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/RESULTS.md', 'docs/*.md', 'docs/pictures/*.svg',
         'docs/images/*', 'docs/site.css', 'notebooks/*.ipynb')
# Besides what `t5like` exports: what `load` returns.
ALSO = ['t5like.decoding.trained_model.Loaded']
SECTION = re.compile(r'(Args|Returns|Raises):')


def on_files(files, config):
  for file in list(files):
    if file.src_dir == config.docs_dir:  # the others are the theme's
      files.remove(file)
  for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
    files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
  files.append(File.generated(config, 'api.md', content=api()))
  return files


def api():
  """The page: a heading and a reference to each name, which mkdocstrings fills."""
  sys.path.insert(0, str(ROOT))
  import t5like
  found = {}
  for name in getattr(t5like, '__all__', []):
    value = getattr(t5like, name)
    # Where it is defined: what a package hands on may be found at run time only.
    found[f't5like.{name}'] = f'{value.__module__}.{value.__qualname__}' if hasattr(value, '__qualname__') else (
        f't5like.{name}')
  found.update({name: name for name in ALSO if name not in found.values()})
  head = f'# API\n\n{inspect.cleandoc(t5like.__doc__)}\n\n'
  return head + '\n'.join(f'::: {place}\n    options:\n      heading: {name}\n' for name, place in found.items())


class Sections(griffe.Extension):
  """Makes lists of what stands below `Args:` and the like in docstrings."""

  def on_instance(self, *, obj, **_):
    if obj.docstring:
      obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
  lines, section = [], ''
  for line in text.split('\n'):
    if SECTION.fullmatch(line):
      section = line[:-1]
      lines += [f'**{section}**', '']
      continue
    section = section if not line or line.startswith('  ') else ''
    item = re.fullmatch(r'  (\w[\w, ]*): (.*)', line) if section == 'Args' else None
    lines.append(f'- `{item[1]}`: {item[2]}' if item else line.strip() if section else line)
  return '\n'.join(lines)


def on_post_page(output, page, config):
  fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)', output)
  if fetched:
    raise PluginError(f'{page.file.src_uri} would fetch {", ".join(fetched)} when it is read.')
  return output
