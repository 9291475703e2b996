"""Tokenizers as every stage uses them; `tokenizer/` trains them.

config.py     TokenizerConfig and the rule for the vocabulary size
tokenizer.py  Tokenizer (SentencePiece)
bpe.py        BytePairEncoder: the same ids many times faster, in C++ (cpp/)
fast.py       FastTokenizer: the same interface over a tokenizer.json
load.py       load_tokenizer: the tokenizer of a directory, whatever its kind
stream.py     StreamDecoder: ids one by one, text without half characters
save.py       save_tokenizer: the files that transformers reads
gate.py       the strings that a tokenizer must give back unchanged
"""
