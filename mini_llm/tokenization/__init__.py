"""Load, run, check and save tokenizers, for every stage; `tokenizer/` trains them.

config.py     TokenizerConfig and the default vocabulary size
tokenizer.py  Tokenizer (SentencePiece)
bpe.py        BytePairEncoder: the same ids many times faster, in C++ (cpp/)
fast.py       FastTokenizer: the same interface over a tokenizer.json
pipeline.py   completes a tokenizer.json from the other files of its directory, as transformers does
framing.py    text_frame, pair_frame, padding_id: the special tokens around a text
load.py       load_tokenizer: the tokenizer of a directory, of either class
stream.py     StreamDecoder: decodes ids one by one and never returns half a character
unit_stream.py  the same for a tokenizer.json that is not byte-level
save.py       save_tokenizer: writes the files that transformers reads
gate.py       check: round-trips hostile strings through a tokenizer
"""
