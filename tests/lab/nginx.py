"""nginx in a namespace: a web server that is up to any load that two cores can make."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyciliumlib.lab.processes import Spawner, terminate
from pyciliumlib.net import NetNS

PORT: Final = 8088
_PATIENCE: Final = 20.0
_CONFIG: Final = """
daemon off; user root; worker_processes 1; worker_rlimit_nofile 20000;
pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 18000; }}
http {{
  access_log off; keepalive_timeout 300; keepalive_requests 1000000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen {port} backlog=4096; listen [::]:{port} backlog=4096;
    location / {{ return 200 "{name}\\n"; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(spawner: Spawner, netns: NetNS, name: str, folder: Path) -> Iterator[None]:
    """A server at port 8088 of `netns` that answers every request with its name."""
    folder.mkdir()
    config, log = folder / "nginx.conf", folder / "error.log"
    config.write_text(_CONFIG.format(folder=folder, port=PORT, name=name))
    process: subprocess.Popen[bytes] = spawner.spawn(netns, ["nginx", "-e", log, "-c", config])
    try:
        deadline = time.monotonic() + _PATIENCE
        while not (folder / "pid").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        terminate([process])
