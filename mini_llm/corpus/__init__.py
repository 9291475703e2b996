"""Documents in, token files out.

    config.py       CorpusConfig and SourceConfig: what to read, how to split it
    documents.py    iter_documents: the distinct documents of a part, each of bounded size
    report.py       ReadReport: counts of what reading did
    sources.py      one source -> documents: the built-in corpus, text files, folders, globs, tables, datasets
    tables.py       iter_rows: CSV, TSV, JSON, JSONL, Parquet and Hugging Face datasets, row by row
    text.py         bytes -> text: compression, byte order marks, UTF-16, invalid UTF-8, binary files
    paths.py        what a source's path names
    hub.py          Hugging Face datasets, by name or saved to disk
    stdlib.py       the built-in corpus: the standard library of the running Python
    hashes.py       an exact set of document hashes in 16 bytes each
    fingerprint.py  what a corpus holds, by content
    shards.py       writing token shards that survive a kill
    tokens.py       TokenStore: reading them
    store.py        build_store: a corpus and a tokenizer -> token stores, reused when nothing changed

Nothing here imports torch or a stage; `datasets` and `pyarrow` are imported where they are used.
"""
