"""Writes the tables and figures of README, tests/README and notebook from the records.

What is generated stands between the markers <!-- generated: NAME --> and
<!-- end: NAME -->; a test fails if it differs from what this program would write. Of
our own results nothing is typed; public.tsv holds what others published. With --run
the notebook is run first, and its outputs and its network are stored.
"""

import argparse
import base64
import collections
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
import peers
from notebook import NOTEBOOK, REPOSITORY, cell_of, fingerprint, hash_of
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
RECORDS = REPOSITORY / "tests" / "records"
IMAGES = REPOSITORY / "images"
STORED_MODEL = source.DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 99.4
SIZES = [*benchmark.WIDTHS, "20 epochs"]  # smallest first
PUBLIC = np.genfromtxt(RECORDS / "public.tsv", delimiter="\t", dtype=None, names=True)


def run_and_store():
    """Execute the notebook in place, and keep its network."""
    notebook, before = source.read_notebook(), NOTEBOOK.read_bytes()
    language = dict(notebook.metadata["language_info"])  # the run adds its Python's
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "CODE9.keras")
        save = f"model.save({str(network)!r})"
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
    return hash_of(code)


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


def tested(records, names):
    """Return the records on the test images that have one of the names, by name."""
    groups = grouped([record for record in records if record["fold"] is None])
    return {name: groups[name] for name in names}


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
    """Return a table of differences, and how many are told from zero."""
    points, losses = zip(*changes.values(), strict=True)
    columns = changes, effects(points, 3), effects(losses, 4), map(len, points)
    text = table(head, zip(*columns, strict=True))
    return f"{text}\n\nBold: {text.count('|**')} of {2 * len(changes)} differences."


def choices_table(records):
    """Return the table of what each choice brings."""
    base, *names = benchmark.ABLATION
    changes = differences(records, base, names)
    text = differences_table("one change|>accuracy|>cross-entropy|>n", changes)
    group = grouped(records)[base]
    losses = [record["cross_entropy"] for record in group]
    text += f" Unchanged: {spread(accuracies(group))}% right, cross-entropy"
    return f"{text} {spread(losses, 4)} (mean ± standard deviation, n = {len(group)})."


def trials_table(records, changes):
    """Return the table of what was tried instead of the first of the changes."""
    base, *names = changes
    head = f"instead of {base}|>accuracy|>cross-entropy|>n"
    return differences_table(head, differences(records, base, names))


def network():
    """Return the notebook's network, not trained."""
    cells = source.run_cells("network", skip=("load", "split", "deskew", *source.SHOWS))
    return cells["build_network"](cells["recipe"].filters)


def rules_table(record, records):
    """Return the assignment's rules, and how the stored run and the seeds meet them."""
    model, group = network(), tested(records, ["20 epochs"])["20 epochs"]
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


def tested_rows(records, names):
    """Return how each training with one of the names did over the seeds."""
    rows = []
    for name, group in tested(records, names).items():
        values, of = accuracies(group), group[0]
        low = f"{lowest_mean(values):.3f}"
        told = len(values), spread(values, 3), f"{min(values):.2f}", low
        rows.append((name, of, told))
    return rows


OVER_SEEDS = ">n|>accuracy, %|>worst|>95% interval of the mean from"


def fresh_table(records):
    """Return how trainings did with seeds that no earlier edition was tested with."""
    rows, later = [], [r for r in records if r["fold"] is None and r["seed"] > 9]
    for name, of, told in tested_rows(later, grouped(later)):
        seeds = [r["seed"] for r in later if r["name"] == name]
        size = f"{of['parameters']:,}"
        both = tested(records, {name, name.removesuffix(", fresh")}).values()
        low = lowest_mean(np.concatenate([accuracies(group) for group in both]))
        seeds = f"{min(seeds)} to {max(seeds)}"
        rows.append((of["epochs"], size, seeds, *told, f"{low:.3f}"))
    return table(f">epochs|>parameters|>seeds|{OVER_SEEDS}|>with all seeds", rows)


def lengths_table(records):
    """Return the table of the lengths of the training."""
    rows = [
        (name, of["batch_size"], "yes" if of["deskew"] else "no", *told)
        for name, of, told in tested_rows(records, benchmark.LENGTHS)
    ]
    return table(f"training|>batch|deskewed|{OVER_SEEDS}", rows)


def widths_table(records):
    """Return the table of the sizes of the network, smallest first."""
    rows = [
        (f"{of['parameters']:,}", f"`{of['filters']}`", of["label_smoothing"], *told)
        for _, of, told in tested_rows(records, SIZES)
    ]
    return table(f">parameters|`filters`|>smoothing|{OVER_SEEDS}", rows)


def enough(values):
    """Tell whether accuracies show that a training reaches what is required.

    That is, the 95% interval of their mean lies above it, by ten seeds or more.
    """
    return len(values) >= 10 and lowest_mean(values) >= REQUIRED


