"""Load, run, check and save tokenizers, for every stage; `tokenizer/` trains them.

config.py     TokenizerConfig and the default vocabulary size
tokenizer.py  Tokenizer (SentencePiece)
bpe.py        BytePairEncoder: the same ids many times faster, in C++ (cpp/)
fast.py       FastTokenizer: the same interface over a tokenizer.json
load.py       load_tokenizer: the tokenizer of a directory, of either class
stream.py     StreamDecoder: decodes ids one by one and never returns half a character
save.py       save_tokenizer: writes the files that transformers reads
gate.py       check: round-trips hostile strings through a tokenizer
"""
