"""What the README shows is run as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.peers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_examples(tmp_path: Path) -> None:
    assert EXAMPLES
    shutil.copytree(ROOT / "fixtures" / "llama3.1-mp2", tmp_path / "Llama3.1-8B-Instruct")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(EXAMPLES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "True []" in run.stdout
