"""What must hold of a run directory at every instant, and at the end.

Promise: looks at the files alone and computes every hash itself, so that no code under test is
asked whether it was right.
Trap avoided: a directory that is listed while it changes shows no moment that ever was; what looks
wrong is looked at once more before it counts.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARKS = ("intact", "healthy")


@dataclass
class Watch:
    """Remembers what was there at the last look."""

    run: Path
    journal: bytes = b""
    """Whole lines."""
    rewinds: int = 0
    newest: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MARKS, -1))
    """The newest checkpoint with each mark."""

    def look(self) -> None:
        """Raises AssertionError where a promise is broken."""
        try:
            self._look()
        except AssertionError:
            self._look()

    def _look(self) -> None:
        journal = _whole_lines(self.run / "journal.jsonl")
        assert journal.startswith(self.journal), "the journal was changed where it was written"
        entries = entries_of(journal)
        newest = dict.fromkeys(MARKS, -1)
        for directory in sorted((self.run / "checkpoints").glob("step-*")):
            for mark in _verified_marks(directory):
                newest[mark] = max(newest[mark], int(directory.name.removeprefix("step-")))
        rewinds = [entry for entry in entries if entry["kind"] == "Rewound"]
        floor = min(
            [self.newest["intact"], *(int(r["detail"]["to_step"]) for r in rewinds[self.rewinds :])]
        )
        assert newest["intact"] >= floor, f"P8: intact {self.newest} → {newest}"
        assert newest["healthy"] >= self.newest["healthy"], f"P8: {self.newest} → {newest}"
        self.journal, self.rewinds, self.newest = journal, len(rewinds), newest


def entries_of(journal: bytes) -> list[dict[str, Any]]:
    """The entries; each is whole and follows the one before."""
    entries = [json.loads(line) for line in journal.splitlines()]
    assert [entry["sequence"] for entry in entries] == list(range(len(entries)))
    return entries


def leftovers(run: Path) -> list[str]:
    """What is half written or half deleted."""
    return sorted(str(path.relative_to(run)) for path in run.rglob(".*"))


def result(run: Path) -> dict[str, Any]:
    """All that two runs of the same spec must have in common, weights by their hashes."""
    newest = max((run / "checkpoints").glob("step-*"))
    counters = json.loads((newest / "counters.json").read_text())
    report = json.loads((run / "finished.json").read_text())["report"]
    entries = entries_of(_whole_lines(run / "journal.jsonl"))
    weights = [run / "export" / "model.safetensors", *newest.glob("*.safetensors")]
    return {
        **{str(path.relative_to(run)): _sha256(path) for path in sorted(weights)},
        **{name: counters[name] for name in ("step", "tokens", "position", "skipped_positions")},
        **{name: report[name] for name in ("loss", "validation_loss", "skipped_steps", "rewinds")},
        "rewound": [
            (entry["step"], entry["detail"]["to_step"], entry["detail"]["to_position"])
            for entry in entries
            if entry["kind"] == "Rewound"
        ],
        "skipped": sorted(e["detail"]["position"] for e in entries if e["kind"] == "Skipped"),
        "rejected": [
            entry["detail"]["why"]
            for entry in entries
            if entry["kind"] == "Rejected" and not entry["detail"]["why"].startswith("abandoned")
        ],
        "finished": any(entry["kind"] == "Finished" for entry in entries),
    }


def _verified_marks(directory: Path) -> list[str]:
    """The marks of a checkpoint, whose every byte is as its manifest says."""
    try:
        marks = [mark for mark in MARKS if (directory / f"{mark}.json").exists()]
        if not marks:
            return []
        manifest = json.loads((directory / "manifest.json").read_bytes())
        sha256 = _sha256(directory / "manifest.json")
        for mark in marks:
            of = json.loads((directory / f"{mark}.json").read_bytes())["manifest_sha256"]
            assert of == sha256, f"{directory.name} is marked {mark}, with another manifest"
        for name, entry in manifest["files"].items():
            assert _sha256(directory / name) == entry["sha256"], f"{directory.name}/{name} broken"
    except FileNotFoundError as error:
        assert not directory.exists(), f"{error.filename} is missing in a marked checkpoint"
        return []
    return marks


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
