"""A stand-in for the Hugging Face Hub: its HTTP interface as far as reading files needs it, on this machine."""
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers for `server.repositories`, {'owner/name': {path: bytes}}."""

  def log_message(self, *_):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    parts = [urllib.parse.unquote(part) for part in urllib.parse.urlparse(self.path).path.strip('/').split('/')]
    if parts[:2] == ['api', 'datasets'] and len(parts) >= 4:
      self._describe('/'.join(parts[2:4]), parts[4:])
    elif parts[:1] == ['datasets'] and parts[3:4] == ['resolve']:
      self._send_file('/'.join(parts[1:3]), '/'.join(parts[5:]))
    else:
      self._send(404, b'{}')

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
    wanted = urllib.parse.parse_qs(body).get('paths') or json.loads(body)['paths']
    parts = urllib.parse.urlparse(self.path).path.strip('/').split('/')
    entries = self._entries('/'.join(parts[2:4]))
    self._send_json([entry for entry in entries if entry['path'] in wanted])

  def _entries(self, repository):
    entries = {}
    for path, content in self.server.repositories[repository].items():
      entries[path] = dict(type='file', path=path, size=len(content), oid=hashlib.sha1(content).hexdigest())
      folder = path.rpartition('/')[0]
      while folder:
        entries[folder] = dict(type='directory', path=folder, size=0, oid='0' * 40)
        folder = folder.rpartition('/')[0]
    return list(entries.values())

  def _describe(self, repository, rest):
    if repository not in self.server.repositories:
      self._send(404, b'{}')
    elif rest[:1] == ['tree']:
      folder, recursive = '/'.join(rest[2:]), 'recursive=true' in self.path.lower()
      self._send_json([entry for entry in self._entries(repository) if _inside(entry['path'], folder, recursive)])
    else:
      self._send_json(dict(id=repository, _id='1', sha='a' * 40, private=False, siblings=[], tags=[]))

  def _send_file(self, repository, path):
    content = self.server.repositories[repository][path]
    if 'Range' not in self.headers:
      self._send(200, content)
      return
    first, last = self.headers['Range'].removeprefix('bytes=').split('-')
    last = min(int(last or len(content) - 1), len(content) - 1)
    self._send(206, content[int(first):last + 1], {'Content-Range': f'bytes {first}-{last}/{len(content)}'})

  def _send_json(self, value):
    self._send(200, json.dumps(value).encode(), {'Content-Type': 'application/json'})

  def _send(self, status, content, headers=()):
    self.send_response(status)
    for name, value in {'Content-Length': str(len(content)), 'ETag': '"1"', 'X-Repo-Commit': 'a' * 40,
                        **dict(headers)}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)


def _inside(path, folder, recursive):
  parent = path.rpartition('/')[0]
  return parent == folder or recursive and (not folder or parent.startswith(f'{folder}/'))


@contextlib.contextmanager
def serve(repositories, monkeypatch):
  """Serves dataset repositories; hf:// paths lead there, in this process and in those that it starts."""
  import huggingface_hub.constants
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.repositories = repositories
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setenv('HF_ENDPOINT', address)
  monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
  monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                      address + '/{repo_id}/resolve/{revision}/{filename}')
  huggingface_hub.HfFileSystem.clear_instance_cache()
  try:
    yield address
  finally:
    huggingface_hub.HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
