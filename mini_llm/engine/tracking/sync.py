"""`python -m mini_llm sync`: send to Weights & Biases what runs have recorded offline, each run as one W&B run."""

import base64
import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError, UserError
from mini_llm.engine.run.files import read_json, write_json
from mini_llm.engine.run.liveness import is_live
from mini_llm.engine.tracking.merge import Launch, launches_of, merge
from mini_llm.engine.tracking.wandb_runs import variable

# Seconds for the first answer of the server, and for sending one run.
ANSWER_SECONDS, SEND_SECONDS = 15.0, 600.0
# What was sent, in the folder wandb/ of a run: W&B run id -> hash of the launches.
SENT = "sent.json"
_VIEWER = {"query": "query Viewer { viewer { username entity } }", "variables": {}}


@dataclass(frozen=True)
class Server:
    """W&B's server, as this machine is logged in there."""

    url: str
    key: str


def sync_runs(runs: Sequence[Path], again: bool = False, seconds: float = SEND_SECONDS) -> None:
    """Send what has not been sent of each run, and print a line for each. Raises ConfigError and UserError.

    again: send also what has been sent; the rows replace those there. seconds: the time limit for one W&B run.
    """
    waiting = []
    for run in runs:
        for run_id, launches in launches_of(run).items():
            if again or _is_waiting(run, run_id, launches):
                waiting.append((run, run_id, launches))
    if not waiting:
        print("nothing to send")
        return
    live = [run for run, _, _ in waiting if is_live(run)]
    if live:
        raise ConfigError(f"{live[0]} is still running: send it when it has ended")
    server = find_server()
    check_server(server)
    for run, run_id, launches in waiting:
        _send(run, run_id, launches, server, seconds)
        count = f"{len(launches)} launches" if len(launches) > 1 else "1 launch"
        print(f"{run}: sent as {launches[0].run.project}/{run_id} ({count})")


def find_server() -> Server:
    """The server and the key that W&B's own commands use. Raises ConfigError without a key."""
    try:
        import wandb
        from wandb.sdk.lib import wbauth
    except ImportError as error:
        raise ConfigError(f"W&B cannot be imported ({error}): pip install wandb") from None
    url = str(wandb.setup(settings=wandb.Settings(silent=True)).settings.base_url).rstrip("/")
    try:
        auth: Any = wbauth.authenticate_session(host=url, source="sync", prompt=False)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the key for {url} cannot be used ({reason}): run `wandb login --relogin`") from None
    finally:
        wandb.teardown()  # W&B has started its service process
    key = getattr(auth, "api_key", None)
    if not key:
        raise ConfigError(f"there is no key for {url}: run `wandb login`, or set WANDB_API_KEY")
    return Server(url, str(key))


def check_server(server: Server, seconds: float = ANSWER_SECONDS) -> None:
    """Ask the server who we are. W&B itself would repeat a request that fails for an hour.

    Raises ConfigError if the server cannot be reached, fails or refuses the key.
    """
    authorization = base64.b64encode(f"api:{server.key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {authorization}"}
    request = urllib.request.Request(f"{server.url}/graphql", json.dumps(_VIEWER).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            known = (json.load(answer).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(f"{server.url} refuses the key: run `wandb login --relogin`") from None
        raise ConfigError(f"{server.url} fails (HTTP {error.code}): try again later") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{server.url} cannot be reached ({reason}): check the network, then try again") from None
    if not known:
        raise ConfigError(f"{server.url} does not know the key: run `wandb login --relogin`")


def _is_waiting(run: Path, run_id: str, launches: list[Launch]) -> bool:
    """Whether a W&B run has an offline launch, and something that was not sent."""
    return any(launch.offline for launch in launches) and _sent(run).get(run_id) != _fingerprint(launches)


def _sent(run: Path) -> dict[str, Any]:
    found = read_json(run / "wandb" / SENT)
    return found if isinstance(found, dict) else {}


def _fingerprint(launches: list[Launch]) -> str:
    digest = hashlib.sha256()
    for launch in launches:
        for record in launch.records:
            digest.update(record.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _send(run: Path, run_id: str, launches: list[Launch], server: Server, seconds: float) -> None:
    """Send the launches of one W&B run. Raises UserError when W&B does not take them in time."""
    fingerprint = _fingerprint(launches)
    # W&B takes a directory for an offline run by its name.
    merged = run.resolve() / "wandb" / "sync" / f"offline-run-{run_id}"
    shutil.rmtree(merged, ignore_errors=True)
    merge(launches, merged)
    output = _wandb_sync(merged, server, seconds)
    if not list(merged.glob("*.wandb.synced")):
        lines = [line for line in output.splitlines() if line.strip()]
        reason = f": {lines[-1].strip()}" if lines else f" in {seconds:.0f} s"
        raise UserError(f"{run}: W&B has not taken the run{reason}. Nothing is lost: run the same command again")
    shutil.rmtree(merged.parent, ignore_errors=True)
    write_json(run / "wandb" / SENT, {**_sent(run), run_id: fingerprint})


def _wandb_sync(directory: Path, server: Server, seconds: float) -> str:
    """Run `wandb sync` for at most `seconds`, and return its output."""
    own = {"WANDB_API_KEY": server.key, "WANDB_BASE_URL": server.url, "WANDB_ERROR_REPORTING": "false"}
    own |= {"WANDB_DIR": str(directory.parent), "WANDB_CACHE_DIR": str(directory.parent / "cache")}
    own |= {"WANDB_DATA_DIR": str(directory.parent / "data")}
    # Empty variables are an error for W&B; "offline" is no wish of this command.
    environment = {name: value for name, value in os.environ.items() if variable(name) or "WANDB" not in name}
    environment.pop("WANDB_MODE", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "sync", str(directory)],
        env=environment | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return ""
    finally:
        # W&B's service is a process of its own, which would go on trying.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
