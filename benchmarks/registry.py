"""The benchmarks that `python -m benchmarks` runs: what each measures, needs, and how many minutes it takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `arguments` may contain {data} and {out}, the folders given to `python -m benchmarks`.

    With `json`, the command takes --out and writes `name`.json itself.
    """

    name: str
    measures: str
    minutes: float
    arguments: tuple[str, ...] = ()
    data: bool = False  # needs --data: imdb/, sst2/ and shakespeare/
    peers: tuple[str, ...] = ()  # modules to compare with, if installed
    checkouts: tuple[str, ...] = ()  # environment variables with the path of a peer's checkout
    module: str = ""  # the full module name; default: benchmarks.`name`
    json: bool = True

    @property
    def command(self) -> str:
        return self.module or f"benchmarks.{self.name}"


DATA = ("--data", "{data}")
BENCHMARKS = (
    Benchmark("encoding", "MB/s, ids equal to SentencePiece's", 12, DATA, True, ("tokenizers", "tiktoken")),
    Benchmark("shakespeare", "bits per byte of tinyshakespeare after 180 s", 10, DATA, True),
    Benchmark(
        "shakespeare-time",
        "seconds to the bits per byte of nanoGPT's CPU recipe",
        15,
        (*DATA, "--reach", "2.739"),
        True,
        checkouts=("NANOGPT",),
        module="benchmarks.shakespeare",
    ),
    Benchmark(
        "shakespeare-characters-time",
        "the same with nanoGPT's characters and context",
        20,
        (*DATA, "--reach", "2.739", "--characters"),
        True,
        checkouts=("NANOGPT",),
        module="benchmarks.shakespeare",
    ),
    Benchmark(
        "reviews", "bits per byte of reviews after 300 s", 45, DATA, True, ("transformers",), checkouts=("NANOGPT",)
    ),
    Benchmark("budget", "whether runs keep their budget and improve with it", 20, ("main", *DATA), True),
    Benchmark(
        "few_labels",
        "accuracy on reviews with 1,000 labels",
        60,
        (*DATA, "--folder", "{out}/few-labels"),
        True,
        json=False,
    ),
    Benchmark("decoding", "generated tokens/s at batch sizes 1 and 16", 15, peers=("transformers", "llama_cpp")),
    Benchmark("busy", "speed beside other work, and the share of the fair share", 5),
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
    Benchmark("profile", "time of a training step by kind of operation", 2, json=False),
    Benchmark("memory", "peak memory, predicted and measured", 10, ("table",), json=False),
    Benchmark("parallel", "losses of two ranks against one", 15, module="chaos.equivalence.ranks", json=False),
    Benchmark(
        "elastic",
        "losses when ZeRO stage, ranks or precision change during a run",
        10,
        module="chaos.equivalence.elastic",
        json=False,
    ),
    Benchmark("saving", "share of training time spent on saving", 5, json=False),
    Benchmark("parity", "logits and gradients against torch and transformers", 3, json=False),
    Benchmark(
        "sst2",
        "SST-2 accuracy after pretraining, against TF-IDF",
        25,
        ("{data}/sst2", "{data}/imdb/unsup.jsonl.gz", "--folder", "{out}/sst2"),
        True,
        json=False,
    ),
)
