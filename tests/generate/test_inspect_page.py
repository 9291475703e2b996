"""The page of `python -m generate inspect`: content, safety, errors, and a run in a browser."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html import escape

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from generate.__main__ import main
from generate.inspection.collect import inspect_text, write_inspection
from generate.inspection.page import rounded, token_text
from mini_llm.model import CausalLM, load_model, save_model
from mini_llm.tokenization.fast import FastTokenizer
from tests.families import make_config
from tests.generate.inspected_models import CASES, TEXT, make_model, save

HOSTILE = "</script><script>alert(1)</script><!-- <img src=http://evil/x.png onerror=alert(2)> & \u202e\x07"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


@pytest.fixture
def directory(tokenizer, tmp_path):
    """directory(family, head, ...): a tiny random model with its tokenizer."""
    return lambda *kind, name="model", **changes: save(tmp_path / name, tokenizer, *kind, **changes)


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """call(*arguments) -> (exit code, standard error), in tmp_path"""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        return ended.value.code or 0, capfd.readouterr().err

    return run


def read_page(path):
    """The data of a page and, for each of its stacks, the weights as its script computes them."""
    html = path.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    packed = re.search(r'id="weights">(.*?)</script>', html, re.S)[1]
    values = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(packed))), dtype=torch.uint8).float() ** 2
    weights = []
    for maps in data["maps"]:
        size = torch.Size(maps["shape"]).numel()
        one, values = values[:size].view(maps["shape"]), values[size:]
        weights.append(one / one.sum(-1, keepdim=True))
    assert not len(values)
    return data, weights


@pytest.mark.parametrize(("family", "head"), CASES)
def test_the_page_holds_the_weights_of_the_model(family, head, directory, tmp_path):
    seen = write_inspection(directory(family, head), TEXT, tmp_path / "page.html")
    data, weights = read_page(tmp_path / "page.html")
    for shown, maps in zip(weights, seen.maps, strict=True):
        assert (shown - maps.weights).abs().max() < 0.005
        if maps.name == "Decoder" or seen.model.config.causal:
            assert shown.triu(1).eq(0).all()
    assert [maps["entropy"] for maps in data["maps"]] == [rounded(maps.entropy, 3) for maps in seen.maps]
    assert (data["lens"] is None) == (head == "classifier")
    assert (data["decision"] is None) == (head != "classifier")


def test_text_labels_and_names_are_never_executed_or_fetched(directory, tmp_path):
    path = directory("qwen3", "classifier", name="a&b <script>alert(3)<", id2label={0: HOSTILE, 1: "b"})
    write_inspection(path, HOSTILE, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    tags = re.findall(r"<(script|img|link|iframe|object|embed|base)\b([^>]*)>", html)
    assert [attributes.strip() for _, attributes in tags] == [
        'type="application/json" id="data"',
        'type="text/plain" id="weights"',
        "",
    ]
    assert "a&amp;b &lt;script&gt;alert(3)&lt;" in html
    data, _ = read_page(tmp_path / "page.html")
    assert HOSTILE in [label["name"] for label in data["decision"]["labels"]]
    assert "default-src 'none'" in html and not re.search(r'(src|href)="', html)


@pytest.mark.parametrize("text", ["def <mask>(x): return <mask>", "def <mask>", "def one"])
def test_masks_are_numbered_and_filled_in(text, directory, tmp_path):
    seen = write_inspection(directory("bert", "masked"), text, tmp_path / "page.html")
    html, (data, _) = (tmp_path / "page.html").read_text(), read_page(tmp_path / "page.html")
    count, ids = text.count("<mask>"), seen.sequences["text"]
    assert ('id="masks"' in html) == (count > 0)
    shown = [data["words"][str(key)] for key in data["sequences"]["text"]]
    names = ["<mask>"] if count == 1 else [f"<mask> {number}" for number in range(1, count + 1)]
    assert [word for word in shown if "mask" in word] == names
    if count:
        assert [shown[position] for position in data["lens"]["positions"]] == names
        assert seen.lens.expected == [None] * count and not seen.notes
    else:
        assert data["lens"]["expected"] == ids and "<mask>" in seen.notes[0]


def test_tokens_are_distinguishable(tokenizer):
    def shown(text):
        return "|".join(token_text(tokenizer, i) for i in tokenizer.encode(text))

    assert shown("def one") == "def|\u00b7one"
    assert shown("\n\t\x07") == "\u21b5|\u21e5|\\u0007"
    assert shown("\u202e") == "<0xE2>|<0x80>|<0xAE>"
    assert [token_text(tokenizer, i) for i in (1, 383)] == ["<s>", "<unused 383>"]


def foreign(kind, directory):
    texts = [TEXT, "unbelievable words in a row", "caf\u00e9 \u2192"] * 3
    if kind == "byte-level":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    else:
        backend = Backend(models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials)
    backend.train_from_iterator(texts, trainer)
    backend.save(str(directory / "tokenizer.json"))
    model_type = "bert" if kind == "WordPiece" else "gpt2"
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return FastTokenizer.load(directory)


@pytest.mark.parametrize(
    ("kind", "family", "head"), [("byte-level", "gpt2", "causal"), ("WordPiece", "bert", "masked")]
)
def test_foreign_tokenizers(kind, family, head, tmp_path):
    theirs = foreign(kind, tmp_path)
    seen = inspect_text(make_model(family, head), theirs, "def one \u2192 [MASK]")
    shown = [token_text(theirs, i) for i in seen.sequences["text"]]
    if kind == "byte-level":
        assert "".join(shown).startswith("def\u00b7one\u00b7\ufffd")
        assert len(seen.lens.positions) == len(shown)
    else:
        assert shown[0] == "[CLS]" and shown[-2:] == ["[MASK]", "[SEP]"]
        assert seen.lens.positions == [len(shown) - 2]
        assert any(word.startswith("##") for word in map(theirs.id_to_token, range(theirs.vocab_size)))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "text"], 4, "nowhere: no such directory"),
        (["model", ""], 2, "the text is empty"),
        (["model", "x", "--target", "y"], 2, "--target"),
        (["model", "x", "--out", "no/such/page.html"], 2, "no/such/page.html"),
        (["model", "x", "--out", "."], 2, "is a directory"),
        (["model", "x", "--max-tokens", "1"], 2, "--max-tokens"),
    ],
)
def test_errors_name_what_to_change(arguments, code, message, call, directory):
    directory()
    found, error = call("inspect", *arguments)
    assert found == code and message in error and "Traceback" not in error


def test_damaged_weights_are_an_error_and_write_no_page(call, directory, tmp_path):
    path = directory()
    model = load_model(path)
    model.trunk.blocks[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    save_model(model, path)
    code, error = call("inspect", path, "x")
    assert code == 5 and "NaN" in error and not (tmp_path / "inspect.html").exists()


def test_a_tokenizer_of_another_model_is_an_error(call, directory, tmp_path):
    path = directory()
    save_model(CausalLM(make_config("qwen3", "causal", 0)), path)
    code, error = call("inspect", path, "x")
    assert code == 4 and "they do not match" in error


def test_the_page_of_a_run_is_written_into_the_run(call, directory, tmp_path):
    path = directory()
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    path.rename(run / "model")
    (run / "config.yaml").touch()
    checkpoint = run / "checkpoints" / "best-00000001" / "model"
    shutil.copytree(run / "model", checkpoint)
    for model in (run, run / "model", checkpoint):
        assert call("inspect", model, "def")[0] == 0
        assert (run / "inspect.html").exists() and not list(tmp_path.glob("*.html")), model
        (run / "inspect.html").unlink()


def test_inspect_is_a_command_and_dot_slash_inspect_a_directory(call, directory, tmp_path):
    path = directory(name="inspect")
    assert call("./inspect", "def", "--max-new-tokens", "2")[0] == 0
    assert not (tmp_path / "inspect.html").exists()
    code, error = call("inspect", "inspect", "def")
    assert code == 0 and "inspect.html" in error and (tmp_path / "inspect.html").exists()
    assert path.is_dir()


def browse(page, fragment, profile, *flags):
    """The page as Chromium leaves it: (document, what it logged)."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=10000"]
    command += ["--enable-logging=stderr", "--dump-dom", *flags, f"{page.as_uri()}#{fragment}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    document = re.sub(r"<(script|style)\b.*?</\1>", "", result.stdout, flags=re.S)
    return document, "\n".join(line for line in result.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("family", "head"), [("qwen3", "causal"), ("bert", "masked"), ("t5", "seq2seq"), ("gpt2", "classifier")]
)
def test_the_page_runs_in_a_browser(family, head, directory, tmp_path):
    page = tmp_path / "page.html"
    labels = {"id2label": {0: HOSTILE, 1: "b"}} if head == "classifier" else {}
    seen = write_inspection(directory(family, head, **labels), HOSTILE, page)
    document, log = browse(page, "layer=2&head=3&token=2&column=1", tmp_path / "profile")
    assert 'data-state="drawn"' in document and not log, log
    maps = seen.maps[0]
    layers, heads, queries, _ = maps.weights.shape
    assert document.count('class="map"') == 1
    assert len(re.findall(r"<button [^>]*title=\"Layer", document)) == layers * heads
    assert f"{maps.name}: layer 2, head 3" in document
    shown = maps.weights[1, 2, 1]
    assert re.search(rf"looks at .*: {100 * shown.max():.0f} %" if shown.max() > 0.1 else "looks at", document)
    assert document.count('class="token') >= queries
    if head == "classifier":
        assert document.count("<button") >= layers * heads + 2 * queries + 2
    else:
        assert document.count("aria-selected=") == len(seen.lens.positions) * len(seen.lens.ids)
    assert "<script>alert" not in document


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_fills_masks_and_the_width_of_the_window(directory, tokenizer, tmp_path):
    page = tmp_path / "page.html"
    seen = write_inspection(directory("bert", "masked"), "def <mask>(x): return <mask>", page)
    measure = """<script>const wait = setInterval(() => {
  if (document.documentElement.dataset.state !== "drawn") return;
  clearInterval(wait);
  const right = (name) => Math.round(document.querySelector(name).getBoundingClientRect().right);
  const { clientWidth, scrollWidth } = document.documentElement;
  const sizes = [clientWidth, scrollWidth, right("body"), right(".closeup"), right(".heads")];
  document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: sizes.join(" ") }));
}, 20);</script>"""
    html = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    page.write_text(html.replace("</body>", f"{measure}</body>"))
    for width in (1900, 1300, 600):
        document, log = browse(page, "", tmp_path / "profile", f"--window-size={width},900")
        assert not log, log
        window, reach, body, closeup, heads = map(int, re.search(r'id="told">(.*?)</pre>', document)[1].split())
        assert width - 20 <= window == reach == body, "it fills the window and does not scroll sideways"
        assert closeup > 0.9 * width and (heads < 0.5 * width or width < 1200)
    filled = re.findall(r'class="token filled[^>]*>(.*?)</button>', document)
    best = [token_text(tokenizer, i) for i in seen.lens.ids[-1, :, 0].tolist()]
    assert [escape(word, quote=False) for word in best] == filled
    assert document.count("<h3>&lt;mask&gt; ") == 2


# What a person does: point at the second token and at the map, walk from the first head with the arrow keys.
HAND = """
const wait = setInterval(() => {
  if (document.documentElement.dataset.state !== "drawn") return;
  clearInterval(wait);
  const read = () => document.querySelector("#attention .readout").textContent;
  const [first] = document.querySelectorAll(".heads button");
  first.focus();
  for (const key of ["ArrowDown", "ArrowRight"]) {
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  }
  const told = [document.querySelector("#head").textContent];
  document.querySelectorAll(".queries .token")[1].dispatchEvent(new PointerEvent("pointerenter"));
  told.push(read());
  const map = document.querySelector(".map canvas").getBoundingClientRect();
  const at = { clientX: map.right - 6, clientY: map.bottom - 6, bubbles: true };
  document.querySelector(".map canvas").dispatchEvent(new PointerEvent("pointermove", at));
  told.push(read());
  document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: told.join("|") }));
}, 20);
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_pointer_and_arrow_keys_show_what_a_token_attends_to(directory, tmp_path):
    page = tmp_path / "page.html"
    seen = write_inspection(directory("bert", "masked"), "def one", page)
    html = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    page.write_text(html.replace("</body>", f"<script>{HAND}</script></body>"))
    document, log = browse(page, "layer=1&head=1", tmp_path / "profile")
    assert not log, log
    head, token, cell = re.search(r'id="told">(.*?)</pre>', document, re.S)[1].split("|")
    assert head == "Attention: layer 2, head 2"
    weights = seen.maps[0].weights[1, 1]
    assert "(2) looks at " in token and f"({weights[1].argmax() + 1}): " in token
    last = len(weights)
    shown = int(re.search(rf"\({last}\) looks at .* \({last}\): (\d+)", cell)[1])
    assert abs(shown - 100 * weights[-1, -1].item()) < 1