def first_enough(records, names):
    """Return the records of the first training that is enough.

    Raises LookupError if none is.
    """
    for group in tested(records, names).values():
        if enough(accuracies(group)):
            return group
    raise LookupError("No training is enough.")


def finding(records):
    """Return the shortest training and the smallest network that are enough."""
    length = first_enough(records, benchmark.LENGTHS)
    size = first_enough(records, SIZES)
    told = [
        f"{spread(values)}%, interval from {lowest_mean(values):.3f}%"
        for values in map(accuracies, (length, size))
    ]
    text = f"The shortest training that is enough takes {length[0]['name']}: {told[0]}."
    text += " Of the sizes that were tried, the smallest that is enough has "
    text += f"{size[0]['parameters']:,} parameters: {told[1]}."
    return textwrap.fill(text, 94)


def epochs_of(lines):
    """Return the seconds of the peers' epochs, by name, threads, and steps."""
    seconds = collections.defaultdict(list)
    for line in lines:
        if line["what"] == "epoch":
            key = line["name"], line["threads"], line["steps"]
            seconds[key] += line["seconds"]
    return seconds


def ours_of(lines):
    """Return the seconds of our trainings and of deskewing, by name."""
    ours = [line for line in lines if line["what"] in ("whole", "deskewed")]
    return {n: [run["seconds"] for run in g] for n, g in grouped(ours).items()}


def seconds_of(lines):
    """Return seconds: of a peer's epoch at its fastest, of our whole trainings.

    Both are medians, by name; what deskewing takes is among ours.
    """
    medians = collections.defaultdict(list)
    for (name, *_), seconds in epochs_of(lines).items():
        medians[name].append(np.median(seconds))
    whole = {name: np.median(seconds) for name, seconds in ours_of(lines).items()}
    deskewing = whole.pop("deskewing")
    for name in whole:
        if benchmark.LENGTHS[name][1].get("deskew"):
            whole[name] += deskewing
    return {name: min(found) for name, found in medians.items()}, whole


def trained_peers(lines):
    """Return the peers' accuracies in per cent, by name and then by epochs."""
    groups = grouped([line for line in lines if line["what"] == "trained"])
    return {
        name: {
            epochs: accuracies([line for line in group if line["epochs"] == epochs])
            for epochs in sorted({line["epochs"] for line in group})
        }
        for name, group in groups.items()
    }


def peers_table(records, lines):
    """Return the table of how long trainings take, the peers' and ours."""
    epoch, whole = seconds_of(lines)
    timed = [
        (name, epochs, epochs * epoch[name], values)
        for name, lengths in trained_peers(lines).items()
        for epochs, values in lengths.items()
    ]
    timed += [
        ("the notebook", group[0]["epochs"], whole[name], accuracies(group))
        for name, group in tested(records, benchmark.LENGTHS).items()
    ]
    rows = [
        (name, epochs, f"{seconds:.1f}", len(v), spread(v, 3), f"{min(v):.2f}")
        for name, epochs, seconds, v in timed
    ]
    return table("training|>epochs|>seconds|>n|>accuracy, %|>worst", rows)


def times_table(lines):
    """Return the table of all seconds: of the peers' epochs, of whole trainings."""
    rows = [
        (f"{name}, an epoch", threads or "TensorFlow's choice", steps, seconds)
        for (name, threads, steps), seconds in epochs_of(lines).items()
    ]
    for name, seconds in ours_of(lines).items():
        steps = 1 if name == "deskewing" else 20
        rows.append((f"the notebook, {name}", 1, steps, seconds))
    rows = [(*row, ", ".join(f"{time:.1f}" for time in times)) for *row, times in rows]
    return table("what|threads|>steps an execution|>seconds", rows)


def comparison(records, lines):
    """Return how much longer the peers take until they are at what is required."""
    epoch, whole = seconds_of(lines)
    shortest = first_enough(records, benchmark.LENGTHS)[0]["name"]
    each = ours_of(lines)[shortest]
    each = [seconds + whole[shortest] - np.median(each) for seconds in each]
    text = f"The notebook's {shortest}: {whole[shortest]:.0f} seconds"
    text += f" ({min(each):.0f} to {max(each):.0f})."
    for name, lengths in trained_peers(lines).items():
        means = {epochs: round(v.mean(), 6) for epochs, v in lengths.items()}
        reached = [epochs for epochs, mean in means.items() if mean >= REQUIRED]
        epochs = reached[0] if reached else max(lengths)
        seconds = epochs * epoch[name]
        text += f" {name}: {epochs} epochs ({spread(lengths[epochs])}%"
        text += ")," if reached else ", not yet there),"
        text += (
            f" {seconds:.0f} seconds, {seconds / whole[shortest]:.0f} times as long."
        )
    return textwrap.fill(text, 94)


