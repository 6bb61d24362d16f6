"""Opens a file in Chromium (Qt WebEngine), without a screen, and prints as JSON what a script there gives.

    python tests/browser/page.py FILE PICTURE WIDTH HEIGHT light|dark SCRIPT
"""
import json
import os
import sys

os.environ.update(QT_QPA_PLATFORM='offscreen', QTWEBENGINE_DISABLE_SANDBOX='1',
                  QTWEBENGINE_CHROMIUM_FLAGS='--no-sandbox --disable-gpu --blink-settings=preferredColorScheme='
                                             f'{int(sys.argv[5] == "light")}')

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication


class Page(QWebEnginePage):
  said = []

  def javaScriptConsoleMessage(self, level, message, line, source):
    self.said.append(f'{line}: {message}')


class Requests(QWebEngineUrlRequestInterceptor):
  asked = []

  def interceptRequest(self, info):
    self.asked.append(info.requestUrl().toString())


def main(file, picture, width, height, _, script):
  app = QApplication(sys.argv[:1])
  profile, requests, view = QWebEngineProfile(), Requests(), QWebEngineView()
  profile.setUrlRequestInterceptor(requests)
  view.setPage(Page(profile, view))
  view.resize(int(width), int(height))
  found = {}

  def shoot():
    view.grab().save(picture)
    app.quit()

  def answered(value):
    found.update(value=value, console=Page.said, requests=Requests.asked)
    QTimer.singleShot(500, shoot)
  view.page().loadFinished.connect(lambda ok: view.page().runJavaScript(f'JSON.stringify({script})', answered))
  view.load(QUrl.fromLocalFile(os.path.abspath(file)))
  view.show()
  QTimer.singleShot(60_000, app.quit)
  app.exec()
  print(json.dumps(found), flush=True)
  os._exit(0)  # Qt's own end is not to be waited for


if __name__ == '__main__':
  main(*sys.argv[1:])
