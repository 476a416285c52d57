"""``make run``, as a user runs it."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "analyse_penguins.py"
# These would choose another backend than the embedded one.
BACKEND = {"E2B_API_KEY", "RINGFENCE_URL", "RINGFENCE_API_KEY", "RINGFENCE_BACKEND", "RINGFENCE_TEMPLATE"}


@pytest.mark.timeout(900)  # the first one builds the template
def test_the_example_analyses_draws_and_leaves_nothing(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in BACKEND}

    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path / "out"], env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "backend: local, isolation" in done.stdout
    assert "dropped 2 rows without measurements and 9 of unknown sex; 333 left" in done.stdout
    assert "body mass: R2 0.862" in done.stdout
    assert "Nothing is left of it" in done.stdout
    charts = sorted((tmp_path / "out").glob("*.png"))
    assert [chart.stem for chart in charts] == ["draw_bills", "draw_body_mass", "draw_prediction"]
    for chart in charts:
        width, height = struct.unpack(">II", chart.read_bytes()[16:24])
        assert chart.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and width > 300 and height > 200
    clean = (tmp_path / "out" / "penguins_clean.csv").read_text().splitlines()
    assert len(clean) == 334 and clean[0].startswith("species,island,")