def epoch_ratios(lines):
    """Return how long an epoch of ours takes, compared with the peers'."""
    epoch, whole = seconds_of(lines)
    ours = whole["20 epochs"] / 20
    of = " and ".join(f"{ours / epoch[name]:.2f} of {name}'s" for name in epoch)
    text = f"An epoch of the notebook's twenty takes {of}, evaluation included."
    return textwrap.fill(text, 94)


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


def generated_parts(notebook, records, lines):
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
        "short": trials_table(records, benchmark.ONE_EPOCH),
        "small": trials_table(records, benchmark.SMALL_NETWORK),
        "lengths": lengths_table(records),
        "widths": widths_table(records),
        "fresh": fresh_table(records),
        "enough": finding(records),
        "peers": peers_table(records, lines),
        "times": times_table(lines),
        "machine": f"The machine: {lines[0]['machine']}.",
        "comparison": comparison(records, lines),
        "epochs": epoch_ratios(lines),
        "public": public_table(),
        "photographs": table("|>".join(head), rows),
    }


def fill(text, parts):
    """Return the text with each generated part that it names in place."""
    block = r"(?s)(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    return re.sub(block, lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


def plot_line(axis, places, groups, **look):
    """Draw the means of accuracies over places, with their 95% intervals."""
    mean = np.array([values.mean() for values in groups])
    error = mean - [lowest_mean(values) for values in groups]
    axis.errorbar(places, mean, error, capsize=3, **look)


def plot_frontier(figure, records, lines):
    """Draw accuracy over parameters, beside public results, and over time."""
    left, right = figure.subplots(1, 2, sharey=True)
    small = PUBLIC[PUBLIC["parameters"] < 15_000]
    look = {"color": "dimgray", "label": "public, as logged"}
    left.plot(small["parameters"], small["accuracy"], "x", **look)
    groups = tested(records, SIZES).values()
    sizes = [group[0]["parameters"] for group in groups]
    ours = {"fmt": "o-", "color": "tab:blue", "label": "ours, mean and its interval"}
    plot_line(left, sizes, [*map(accuracies, groups)], **ours)
    left.set(xscale="log", xlabel="parameters (of most public ones, trainable only)")
    size = first_enough(records, SIZES)[0]["parameters"]
    left.set_title(f"smallest that is enough: {size:,} parameters", fontsize=12)
    epoch, whole = seconds_of(lines)
    groups = {n: accuracies(g) for n, g in tested(records, benchmark.LENGTHS).items()}
    seconds = [whole[name] for name in groups]
    plot_line(right, seconds, groups.values(), **ours)
    for name, place in zip(groups, seconds, strict=True):
        spot = {"xytext": (-4, 7), "textcoords": "offset points", "ha": "right"}
        right.annotate(name.split()[0], (place, groups[name].mean()), **spot)
    for (name, lengths), mark in zip(trained_peers(lines).items(), "sD", strict=True):
        places = [epochs * epoch[name] for epochs in lengths]
        look = {"fmt": f"{mark}--", "color": "dimgray", "label": name}
        plot_line(right, places, lengths.values(), **look)
    right.set(xscale="log", xlabel="seconds of training (numbers: epochs)")
    for axis, ticks in (
        (left, (1_000, 2_000, 5_000, 10_000)),
        (right, (10, 20, 50, 100, 200)),
    ):
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
    length = first_enough(records, benchmark.LENGTHS)[0]["name"]
    right.set_title(f"shortest that is enough: {length}", fontsize=12)
    for axis in (left, right):
        axis.axhline(REQUIRED, linestyle="--", color="black", linewidth=1)
    spot = {"textcoords": "offset points", "fontsize": 10}
    left.annotate("required: 99.4%", (700, REQUIRED), xytext=(0, 4), **spot)
    left.set_ylabel("test accuracy (%)")
    left.legend(loc="lower right", fontsize=10)
    right.legend(loc="lower left", fontsize=10)


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
    title = f"significant after Holm's correction: {told} of {len(changes)} changes"
    axis.set_title(title, fontsize=12)


def drawn(plot, size, *given):
    """Return what plot draws of given records on a figure as a PNG."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure = plt.figure(figsize=size, layout="constrained")
    plot(figure, *given)
    figure.savefig(buffer := io.BytesIO(), dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def figures(notebook, records, lines):
    """Return the PNGs that the README shows, by file name."""
    images = {
        "frontier.png": drawn(plot_frontier, (9, 4), records, lines),
        "ablation.png": drawn(plot_ablation, (8, 4), records),
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
    lines = peers.whole_lines()
    parts = generated_parts(notebook, records, lines)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, parts)
    nbformat.write(notebook, NOTEBOOK)
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts), "utf-8")
    for name, content in figures(notebook, records, lines).items():
        (IMAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
