import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer forks, and watches memory as Linux counts it")
def test_no_reader_is_upset_by_damaged_files():
    words = [sys.executable, "-m", "tests.fuzz", "--cases", "400", "--seconds", "60"]
    found = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "0 findings" in found.stdout
