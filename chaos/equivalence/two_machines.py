"""Train on two simulated machines (Linux network namespaces) and cut the link between them.

    python -m chaos.equivalence.two_machines            (as root, on Linux)

Two nodes with one process each train with ZeRO 2 and configs/accelerate/two-nodes.yaml, over 10.77.0.1 and 10.77.0.2.
One run is undisturbed. In the other the link goes down during training: both nodes must stop with an error message
within runtime.hang_timeout. Then the link is restored and the same commands run again: losses and weights must be
bit-identical to those of the first run. The exit code is 1 if anything differs, 77 if namespaces are not permitted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from mini_llm.engine.run.jsonl import read_rows

ROOT = Path(__file__).parents[2]
NODES = {"mini-llm-a": "10.77.0.1", "mini-llm-b": "10.77.0.2"}
LINKS = ("mini-llm-va", "mini-llm-vb")
NOT_PERMITTED = 77
HANG_SECONDS = 20
CUT_AT = 60
SETTINGS = [
    *("max_steps=120", "budget=null", "global_batch_size=8", "micro_batch_size=2", "save_every=25", "load_best=false"),
    *("evaluate_every=1000", "sizes.hidden_size=32", "sizes.num_hidden_layers=2", "sizes.num_attention_heads=2"),
    *("sizes.max_position_embeddings=32", "vocab_size=320", "runtime.precision=fp32", "tracking.wandb=disabled"),
    f"runtime.hang_timeout={HANG_SECONDS}s",
]

app = typer.Typer(add_completion=False)


@app.command()
def main(wait: Annotated[int, typer.Option(help="Seconds after which a launch counts as failed.")] = 300) -> None:
    """Train on two simulated machines, cut the link, resume, and compare with an undisturbed run."""
    if shutil.which("ip") is None:
        stop("the `ip` command is missing; install it: apt-get install iproute2")
    try:
        build()
        with tempfile.TemporaryDirectory() as name:
            sys.exit(not show(Path(name), wait))
    finally:
        tear_down()


def show(folder: Path, wait: int) -> bool:
    """Run both and print the comparison; returns whether everything was as expected."""
    (folder / "text.txt").write_text("".join(f"word{i * i % 97} " for i in range(6000)))
    codes, _ = finish(start(folder, "straight"), wait)
    print(f"undisturbed run: exit codes {codes}")
    nodes = start(folder, "cut")
    deadline = time.monotonic() + wait
    while last_step(folder / "runs" / "cut") < CUT_AT:
        if time.monotonic() > deadline or any(node.poll() is not None for node in nodes):
            print(finish(nodes, 0)[1])
            return False
        time.sleep(0.02)
    ip("netns", "exec", "mini-llm-b", "ip", "link", "set", LINKS[1], "down")
    cut = time.monotonic()
    print(f"link cut after step {last_step(folder / 'runs' / 'cut')}")
    codes, said = finish(nodes, wait)
    seconds = time.monotonic() - cut
    print(f"both nodes stopped after {seconds:.0f} s with exit codes {codes}. Their messages:")
    wanted = ("no progress", "DOES NOT ANSWER", "another process of this job")
    for node, text in zip(NODES, said, strict=True):
        lines = [line.strip() for line in text.splitlines() if any(word in line for word in wanted)]
        print("\n".join(f"  {node}: {line[:200]}" for line in lines) or f"  {node}: none")
    ended = all(codes) and all("DOES NOT ANSWER" in text or "another process" in text for text in said)
    link_up(1)
    codes, said = finish(start(folder, "cut"), wait)
    resumed = [line for text in said for line in text.splitlines() if "resuming from step" in line]
    print(f"link restored, same commands: exit codes {codes}; {resumed}")
    rows = [read_rows(folder / "runs" / run / "metrics.jsonl") for run in ("straight", "cut")]
    files = [folder / "runs" / run / "model" / "model.safetensors" for run in ("straight", "cut")]
    same = rows[0] == rows[1] and files[0].read_bytes() == files[1].read_bytes()
    losses = [[row["train/loss"] for row in part if "train/loss" in row] for part in rows]
    verdict = "all losses and weights are bit-identical" if same else "DIFFERENT"
    print(f"last loss: undisturbed {losses[0][-1]:.6f}, cut and resumed {losses[1][-1]:.6f}: {verdict}")
    return ended and bool(resumed) and not any(codes) and same


def start(folder: Path, run: str) -> list[subprocess.Popen]:
    """Start the run on both nodes, each in its own network namespace."""
    nodes = []
    for rank, (node, link) in enumerate(zip(NODES, LINKS, strict=True)):
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "two-nodes.yaml")]
        launch += ["--machine_rank", str(rank), "--main_process_ip", NODES["mini-llm-a"], "-m", "pretrain"]
        command = ["ip", "netns", "exec", node, *launch, "--data", "text.txt", f"run={run}", *SETTINGS]
        # Otherwise gloo uses the address of the host name, which is the same on both nodes.
        own = {"GLOO_SOCKET_IFNAME": link, "TP_SOCKET_IFNAME": link}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **own}
        with (folder / f"{run}-{rank}.out").open("w") as out:
            nodes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT))
        nodes[-1].said = Path(out.name)
    return nodes


def finish(nodes: list[subprocess.Popen], wait: int) -> tuple[list[int], list[str]]:
    """Wait for both nodes; returns (exit codes, outputs). A node still running after `wait` seconds is killed (-9)."""
    deadline = time.monotonic() + wait
    for node in nodes:
        try:
            node.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            node.kill()
    return [node.wait() for node in nodes], [node.said.read_text(errors="replace") for node in nodes]


def last_step(run: Path) -> int:
    return max((row["step"] for row in read_rows(run / "metrics.jsonl")), default=0)


def build() -> None:
    """Create two network namespaces joined by a virtual Ethernet link."""
    tear_down()
    for node in NODES:
        done = subprocess.run(["ip", "netns", "add", node], capture_output=True, text=True)
        if done.returncode:
            stop(f"network namespaces are not permitted here ({done.stderr.strip()}); run as root, outside a sandbox")
        ip("netns", "exec", node, "ip", "link", "set", "lo", "up")
    ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
    for index, (node, link) in enumerate(zip(NODES, LINKS, strict=True)):
        ip("link", "set", link, "netns", node)
        ip("netns", "exec", node, "ip", "addr", "add", f"{NODES[node]}/24", "dev", link)
        link_up(index)


def link_up(index: int) -> None:
    ip("netns", "exec", list(NODES)[index], "ip", "link", "set", LINKS[index], "up")


def tear_down() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        stop(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def stop(reason: str) -> None:
    print(f"two_machines: skipped: {reason}", file=sys.stderr)
    sys.exit(NOT_PERMITTED)


if __name__ == "__main__":
    app()
