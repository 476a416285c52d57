from pathlib import Path

import pytest

from ringfence.agents import Blob, Chart
from ringfence.agents.report import as_html, complete, write_report
from ringfence.agents.report_run import ReportJob, run_report
from ringfence.core.errors import ConfigurationError

CHARTS = [Chart(f"chart-{number}.png", Blob("image/png", bytes([number]))) for number in (1, 2)]


def test_charts_that_are_not_mentioned_come_last() -> None:
    text = complete("# A\n\n![two](sandbox:/home/user/chart-2.png)", CHARTS)
    assert text.startswith("# A\n\n![two](chart-2.png)\n")
    assert text.endswith("## Further charts\n\n![chart-1.png](chart-1.png)")


def test_an_answer_that_mentions_all_is_left_alone() -> None:
    answer = "![a](chart-1.png) ![b](<chart-2.png>)"
    assert complete(answer, CHARTS) == "![a](chart-1.png) ![b](chart-2.png)"


def test_a_picture_that_there_is_not_is_said_to_be_missing() -> None:
    text = complete("![masses](chart-7.png) ![web](https://example.com/a.png)", CHARTS[:0])
    assert text == "masses (there is no picture `chart-7.png`) [web](https://example.com/a.png)"


@pytest.mark.parametrize(
    "answer",
    [
        "![x](https://example.com/?d=1)",
        "![x][r]\n\n[r]: https://example.com/?d=1",
        "<img src='https://example.com/?d=1'>",
        "![x](https://example.com/a(b)?d=1)",
    ],
)
def test_a_page_loads_nothing_from_elsewhere(answer: str) -> None:
    page = as_html("t", complete(answer, CHARTS), CHARTS, "f")
    assert "<img src='" not in page
    assert 'src="http' not in page
    assert page.count('src="data:image/png;base64,') == 2
    assert "default-src 'none'" in page


def test_nothing_of_the_answer_or_the_task_is_markup() -> None:
    page = as_html("</title><script>", "<script>x</script> [a](javascript:alert(1))", [], "<b>f")
    assert "<script>" not in page
    assert 'href="javascript' not in page
    assert "<b>" not in page


def test_a_report_replaces_its_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "chart-9.png").write_bytes(b"mine")
    write_report(tmp_path, "t", "one", CHARTS, "f")
    report = write_report(tmp_path, "t", "two", CHARTS[:1], "f")
    assert report.markdown.read_text().startswith("two\n")
    assert report.charts == (tmp_path / "chart-1.png",)
    assert (tmp_path / "chart-9.png").read_bytes() == b"mine"


async def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = ReportJob(
        "data_scientist",
        "What is there?",
        (),
        tmp_path / "file" / "report",
        "a-model",
        "http://127.0.0.1:9/v1",
    )
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await run_report(job, environ={})
