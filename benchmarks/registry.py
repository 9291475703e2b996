"""Every benchmark that `python -m benchmarks` runs: what it measures, what it needs, how long it takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """`module` below benchmarks/; `arguments` may hold {data}. `json`: it takes --out and writes `name`.json itself."""

    name: str
    measures: str
    minutes: float
    arguments: tuple[str, ...] = ()
    data: bool = False  # needs --data: imdb/, sst2/ and shakespeare/
    peers: tuple[str, ...] = ()  # modules that it compares with where they are installed
    checkouts: tuple[str, ...] = ()  # variables that name a checkout of a peer
    module: str = ""
    json: bool = True

    @property
    def command(self) -> str:
        return f"benchmarks.{self.module or self.name}"


DATA = ("--data", "{data}")
BENCHMARKS = (
    Benchmark("encoding", "MB/s, ids equal to SentencePiece's", 12, DATA, True, ("tokenizers", "tiktoken")),
    Benchmark("shakespeare", "bits per byte of tinyshakespeare after 180 s", 10, DATA, True),
    Benchmark(
        "shakespeare-time",
        "time to the bits per byte of nanoGPT's CPU recipe",
        15,
        (*DATA, "--reach", "2.739"),
        True,
        checkouts=("NANOGPT",),
        module="shakespeare",
    ),
    Benchmark(
        "shakespeare-characters-time",
        "the same with nanoGPT's characters and context",
        20,
        (*DATA, "--reach", "2.739", "--characters"),
        True,
        checkouts=("NANOGPT",),
        module="shakespeare",
    ),
    Benchmark(
        "reviews", "bits per byte of reviews after 300 s", 45, DATA, True, ("transformers",), checkouts=("NANOGPT",)
    ),
    Benchmark("budget", "when budgets end; bits per byte falls with each", 20, DATA, True),
    Benchmark("decoding", "tokens/s, one text at a time and sixteen", 15, peers=("transformers", "llama_cpp")),
    Benchmark("startup", "seconds to the first token and the first step", 3, peers=("transformers",)),
    Benchmark(
        "training",
        "training tokens/s and peak memory at equal sizes",
        25,
        ("main",),
        peers=("transformers",),
        checkouts=("NANOGPT", "NANOCHAT"),
    ),
    Benchmark(
        "masked",
        "masked-LM loss in a third of the Trainer's time",
        30,
        ("main", "{data}/imdb/unsup.jsonl.gz"),
        True,
        ("transformers",),
    ),
    Benchmark("profile", "where a training step spends its time", 2, json=False),
    Benchmark("memory", "peak memory, predicted and measured", 10, ("table",), json=False),
    Benchmark("parallel", "losses of two processes and of one", 15, json=False),
    Benchmark("elastic", "losses when stage, ranks and precision change on the way", 10, json=False),
    Benchmark("saving", "share of the training that saving takes", 5, json=False),
    Benchmark("parity", "logits and gradients beside torch and transformers", 3, json=False),
    Benchmark(
        "sst2",
        "SST-2 accuracy after pretraining, beside TF-IDF",
        25,
        ("{data}/sst2", "{data}/imdb/unsup.jsonl.gz", "--folder", "{out}/sst2"),
        True,
        json=False,
    ),
)
