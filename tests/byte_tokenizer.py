"""Tokenizers with one token per byte: one for generation, one that only fills a token store."""

import codecs
import os
import signal

import numpy as np

BOS, EOS = 1, 2
FIRST_BYTE, VOCABULARY = 7, 263


class ByteTokenizer:
    """Ids 0 to 6 are special, then one id per byte."""

    vocab_size = VOCABULARY
    unk_id, bos_id, eos_id, pad_id, mask_id, cls_id, sep_id = range(7)
    frame, adds_bos, remark = None, True, None

    def encode(self, text):
        return [b + FIRST_BYTE for b in text.encode()]

    def decode(self, ids):
        return bytes(i - FIRST_BYTE for i in ids if i >= FIRST_BYTE).decode(errors="replace")

    def stream(self):
        return ByteStream()


class ByteStream:
    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.decoder.decode(bytes([token - FIRST_BYTE]) if token >= FIRST_BYTE else b"")

    def flush(self):
        return self.decoder.decode(b"", final=True)


class ByteEncoder:
    """Encodes batches: an id is a UTF-8 byte plus `shift`. Kills its process after `limit` texts."""

    bos_id: int | None = BOS
    eos_id: int | None = EOS

    def __init__(self, vocab_size=300, shift=3, limit=None):
        self.vocab_size, self.shift, self.limit = vocab_size, shift, limit
        self.sha256 = f"bytes-{vocab_size}-{shift}"
        self.texts: list[str] = []

    @property
    def document_frame(self):
        return [i for i in [self.bos_id] if i is not None], [i for i in [self.eos_id] if i is not None]

    def encode_batch(self, texts):
        self.texts += texts
        if self.limit is not None and len(self.texts) > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.shift for text in texts]
