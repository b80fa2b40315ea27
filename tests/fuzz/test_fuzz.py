"""Every parser, fuzzed for a moment: libFuzzer where clang is (CI has it), and everywhere the corpus with gcc."""

import pytest

from tests.fuzz import run

EXECUTIONS = 20_000  # of each parser; `make fuzz` does millions
CORPUS_BYTES_MAX = 300_000
CORPUS_FILES_MAX = 60  # of each parser


@pytest.fixture(scope="module")
def starts() -> dict[str, list[str]]:
    if run.clang() is None or not run.has_atheris():
        pytest.skip("needs clang with libFuzzer, and atheris: tools/setup --fuzz")
    return run.build_fuzzers(list(run.PARSERS.values()))


@pytest.mark.parametrize("name", run.PARSERS)
def test_fuzzed_for_a_moment(name: str, starts: dict[str, list[str]]) -> None:
    result = run.run_parser(run.PARSERS[name], starts[name], [f"-runs={EXECUTIONS}"], f"{EXECUTIONS}", seed=1)
    assert not result.failed, result.crashes
    assert result.executions >= EXECUTIONS


def test_the_corpus_without_libfuzzer() -> None:
    assert run.replay(list(run.PARSERS.values()), [], "address,undefined") == 0


@pytest.mark.parametrize("name", run.PARSERS)
def test_the_corpus_is_there_and_small(name: str) -> None:
    files = list(run.PARSERS[name].corpus.iterdir())
    assert 5 <= len(files) <= CORPUS_FILES_MAX
    assert max(path.stat().st_size for path in files) <= run.PARSERS[name].bytes_max


def test_all_of_the_corpus_is_small() -> None:
    files = [path for path in (run.HERE / "corpus").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < CORPUS_BYTES_MAX


def test_every_harness_is_known() -> None:
    found = {path.stem.removeprefix("fuzz_") for path in run.HERE.glob("fuzz_*.[cp]*")}
    assert found == set(run.PARSERS)
