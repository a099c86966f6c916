"""The stored records: none made twice, none half written, none of another notebook."""

import benchmark
import nbformat
import pytest
from benchmark import ABLATION, EDITS, edited, is_stored, wanted_runs
from notebook import fingerprint, read_notebook, settings_of
from report import changes, grouped, others_table

RUN = {"recipe": "quick", "seed": 3}


@pytest.fixture
def record():
    """What is stored of a run of the recipe quick with seed 3, as far as it matters."""
    return RUN | {
        "name": "quick",
        "fingerprint": fingerprint(),
        "settings": settings_of("quick", {}),
        "overrides": {},
        "evaluated_on": "test",
        "epochs": 1,
    }


@pytest.fixture
def short_record(record):
    """What is stored of a short run on the hold-out, for the ablation."""
    name, run = next(wanted_runs([], [], ablation=True))
    short = {"epochs": run["epochs"]}
    shown = {"name": name, "evaluated_on": "holdout"}
    settings = settings_of(run["recipe"], run["overrides"]) | short
    shown["evaluation_examples"] = run["holdout"]
    return record | run | shown | {"settings": settings}


def test_a_short_run_counts_for_the_ablation_alone(short_record):
    name, run = next(wanted_runs([], [], ablation=True))
    assert is_stored(name, run, [short_record])
    assert grouped([short_record], "holdout") == {name: [short_record]}
    tested = short_record | {"evaluated_on": "test", "name": "assignment"}
    assert grouped([tested], "test") == {}
    assert not is_stored("assignment", {"recipe": "assignment", "seed": 0}, [tested])


def test_each_change_is_compared_to_the_same_seed_and_the_worst_comes_first():
    accuracies = {  # of seeds 0 and 1; a record that has no partner counts for nothing
        "as it is": (0.99, 0.98),
        "one view instead of five": (0.985, 0.985, 0.5),
        "a rate that does not fall": (0.98,),
    }
    records = []
    for name, run in wanted_runs([], [], ablation=True):
        values = dict(enumerate(accuracies.get(name, ())))
        settings = settings_of(run["recipe"], run["overrides"])
        if run["seed"] in values:
            records.append(
                run
                | {"name": name, "fingerprint": fingerprint()}
                | {"settings": settings | {"epochs": run["epochs"]}}
                | {"evaluated_on": "holdout", "accuracy": values[run["seed"]]}
            )
    (first, lost), (second, same) = changes(records)
    assert (first, second) == ("a rate that does not fall", "one view instead of five")
    assert lost == pytest.approx([-1])
    assert same == pytest.approx([-0.5, 0.5])
    without_base = [record for record in records if record["name"] != "as it is"]
    assert changes(without_base) == []


def test_a_finished_run_is_not_made_again(record):
    assert is_stored("quick", RUN, [record])
    assert not is_stored("quick", RUN, [])


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "0"},
        {"settings": {}},
        {"seed": 4},
        {"name": "slow"},
        {"recipe": "gone"},
        {"overrides": {"views": False}},
        {"edits": {"an old text": "a new one"}},
        {"evaluated_on": "holdout"},
    ],
    ids=str,
)
def test_another_run_does_not_stand_for_it(record, other):
    assert not is_stored("quick", RUN, [record | other])


def test_a_table_shows_the_fixed_seeds_of_this_notebook_alone(record):
    others = [record | {"fingerprint": "0"}, record | {"seed": 77}]
    assert grouped([record, *others], "test") == {"quick": [record]}
    assert grouped([record], "holdout") == {}


def test_other_seeds_stand_beside_the_claim_and_are_no_part_of_it(record):
    def trained(seed, accuracy):
        return record | {"seed": seed, "accuracy": accuracy, "training_seconds": 1}

    claim = [trained(0, 0.99), trained(1, 0.98)]
    assert others_table(claim) == "None were trained yet."
    others = [trained(77, 0.975), trained(78, 0.981)]
    row = "| `quick` | 98.50 ± 0.71 | 97.800 | 97.50 | 2 | -1.0 |"
    assert row in others_table([*claim, *others])


def test_records_are_written_whole_or_not_at_all(record, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.json")
    benchmark.write_records([record])
    assert benchmark.read_records() == [record]
    with pytest.raises(TypeError):
        benchmark.write_records([record, {"accuracy": object()}])
    assert benchmark.read_records() == [record]
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


def test_the_ablation_never_touches_the_test_images():
    runs = list(wanted_runs([], [], ablation=True))
    assert {name for name, _ in runs} == set(ABLATION)
    assert all(parameters["holdout"] > 0 for _, parameters in runs)


def test_an_edited_copy_differs_where_it_should_and_nowhere_else():
    for edits in EDITS.values():
        pairs = zip(read_notebook().cells, edited(edits).cells, strict=True)
        changed = [(a.source, b.source) for a, b in pairs if a.source != b.source]
        assert changed
        for before, after in changed:
            expected = before
            for old, new in edits.items():
                expected = expected.replace(old, new)
            assert expected == after
    with pytest.raises(ValueError, match="not enough values"):
        edited({"a text that no cell holds": ""})


def test_the_fingerprint_is_of_statements_and_the_same_for_every_python(tmp_path):
    def hashed(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[-1].metadata["tags"] = ["report"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
        return fingerprint(tmp_path / "n.ipynb")

    decorated = "@decorator\ndef f(x: int):\n    return f'{x:.2f} #'"
    code = hashed(decorated, "shown = 1")
    assert code == "ee65b62585127604"  # on one Python, and so on all
    assert code == hashed(f"{decorated}  # why\n\n# and how", "shown = 2")
    assert code == hashed(f"{decorated}\nRECIPES = {{}}", "")
    for changed in ("decorator", "int", "2f", "#"):
        assert code != hashed(decorated.replace(changed, "z"), "shown = 1")
