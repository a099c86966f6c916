"""Writes the tables and figures of README, tests/README and notebook from the records.

What is generated stands between the markers <!-- generated: NAME --> and
<!-- end: NAME -->; a test fails if it differs from what this program would write. Of
our own results nothing is typed; public.tsv holds what others published. With --run
the notebook is run first, and its outputs and its network are stored.
"""

import argparse
import base64
import collections
import hashlib
import io
import re
import tempfile
import textwrap
from pathlib import Path

import benchmark
import matplotlib.pyplot as plt
import nbclient
import nbformat
import notebook as source
import numpy as np
from notebook import NOTEBOOK, REPOSITORY, cell_of, fingerprint
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
RECORDS = REPOSITORY / "tests" / "records"
IMAGES = REPOSITORY / "images"
STORED_MODEL = source.DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 99.4
PUBLIC = np.genfromtxt(RECORDS / "public.tsv", delimiter="\t", dtype=None, names=True)


def run_and_store():
    """Execute the notebook in place, and keep its network."""
    notebook, before = source.read_notebook(), NOTEBOOK.read_bytes()
    language = dict(notebook.metadata["language_info"])  # the run adds its Python's
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "CODE9.keras")
        save = f"model.layers[-1].save({str(network)!r})"
        notebook.cells.append(nbformat.v4.new_code_cell(save))
        nbclient.execute(
            notebook, REPOSITORY, coalesce_streams=True, record_timing=False
        )
        notebook.cells.pop()
        if NOTEBOOK.read_bytes() != before:
            raise RuntimeError("CODE9.ipynb was changed while it ran: run it again.")
        STORED_MODEL.write_bytes(network.read_bytes())
    for cell in notebook.cells:
        if "outputs" in cell:  # less what TensorFlow's libraries say of the machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata |= {"language_info": language}
    notebook.metadata["code9"] = {"trains": fingerprint(), "cells": code_of(notebook)}
    nbformat.write(notebook, NOTEBOOK)


def code_of(notebook):
    """Return a hash of all code, on which the stored outputs depend."""
    code = "\n".join(cell.source for cell in notebook.cells if "outputs" in cell)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def stored_run(notebook):
    """Return the notebook's own record, or raise LookupError if it is of other code."""
    now = {"trains": fingerprint(), "cells": code_of(notebook)}
    outputs = cell_of(notebook, "record").outputs
    record = source.find_record(notebook) if outputs else {"settings": None}
    settings = record["settings"]
    if (notebook.metadata.get("code9"), settings) != (now, source.settings_of()):
        raise LookupError("The stored run is of other code: run report.py --run.")
    return record


def table(head, rows):
    """Return a Markdown table; a name in the head that begins with > is set right."""
    names = head.split("|")
    rules = ["---:" if name.startswith(">") else "---" for name in names]
    lines = [[name.lstrip(">") for name in names], rules, *rows]
    return "\n".join(f"|{'|'.join(map(str, line))}|" for line in lines)


def accuracies(records):
    """Return the accuracies of records in per cent."""
    return 100 * np.array([record["accuracy"] for record in records])


