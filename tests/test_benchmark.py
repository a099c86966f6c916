"""The stored records: none made twice, none half written, none of another notebook."""

import benchmark
import nbformat
import pytest
from benchmark import (
    ABLATION,
    HELD_OUT,
    HOLDOUT,
    edited,
    edits_of,
    is_stored,
    train,
    wanted_runs,
)
from report import (
    ablation_table,
    changes,
    claimed,
    differences,
    effect,
    held_out,
    plot_ablation,
)
from runner import definitions, fingerprint, read_notebook, settings_of

RUN = {"recipe": "quick", "seed": 3, "overrides": {}}


@pytest.fixture
def record():
    """What is stored of a run of the recipe quick with seed 3, as far as it matters."""
    return RUN | {
        "name": "quick",
        "fingerprint": fingerprint(),
        "settings": settings_of("quick", {}),
        "edits": {},
        "evaluated_on": "test",
        "epochs": 1,
    }


def ablation_records(accuracies):
    """Return records of the ablation with these accuracies, by name and seed."""
    return [
        {key: value for key, value in run.items() if key != "holdout"}
        | {"name": name, "fingerprint": fingerprint(), "edits": edits_of(name)}
        | {"settings": settings_of("assignment", run["overrides"]), "epochs": 20}
        | {"evaluated_on": "holdout", "accuracy": accuracies[name][run["seed"]]}
        | {"one_look_accuracy": accuracies[name][run["seed"]] - 0.001}
        | {"loss": 1 - accuracies[name][run["seed"]]}
        | {"one_look_loss": 1.002 - accuracies[name][run["seed"]]}
        for name, run in wanted_runs([], [], ABLATION)
        if run["seed"] < len(accuracies.get(name, ()))
    ]


def test_each_change_is_compared_to_the_same_seed_and_the_worst_comes_first():
    records = ablation_records({
        "as it is": (0.99, 0.98),
        "pooled once": (0.985, 0.985, 0.5),  # a record without a partner is left out
        "a constant learning rate": (0.98, 0.97),
        "no augmentation": (0.9,),  # nor does one seed show anything
    })  # fmt: skip
    (first, lost), (look, less), (second, same) = changes(held_out(records))
    assert (first, second) == ("a constant learning rate", "pooled once")
    assert lost == pytest.approx([-1, -1])
    assert same == pytest.approx([-0.5, 0.5])
    assert look == "one look instead of three"
    assert less == pytest.approx([-0.1, -0.1])
    assert effect(same) == "+0.000 ± 0.500"
    assert plot_ablation(changes(held_out(records))).startswith(b"\x89PNG")
    assert claimed(records) == {}
    assert changes(held_out([r for r in records if r["name"] != "as it is"])) == []


def test_losses_are_compared_only_where_the_labels_are_the_same():
    records = ablation_records({
        "as it is": (0.99, 0.98),
        "labels not smoothed": (0.98, 0.97),
        "pooled once": (0.985, 0.985),
    })  # fmt: skip
    found = differences(held_out(records), "loss")
    assert found == {
        "pooled once": pytest.approx([0.005, -0.005]),
        "one look instead of three": pytest.approx([0.002, 0.002]),
    }
    assert "| labels not smoothed | -1.000 ± 0.000 |  |" in ablation_table(
        changes(held_out(records)), found
    )


def test_a_training_is_stored_as_the_notebook_made_it(small_run, small_data):
    whole, _, _ = small_run
    code, stored = train("as it is", {"epochs": 2, "data_path": str(small_data)})
    assert code == fingerprint()
    assert stored["settings"] == whole["settings"]
    assert stored["loss"] == whole["loss"]
    assert stored["one_look_loss"] == whole["history"]["val_loss"][-1]
    assert "history" not in stored


def test_a_finished_run_is_not_made_again(record):
    assert is_stored("quick", RUN, [record])
    assert not is_stored("quick", RUN, [])
    (base, *_) = ablation_records({"as it is": (0.99,)})
    run = {key: base[key] for key in RUN} | {"holdout": HOLDOUT}
    assert is_stored("as it is", run, [base])
    assert not is_stored("as it is", run, [base | {"evaluated_on": "test"}])


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "0"},
        {"settings": {}},
        {"seed": 4},
        {"name": "slow"},
        {"recipe": "gone"},
        {"overrides": {"rotation": 3}},
        {"edits": {"an old text": "a new one"}},
        {"evaluated_on": "holdout"},
    ],
    ids=str,
)
def test_another_run_does_not_stand_for_it(record, other):
    assert not is_stored("quick", RUN, [record | other])


def test_a_table_shows_the_fixed_seeds_of_this_notebook_alone(record):
    others = [record | {"fingerprint": "0"}, record | {"seed": 77}]
    assert claimed([record, *others]) == {"quick": [record]}
    assert claimed([record, *others], [77]) == {"quick": [others[1]]}


def test_records_are_written_whole_or_not_at_all(record, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.json")
    benchmark.write_records([record])
    assert benchmark.read_records() == [record]
    with pytest.raises(TypeError):
        benchmark.write_records([record, {"accuracy": object()}])
    assert benchmark.read_records() == [record]
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


def test_the_ablation_never_touches_the_test_images():
    runs = list(wanted_runs([], [], HELD_OUT))
    assert {name for name, _ in runs} == set(HELD_OUT)
    assert all(parameters["holdout"] > 0 for _, parameters in runs)


@pytest.mark.parametrize("name", [name for name in ABLATION if edits_of(name)])
def test_an_edited_copy_differs_where_it_should_and_nowhere_else(name):
    pairs = zip(read_notebook().cells, edited(edits_of(name)).cells, strict=True)
    changed = {a.id for a, b in pairs if a.source != b.source}
    texts = [
        c.id for c in read_notebook().cells for t in edits_of(name) if t in c.source
    ]
    assert changed == set(texts)


@pytest.mark.parametrize("name", ABLATION)
def test_a_change_keeps_the_rules(name):
    """Or its run would fail, hours later, and end the benchmark."""
    fields, edits = ABLATION[name]
    cells = dict(definitions())
    cells |= {"settings": cells["Recipe"](**fields), "seed": 0}
    for cell in edited(edits).cells:
        if cell.id in ("model", "rules"):
            exec(cell.source, cells)


def test_an_edit_of_a_text_that_is_not_there_is_an_error():
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
