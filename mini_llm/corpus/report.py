"""Counts from reading a corpus that a user should see before training on it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from mini_llm.corpus.encoding import suggest_encoding


@dataclass
class ReadReport:
    """Counts from one pass over a corpus; `str()` gives one paragraph. Lists of names keep only the first five."""

    files: int = 0
    documents: int = 0  # documents yielded, counting repeats by weight
    bytes: int = 0  # UTF-8 bytes of the text yielded
    duplicates: int = 0  # documents dropped: the same text came before
    overlap: int = 0  # documents dropped: the same text is in the other part
    unchosen: int = 0  # documents dropped by a weight below 1
    empty: int = 0  # documents, rows and files without text
    cut: int = 0  # documents split because of their length
    replaced_bytes: int = 0  # bytes invalid in the file's encoding, replaced by U+FFFD
    replaced_files: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    skipped_binary: int = 0
    binary: list[str] = field(default_factory=list)
    raw_bytes: int = 0  # bytes read from files, before decompression
    notes: list[str] = field(default_factory=list)
    option: str = "encoding"  # the setting that names the encoding of the source that is being read
    options: dict[str, str] = field(default_factory=dict)  # file in `replaced` -> option

    def replace(self, name: str, count: int) -> None:
        """Count invalid bytes of one file or dataset."""
        if name not in self.replaced and len(self.replaced) < 5:
            self.replaced_files += 1
            self.replaced[name] = 0
            self.options[name] = self.option
        elif name not in self.replaced:
            self.replaced_files += 1
        if name in self.replaced:
            self.replaced[name] += count
        self.replaced_bytes += count

    def skip_binary(self, name: str) -> None:
        self.skipped_binary += 1
        if len(self.binary) < 5:
            self.binary.append(name)

    def note(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def advice(self) -> str:
        """What to do about the invalid bytes of the first file that has some; empty without."""
        name = next(iter(self.replaced), None)
        return "" if name is None else suggest_encoding(name, self.options[name])

    def as_dict(self) -> dict[str, Any]:
        """The counts, for a JSON file."""
        return {name: value for name, value in asdict(self).items() if name not in ("notes", "option", "options")}

    def __str__(self) -> str:
        lines = [f"{self.documents:,} documents, {self.bytes / 1e6:,.1f} MB of text"]
        if self.files:
            lines.append(f"from {self.files:,} file{'s' * (self.files > 1)}")
        dropped = [
            (self.duplicates, "exact duplicates"),
            (self.overlap, "documents that are also in the other part"),
            (self.unchosen, "documents by weight"),
            (self.empty, "empty documents"),
        ]
        if any(count for count, _ in dropped):
            lines.append("dropped " + ", ".join(f"{count:,} {what}" for count, what in dropped if count))
        if self.cut:
            lines.append(f"split {self.cut:,} long documents")
        if self.replaced_bytes:
            names = ", ".join(f"{name}: {count:,}" for name, count in self.replaced.items())
            lines.append(f"replaced {self.replaced_bytes:,} invalid bytes in {self.replaced_files:,} files ({names})")
            lines.append(self.advice())
        if self.skipped_binary:
            lines.append(f"skipped {self.skipped_binary:,} binary files ({', '.join(self.binary)})")
        return "; ".join([*lines, *self.notes])