def spread(values, digits=2):
    """Return mean and deviation of values, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def lowest_mean(values):
    """Return the lower end of the 95% interval (Student's t) of the mean of values."""
    return stats.ttest_1samp(values, 0).confidence_interval().low


def effects(columns, digits):
    """Return the means of differences ± half of their 95% intervals, as texts.

    Those are bold that differ from zero with all of them in mind, by Holm's correction
    of the p-values (https://en.wikipedia.org/wiki/Holm-Bonferroni_method).
    """
    tests = [stats.ttest_1samp(values, 0) for values in columns]  # Student's t
    order, told, texts = np.argsort([test.pvalue for test in tests]), set(), []
    for place, index in enumerate(order):
        if tests[index].pvalue * (len(tests) - place) > 0.05:
            break
        told.add(index)
    for index, test in enumerate(tests):
        low, high = test.confidence_interval()
        text = f"{(low + high) / 2:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
        texts.append(f"**{text}**" if index in told else text)
    return texts


def grouped(records):
    """Return the records in lists, by their names."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["name"]].append(record)
    return groups


def tested(records):
    """Return the records on the test images, by name, the longest trainings last."""
    chosen = [record for record in records if record["fold"] is None]
    return grouped(sorted(chosen, key=lambda record: record["epochs"]))


def differences(records, base, names):
    """Return what changes did on the hold-outs: accuracies and cross-entropies.

    That is, by name, a pair of lists of differences to the base, with one value for
    each seed and fold; accuracies are in points.
    """
    groups = grouped([r for r in records if r["fold"] is not None])
    base = {(r["seed"], r["fold"]): r for r in groups[base]}
    changes = {}
    for name in names:
        pairs = [(r, base[r["seed"], r["fold"]]) for r in groups[name]]
        points = [100 * (r["accuracy"] - b["accuracy"]) for r, b in pairs]
        changes[name] = (
            points,
            [r["cross_entropy"] - b["cross_entropy"] for r, b in pairs],
        )
    return dict(sorted(changes.items(), key=lambda item: -np.mean(item[1][1])))


def differences_table(head, changes):
    """Return a table of differences."""
    points, losses = zip(*changes.values(), strict=True)
    columns = changes, effects(points, 3), effects(losses, 4), map(len, points)
    return table(head, zip(*columns, strict=True))


def choices_table(records):
    """Return the table of what each choice brings."""
    base, *names = benchmark.ABLATION
    changes = differences(records, base, names)
    text = differences_table("one change|>accuracy|>cross-entropy|>n", changes)
    group = grouped(records)[base]
    losses = [record["cross_entropy"] for record in group]
    text += f"\n\nUnchanged: {spread(accuracies(group))}% right, cross-entropy"
    return f"{text} {spread(losses, 4)} (mean ± standard deviation, n = {len(group)})."


def one_epoch_table(records):
    """Return the table of what was tried for one epoch."""
    base, *names = benchmark.TRIALS
    head = f"instead of {base}|>accuracy|>cross-entropy|>n"
    return differences_table(head, differences(records, base, names))


def network():
    """Return the notebook's network, not trained."""
    cells = source.run_cells("network", skip=("load", "split", *source.SHOWS))
    return cells["build_network"](cells["recipe"].filters)


def rules_table(record, records):
    """Return the assignment's rules, and how the stored run and the seeds meet them."""
    model, group = network(), tested(records)["20 epochs"]
    dense = sum("Dense" in type(layer).__name__ for layer in model.layers)
    biases = sum(len(v.shape) == 1 for v in model.trainable_variables)
    reached = (
        f"**{spread(accuracies(group))}%** (mean ± deviation of {len(group)} seeds)"
    )
    rows = [
        ("test accuracy", "≥ 99.4%", reached),
        ("parameters", "< 15,000", f"{model.count_params():,}"),
        ("epochs", "≤ 20", record["settings"]["epochs"]),
        ("dense layers", "none", dense or "none"),
        ("trained biases, batch norm's beta included", "none", biases or "none"),
    ]
    return table("rule|required|reached", rows)


def log(history):
    """Return the log of the epochs."""
    lines = ["epoch   loss accuracy val_loss val_accuracy   rate"]
    keys = "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"
    columns = map(history.get, keys)
    for epoch, (a, b, c, d, e) in enumerate(zip(*columns, strict=True), 1):
        lines.append(f"{epoch:5} {a:6.4f} {b:8.2%} {c:8.4f} {d:12.2%} {e:6.4f}")
    return "\n".join(["```text", *lines, "```"])


def net_table():
    """Return the table of the stages of the network."""
    model, stages = network(), []
    for layer in model.layers:
        name = f"`{type(layer).__name__}`"
        if "Conv" in name:  # a stage begins
            stages.append([[], "", 0])
            name += " {}x{}".format(*layer.kernel_size)
        if "Activation" in name:
            name = {"silu": "SiLU"}.get(layer.activation.__name__, name)
        stages[-1][0].append(name)
        stages[-1][1] = "x".join(map(str, layer.output.shape[1:]))
        stages[-1][2] += layer.count_params()
    rows = [(", ".join(names), shape, f"{size:,}") for names, shape, size in stages]
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    total = f"**{model.count_params():,}**"
    rows.append((f"all, {trained:,} of them trained", "", total))
    return table("stage|output|>parameters", rows)


def seeds_table(records):
    """Return the table of trainings over seeds."""
    rows = []
    for name, group in tested(records).items():
        values = accuracies(group)
        low, size = f"{lowest_mean(values):.3f}", group[0]["batch_size"]
        rows.append(
            (name, size, len(values), spread(values, 3), f"{min(values):.2f}", low)
        )
    head = "training|>batch|>n|>accuracy, %|>worst|>95% interval of the mean from"
    return table(head, rows)


def shortest(records):
    """Return the name and the accuracies of the shortest training that is enough.

    That is, one of ten seeds or more whose mean has a 95% interval above the required.
    """
    for name, group in tested(records).items():
        values = accuracies(group)
        if len(values) >= 10 and lowest_mean(values) >= REQUIRED:
            return name, values
    raise LookupError("No training is enough.")


def finding(records):
    """Return how long a training is enough on average."""
    name, values = shortest(records)
    text = f"The shortest training that is enough takes {name}: {spread(values)}% over"
    text += f" {len(values)} seeds, and the 95% interval of their mean begins at"
    return textwrap.fill(f"{text} {lowest_mean(values):.2f}%.", 94)


def public_table():
    """Return the table of what others published, as their own logs show it."""
    rows = []
    for row in PUBLIC:
        shown = f"{row['accuracy']:.2f}"
        if row["runs"] > 1:
            shown += f" ± {row['deviation']:.2f}"
        link = f"[{row['who']}](https://github.com/{row['who']})"
        link += row["network"] and f", {row['network']}"
        size = f"{row['parameters']:,}{'T' * (row['counted'] == 'trainable')}"
        rows.append((link, size, f"{row['epochs']:,}", shown, row["runs"]))
    return table("who|>parameters|>epochs|>accuracy, %|>runs", rows)


def generated_parts(notebook, records):
    """Return the generated parts of all pages by name."""
    record = stored_run(notebook)
    photographs = (RECORDS / "photographs.tsv").read_text("utf-8").splitlines()
    head, *rows = (line.split("\t") for line in photographs)
    return {
        "rules": rules_table(record, records),
        "log": log(record["history"]),
        "evaluate": f"```text\n{cell_of(notebook, 'evaluate').outputs[-1].text}```",
        "net": net_table(),
        "choices": choices_table(records),
        "batches": one_epoch_table(records),
        "seeds": seeds_table(records),
        "shortest": finding(records),
        "public": public_table(),
        "photographs": table("|>".join(head), rows),
    }


def fill(text, parts):
    """Return the text with each generated part that it names in place."""
    block = r"(?s)(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    return re.sub(block, lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


def plot_frontier(figure, records):
    """Draw accuracy over parameters, beside public results, and over epochs."""
    left, right = figure.subplots(1, 2, sharey=True)
    groups = {n: accuracies(g) for n, g in tested(records).items()}
    ours = groups["20 epochs"]
    small = PUBLIC[PUBLIC["parameters"] < 15_000]
    left.plot(small["parameters"], small["accuracy"], "x", color="dimgray")
    left.plot([], [], "x", color="dimgray", label="public, single runs")
    size = network().count_params()
    left.errorbar(size, ours.mean(), ours.std(ddof=1), fmt="o", color="tab:blue")
    left.plot([], [], "o", color="tab:blue", label="ours, mean ± deviation")
    left.set(xscale="log", xlabel="parameters (of most public ones, trainable only)")
    left.set_title("Fewer than 15,000 parameters", fontsize=12)
    epochs = [int(name.split()[0]) for name in groups]
    for place, values in zip(epochs, groups.values(), strict=True):
        right.plot([place] * len(values), values, ".", color="lightsteelblue")
    mean = [values.mean() for values in groups.values()]
    error = [values.mean() - lowest_mean(values) for values in groups.values()]
    right.errorbar(epochs, mean, error, fmt="o-", color="tab:blue", capsize=4)
    right.set(xscale="log", xlabel="epochs (dots: seeds; bars: 95% interval of mean)")
    right.set_xticks(epochs, epochs)
    right.minorticks_off()
    right.set_title(f"Enough after {shortest(records)[0]}", fontsize=12)
    for axis in (left, right):
        axis.axhline(REQUIRED, linestyle="--", color="black", linewidth=1)
    spot = {"textcoords": "offset points", "fontsize": 10}
    left.annotate("required: 99.4%", (700, REQUIRED), xytext=(0, 4), **spot)
    left.set_ylabel("test accuracy (%)")
    left.legend(loc="lower right", fontsize=10)


def plot_ablation(figure, records):
    """Draw the changes: a dot for each pair, means, and 95% intervals."""
    axis, (base, *names) = figure.subplots(), benchmark.ABLATION
    changes = differences(records, base, names)
    losses = 1_000 * np.array([losses for _, losses in changes.values()])
    low, high = stats.ttest_1samp(losses, 0, axis=1).confidence_interval()
    mean, error, places = (low + high) / 2, (high - low) / 2, np.arange(len(losses))
    axis.plot(losses, places + 0.25, ".", color="gray")
    axis.errorbar(mean, places, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axis.set_yticks(places, [textwrap.fill(name, 30) for name in changes])
    axis.set_ylim(len(places) - 0.5, -0.5)
    axis.axvline(0, color="black", linewidth=1)
    meaning = "mean of the pairs with its 95% interval; dots: pairs of seed and fold"
    axis.set_xlabel(f"change of hold-out cross-entropy (thousandths)\n{meaning}")
    told = sum(text.startswith("**") for text in effects(losses, 1))
    title = f"{told} of {len(changes)} changes are told from zero (Holm's correction)"
    axis.set_title(title, fontsize=12)


def drawn(plot, records, size):
    """Return what plot draws on a figure as a PNG."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure = plt.figure(figsize=size, layout="constrained")
    plot(figure, records)
    figure.savefig(buffer := io.BytesIO(), dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def figures(notebook, records):
    """Return the PNGs that the README shows, by file name."""
    images = {
        "frontier.png": drawn(plot_frontier, records, (9, 4)),
        "ablation.png": drawn(plot_ablation, records, (8, 4)),
    }
    for cell, name in SHOWN.items():
        output = cell_of(notebook, cell).outputs[-1]
        images[name] = base64.b64decode(output["data"]["image/png"])
    return images


def main():
    """Write the generated parts and the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    if parser.parse_args().run:
        run_and_store()
    notebook, records = source.read_notebook(), benchmark.whole_records()
    parts = generated_parts(notebook, records)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, parts)
    nbformat.write(notebook, NOTEBOOK)
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts), "utf-8")
    for name, content in figures(notebook, records).items():
        (IMAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
